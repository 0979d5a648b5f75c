"""The prediction table (AnnData): its content, how it is made, and how it is checked.

Everything that reads predictions relies on this layout.

=================================  =================================================================================
``X``                              predicted expression in ``units``, float32, (locations, features); NaN where there is
                                   no prediction: no neighbour's section measured the gene. Never infinite
                                   Or float16, when asked for; absent where the content is components: a gene is then
                                   ``level + components @ loadings`` (`decode`), cut to the limits of its units.
                                   Its value is then given also where no neighbour's section measured it; likewise in
                                   expression alone of a head that searches no neighbours (``similarity`` is NaN)
``layers["neighbour_std"]``        standard deviation of the measured expression among the neighbours, as X; NaN where X
                                   is; only where the content is all and there are neighbours: a student has none
``layers["lower"], ["upper"]``     optional: the interval, ``X + interval_scale * interval_low`` and ``X +
                                   interval_scale * interval_high``, cut to the limits of the units; NaN where none can
                                   be given
``obs``                            ``x_um y_um`` (level-0 pixel times scale), ``similarity`` (mean cosine to the
                                   neighbours, NaN without neighbours), ``in_tissue`` (1 or 0), ``confidence`` (0 to 1:
                                   share of validation spots that looked harder; NaN: not measured); with a calibrated
                                   model ``interval_scale``, ``in_distribution`` (1 or 0), ``ood_distance`` (squared
                                   Mahalanobis distance of its image statistics) and, optional, ``abstained``
``var``                            ``symbol``, ``ensembl_id`` (either may be empty), ``reliability`` (held-out Pearson;
                                   NaN: not measured), ``reliability_is`` ("held-out Pearson", "validation Pearson",
                                   "validation Pearson of the teacher" or "not measured"); with gene reliability
                                   ``reliability_low``, ``_high`` (95 % interval), ``_null``, ``_sections``, ``grade``
                                   (A to D, "not measured"); ``interval_low``, ``interval_high``
``var["level"]``,                  of a content of components: mean level of each gene, and its loading on each
``varm["loadings"]``               component (genes, components), float32
``obsm["components"]``             the same: predicted expression components of each location, float32
``obsm["spatial"]``                x, y of each centre in level-0 pixels, as scanpy and squidpy expect it
``obsm["neighbour_ids"]``          rows of the bank that were averaged, most similar first; absent without neighbours
``obsm["neighbour_similarity"]``   cosine of each
``obsm["neighbour_weight"]``       weight of each in the average, summing to 1
``obsm["patient_weights"]``        share of that weight per patient, in the order of
                                   ``uns["cmrcnet"]["bank_patients"]``
``uns["spatial"]``                 a small picture of the slide and its scale, in scanpy's layout
``uns["cmrcnet"]``                 ``format``, ``units`` of X, ``scaling``, ``table_kind``, ``slide``,
                                   ``slide_fingerprint``, ``slide_width_px``,
                                   ``slide_height_px``, ``mpp``, ``spot_diameter_um``, ``version``, ``ood`` (raised,
                                   kind, sentence, distance, limit), ``content`` (all, expression or components),
                                   ``window_um``, and all provenance given
=================================  =================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from cmrcnet.errors import Damaged, ShapeMismatch
from cmrcnet.genes.naming import ENSEMBL
from cmrcnet.genes.scaling import COUNTS, Scaling
from cmrcnet.slides.patches import thumbnail
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide, known_scale

if TYPE_CHECKING:
    from anndata import AnnData

FORMAT = 4
CONTENTS = ("all", "expression", "components")
"""Of a table: expression with spread and neighbours, expression alone, or expression components."""
PICTURE_PX = 1_200
"""Longer side of the picture that a table carries, at most."""

STUDENT = "student_fingerprint"
"""In ``uns["cmrcnet"]`` of a table that a distilled student wrote: it has no neighbours and no attribution."""

MEASURED, NOT_MEASURED = "held-out Pearson", "not measured"

_HINT = "predict again with this version of cmrcnet"


class Ranked(Protocol):
    """The part of `search.Neighbours` that a table holds; both arrays are (locations, k)."""

    ids: np.ndarray
    similarity: np.ndarray


def prediction_table(
    mean: np.ndarray | None,
    neighbour_std: np.ndarray | None,
    *,
    genes: Sequence[str],
    spots: Spots,
    slide: Slide,
    neighbours: Ranked | None,
    provenance: Mapping[str, Any],
    similarity: np.ndarray | None = None,
    reliability: Mapping[str, float] | None = None,
    confidence: np.ndarray | None = None,
    in_tissue: np.ndarray | None = None,
) -> AnnData:
    """Make the table of a prediction in memory, or all of it but its large arrays.

    Parameters
    ----------
    mean, neighbour_std : numpy.ndarray, shape (locations, genes), or None
        NaN in both where there is no prediction. `neighbour_std` is None without neighbours; `mean` is None where X is
        written elsewhere, in chunks (`export.table_file`).
    genes, spots, slide : sequence of str, Spots, Slide
        Names of the columns; the locations; the slide, whose scale must be known and of which a thumbnail is read.
    neighbours : search.Neighbours or None
        Bank spots that were averaged.
    provenance : mapping
        Fingerprints, k, scaling, version, ... for ``uns["cmrcnet"]``; what AnnData cannot store becomes JSON text.
        ``scaling`` (`Scaling.to_dict`, that of counts when left out) gives X its units.
    similarity : numpy.ndarray, shape (locations,), optional
        Mean cosine to the neighbours; that of `neighbours`, or NaN without any, when left out.
    reliability : mapping of gene to float, optional
        Held-out Pearson of genes.
    confidence, in_tissue : numpy.ndarray, shape (locations,), optional
        From 0 to 1, NaN when left out; and 1 or 0, 1 everywhere when left out.

    Returns
    -------
    anndata.AnnData

    Raises
    ------
    ShapeMismatch, ScaleError

    Examples
    --------
    >>> from cmrcnet import synthetic_cohort
    >>> section = synthetic_cohort(patients=1, spots=4, genes=24).read("P1S1")
    >>> table = prediction_table(
    ...     np.zeros((4, 1)), np.ones((4, 1)), genes=["ERBB2"], spots=section.spots, slide=section.slide,
    ...     neighbours=None, provenance={"k": 50},
    ... )
    >>> check_prediction_table(table)
    >>> table.shape, table.uns["cmrcnet"]["units"]
    ((4, 1), 'log1p of counts per 10,000')
    """
    import anndata
    import pandas as pd

    wanted = (len(spots), len(genes))
    for name, values in (("mean", mean), ("neighbour_std", neighbour_std)):
        if values is not None and values.shape != wanted:
            raise ShapeMismatch(name, want=wanted, got=values.shape)
    if neighbours is not None and neighbours.ids.shape[0] != len(spots):
        raise ShapeMismatch("neighbours", want=(len(spots), "k"), got=neighbours.ids.shape)
    scaling = Scaling.from_dict(provenance["scaling"]) if "scaling" in provenance else COUNTS
    if similarity is None and neighbours is not None:
        similarity = neighbours.similarity.mean(axis=1)
    scale, unknown = known_scale(slide), np.full(len(spots), np.nan, np.float32)
    table = anndata.AnnData(
        obs=pd.DataFrame(
            {
                "x_um": spots.centre_px[:, 0] * scale,
                "y_um": spots.centre_px[:, 1] * scale,
                "similarity": unknown if similarity is None else np.asarray(similarity, np.float32),
                "in_tissue": np.ones(len(spots), np.int64) if in_tissue is None else np.asarray(in_tissue, np.int64),
                "confidence": unknown if confidence is None else np.asarray(confidence, np.float32),
            },
            index=pd.Index(list(spots.barcodes), dtype=object),
        ),
        var=_gene_columns(genes, reliability or {}),
        obsm=cast(Any, {"spatial": np.array(spots.centre_px)}),
    )
    if mean is not None:
        table.X = np.ascontiguousarray(mean, dtype=np.float32)
    if neighbour_std is not None:
        table.layers["neighbour_std"] = np.ascontiguousarray(neighbour_std, dtype=np.float32)
    if neighbours is not None:
        table.obsm["neighbour_ids"] = neighbours.ids.astype(np.int64)
        table.obsm["neighbour_similarity"] = neighbours.similarity.astype(np.float32)
    table.uns["spatial"] = {slide.name.replace("/", "_"): _picture(slide, spots.diameter_um / scale)}
    table.uns["cmrcnet"] = {
        **{key: _storable(value) for key, value in provenance.items()},
        "format": FORMAT,
        "scaling": json.dumps(scaling.to_dict(), sort_keys=True),
        "units": scaling.units,
        "table_kind": scaling.kind,
        "slide": slide.name,
        "slide_fingerprint": slide.fingerprint(),
        "slide_width_px": int(slide.width_px),
        "slide_height_px": int(slide.height_px),
        "mpp": scale,
        "spot_diameter_um": float(spots.diameter_um),
        "version": str(provenance.get("version") or version("cmrcnet")),
    }
    return table


def scaling_of(prediction: AnnData) -> Scaling:
    """How a prediction table is scaled; as counts by default where it does not say."""
    stated = prediction.uns.get("cmrcnet", {}).get("scaling")
    return COUNTS if stated is None else Scaling.from_dict(json.loads(stated))


def decode(components: np.ndarray, loadings: np.ndarray, level: np.ndarray, facts: Mapping[str, Any]) -> np.ndarray:
    """Expression (locations, genes) float32 of components (locations, rank), for some genes of a table of components.

    `facts` are the table's ``uns["cmrcnet"]``, whose scaling has the limits of values.

    Examples
    --------
    >>> decode(np.array([[1.0, 0.0], [0.0, -9.0]]), np.array([[2.0, 1.0]]), np.array([0.5]), {}).tolist()
    [[2.5], [0.0]]
    """
    scaling = Scaling.from_dict(json.loads(facts["scaling"])) if "scaling" in facts else COUNTS
    return np.clip(components @ loadings.T + level, *scaling.limits).astype(np.float32)


def check_prediction_table(table: AnnData) -> None:
    """Raise an error when a table does not have the layout of a prediction table.

    Parameters
    ----------
    table : anndata.AnnData
        To check.

    Raises
    ------
    Damaged
        Names the first violation.

    Examples
    --------
    >>> import anndata
    >>> check_prediction_table(anndata.AnnData(np.zeros((2, 3))))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cmrcnet.errors.Damaged: The prediction table is incomplete or damaged: uns["cmrcnet"] is missing; ...
    """
    for why in _violations(table):
        raise Damaged("The prediction table", why, _HINT)


def _violations(table: AnnData):
    """Violations of the layout, one sentence each."""
    ours = table.uns.get("cmrcnet")
    if ours is None:
        yield 'uns["cmrcnet"] is missing'
        return
    if int(ours.get("format", 0)) != FORMAT:
        yield f"its format is {ours.get('format')}, and this version reads {FORMAT}"
    for key in ("units", "scaling", "table_kind", "slide", "slide_fingerprint", "mpp", "spot_diameter_um", "version"):
        if key not in ours:
            yield f'uns["cmrcnet"] lacks {key}'
    whole, coded = ours.get("content", "all") == "all", ours.get("content") == "components"
    for holder, name, keys in (
        (table.obs, "obs", ("x_um", "y_um", "similarity", "in_tissue", "confidence")),
        (table.var, "var", ("symbol", "ensembl_id", "reliability", "reliability_is")),
        (table.layers, "layers", () if STUDENT in ours or not whole else ("neighbour_std",)),
        (table.obsm, "obsm", ("spatial", "components") if coded else ("spatial",)),
        (table.varm, "varm", ("loadings",) if coded else ()),
        (table.uns, "uns", ("spatial",)),
    ):
        missing = [key for key in keys if key not in holder]
        if missing:
            yield f"{name} lacks {', '.join(missing)}"
            return
    if not table.obs_names.is_unique or not table.var_names.is_unique:
        yield "locations or genes are named twice"
    if np.shape(table.obsm["spatial"]) != (table.n_obs, 2):
        yield f'obsm["spatial"] has shape {np.shape(table.obsm["spatial"])}; wanted {(table.n_obs, 2)}'
        return
    neighbour_std = table.layers.get("neighbour_std")
    for name, values in (("X", table.X), ('layers["neighbour_std"]', neighbour_std)):
        if values is None:
            continue
        values = np.asarray(values)
        if values.dtype not in (np.float32, np.float16):
            yield f"{name} is {values.dtype}; wanted float32 or float16"
        elif np.isinf(values).any():
            yield f"{name} holds infinite values"
    if neighbour_std is not None:
        if not np.array_equal(np.isnan(np.asarray(table.X)), np.isnan(np.asarray(neighbour_std))):
            yield 'X and layers["neighbour_std"] are not NaN at the same locations'
        if (np.asarray(neighbour_std) < 0).any():
            yield 'layers["neighbour_std"] holds negative values'
    microns = np.asarray(table.obsm["spatial"]) * float(ours.get("mpp", np.nan))
    if not np.allclose(microns, np.asarray(table.obs[["x_um", "y_um"]]), rtol=1e-6, atol=1e-3):
        yield "x_um and y_um do not match the centres and the scale"
    if ("neighbour_ids" in table.obsm) != ("neighbour_similarity" in table.obsm) or (
        "neighbour_ids" in table.obsm
        and np.shape(table.obsm["neighbour_ids"]) != np.shape(table.obsm["neighbour_similarity"])
    ):
        yield "neighbour_ids and neighbour_similarity do not match"


def _gene_columns(genes: Sequence[str], reliability: Mapping[str, float]):
    import pandas as pd

    ids = [bool(ENSEMBL.fullmatch(gene)) for gene in genes]
    measured = np.array([reliability.get(gene, np.nan) for gene in genes], dtype=np.float32)
    return pd.DataFrame(
        {
            "symbol": ["" if is_id else gene for gene, is_id in zip(genes, ids, strict=True)],
            "ensembl_id": [gene if is_id else "" for gene, is_id in zip(genes, ids, strict=True)],
            "reliability": measured,
            "reliability_is": np.where(np.isfinite(measured), MEASURED, NOT_MEASURED),
        },
        index=pd.Index(list(genes), dtype=object),
    )


def _picture(slide: Slide, diameter_px: float) -> dict[str, Any]:
    """Thumbnail of the slide in the layout of scanpy's ``uns["spatial"][library]``."""
    downsample = max(1.0, max(slide.width_px, slide.height_px) / PICTURE_PX)
    return {
        "images": {"hires": thumbnail(slide, downsample)},
        "scalefactors": {"tissue_hires_scalef": 1 / downsample, "spot_diameter_fullres": float(diameter_px)},
        "metadata": {},
    }


def _storable(value: Any) -> Any:
    """The value if an .h5ad file can store it in `uns`, else its JSON text."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, str | bool | int | float) else json.dumps(value, sort_keys=True, default=str)
