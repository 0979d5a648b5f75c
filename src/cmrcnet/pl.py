"""Three pictures that scanpy and squidpy do not draw: truth against prediction, reliability curve, attribution sheet.

Maps of genes, violins and heat maps are scanpy's and squidpy's own: a prediction table opens there as it is.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.analysis.attribution_sheet import attribution_sheet
from cmrcnet.errors import BadOption, TooFew, UnknownName
from cmrcnet.genes.table import scaling_of
from cmrcnet.slides.section import Cohort, Section
from cmrcnet.slides.slide import Slide

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_DOTS, _EQUAL = "#31688e", {"color": "#999999", "linewidth": 1, "linestyle": "--"}


def truth(table: AnnData, section: Section, gene: str, *, ax: Axes | None = None) -> Axes:
    """Draw measured against predicted expression of a gene, a dot a spot, in the units of the table.

    On the dashed line both are equal; dots that rise more steeply were predicted too cautiously.

    Parameters
    ----------
    table : anndata.AnnData
        Prediction table whose locations are spots of the section, by name.
    section : Section
        With the measured table. It must not have been trained on; that is for you to know.
    gene : str
    ax : matplotlib.axes.Axes, optional
        Drawn into; a new figure when left out.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    UnknownName, TooFew

    Examples
    --------
    >>> import cmrcnet
    >>> from cmrcnet.testing import quick_config
    >>> cohort = cmrcnet.synthetic_cohort(patients=2, spots=16, genes=24)
    >>> model = cmrcnet.fit(cohort, quick_config())
    >>> section = cohort.read("P1S1")
    >>> table = cmrcnet.predict(model, section.slide, bank=cmrcnet.build_bank(model, cohort), spots=section.spots)
    >>> cmrcnet.pl.truth(table, section, table.var_names[0]).get_xlabel()
    'predicted, log1p of counts per 10,000'
    """
    predicted, measured = _pairs(table, section, [gene])
    ax = _axes(ax)
    ax.scatter(predicted, measured, s=8, color=_DOTS, alpha=0.6, linewidths=0)
    middle = float(predicted.mean())
    ax.axline((middle, middle), slope=1, **_EQUAL)
    varies = np.ptp(predicted) > 0 and np.ptp(measured) > 0
    pearson = f", Pearson {np.corrcoef(predicted.ravel(), measured.ravel())[0, 1]:.2f}" if varies else ""
    units = table.uns["cmrcnet"]["units"]
    title = f"{gene} in {section.name}: {len(predicted):,} spots{pearson}"
    ax.set(xlabel=f"predicted, {units}", ylabel="measured", title=title)
    return ax


def reliability(
    table: AnnData, section: Section, genes: Sequence[str] | None = None, *, bins: int = 10, ax: Axes | None = None
) -> Axes:
    """Draw a reliability curve: the mean measured value where values of about the same size were predicted.

    Each gene's values are measured from the gene's mean over the spots, so that the curve is of differences between
    places and not between genes. On the diagonal predictions are as large as what is measured; a flatter curve
    exaggerates, a steeper one is too cautious.

    Parameters
    ----------
    table, section, ax
        As in `truth`.
    genes : sequence of str, optional
        All that both have when left out.
    bins : int
        Of equally many values each.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    UnknownName, TooFew, BadOption
    """
    if bins < 2:
        raise BadOption("bins", bins, want="2 or more")
    shared = [gene for gene in table.var_names if gene in set(section.genes)] if genes is None else list(genes)
    predicted, measured = (each - each.mean(axis=0) for each in _pairs(table, section, shared))
    order = np.argsort(predicted, axis=None, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    points = np.array([(predicted.ravel()[part].mean(), measured.ravel()[part].mean()) for part in parts])
    ax = _axes(ax)
    ends = [points.min(), points.max()]
    ax.plot(ends, ends, **_EQUAL)
    ax.plot(*points.T, marker="o", color=_DOTS)
    ax.locator_params(axis="x", nbins=5)
    ax.set(
        xlabel="predicted, from the gene's mean",
        ylabel="measured, from the gene's mean",
        title=f"{section.name}: {len(shared):,} genes, {len(predicted):,} spots",
    )
    return ax


def attribution(
    table: AnnData,
    location: str,
    *,
    genes: Sequence[str] | None = None,
    cohort: Cohort | None = None,
    slide: Slide | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show the attribution sheet of a location in a notebook; parameters and errors as `attribution_sheet`.

    Parameters
    ----------
    ax : matplotlib.axes.Axes, optional
        As in `truth`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    from matplotlib.image import imread

    sheet: Any = attribution_sheet(table, location, genes=genes, cohort=cohort, slide=slide, kind="png")
    picture = imread(io.BytesIO(sheet), format="png")
    ax = _axes(ax, (10, 10 * picture.shape[0] / picture.shape[1]))
    ax.imshow(picture)
    ax.set_axis_off()
    return ax


def _pairs(table: AnnData, section: Section, genes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and measured expression (spots, genes) of the spots that both name; those without a prediction fall."""
    for gene in genes:
        if gene not in table.var_names:
            raise UnknownName("gene in the prediction", gene, tuple(table.var_names))
        if gene not in section.genes:
            raise UnknownName(f"gene in {section.name}", gene, section.genes)
    row = {barcode: number for number, barcode in enumerate(section.spots.barcodes)}
    names = [name for name in table.obs_names if name in row]
    if len(names) < 3 or not genes:
        hint = "predict at the spots of the section (spots=section.spots), genes that it measured"
        raise TooFew(f"spots and {len(genes)} genes of {section.name} in the prediction", len(names), 3, hint)
    column = {gene: number for number, gene in enumerate(section.genes)}
    expression = scaling_of(table).expression(section)
    measured = expression[[row[name] for name in names]][:, [column[gene] for gene in genes]].toarray()
    predicted = np.asarray(table[names, list(genes)].X, np.float64)
    known = np.isfinite(predicted).all(axis=1)
    return predicted[known], np.asarray(measured, np.float64)[known]


def _axes(ax: Axes | None, inches: tuple[float, float] = (4.5, 4.2)) -> Axes:
    if ax is not None:
        return ax
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(inches, layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()
