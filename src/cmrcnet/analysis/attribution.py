"""The attribution of one predicted place: the measured spots that were averaged for it, and how much each one
counts.

The tissue and the counts behind a attribution: patches of the matches, and their measured expression.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.errors import Damaged, NotAvailable, UnknownName
from cmrcnet.genes.normalise import normalize
from cmrcnet.genes.table import STUDENT
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.section import Cohort, Section
from cmrcnet.slides.slide import PatchScale, Slide, known_scale

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_HINT = "predict again with this version of cmrcnet"


@dataclass(frozen=True, eq=False)
class Attribution:
    """Where one prediction comes from.

    Parameters
    ----------
    place : str
    row : int
        Of the prediction table.
    spots : pandas.DataFrame
        One row a measured spot, most similar first: section, patient, barcode, x, y (level-0 px of that section's
        slide), similarity, weight. The weights sum to 1.
    patient_weights : dict of str to float
        Share of the weight per patient, largest first.
    parts : dict of str to float
        Share of each part of the head in the prediction. The spots account for "retrieval" alone.
    """

    place: str
    row: int
    spots: pd.DataFrame
    patient_weights: dict[str, float]
    parts: dict[str, float]

    @property
    def sentence(self) -> str:
        """What the attribution explains, and what not."""
        share = self.parts.get("retrieval", 0.0)
        if share == 1:
            return "The prediction is the weighted mean of these spots, and of nothing else."
        others = [f"{part:.0%} {_SPOKEN.get(name, name)}" for name, part in self.parts.items() if name != "retrieval"]
        rest = " and ".join(others)
        if share == 0:
            return (
                f"The prediction is {rest}: learnt from all training spots together, so no single spots stand behind "
                "it. These are the measured spots that look most alike."
            )
        return (
            f"These spots account for the retrieval, {share:.0%} of the prediction. The rest ({rest}) was learnt from "
            "all training spots together, and no single spots stand behind it."
        )


_SPOKEN = {"ridge": "ridge regression", "kernel": "kernel ridge regression"}


def attribution(table: AnnData, place: str) -> Attribution:
    """The attribution of one location of a prediction table.

    Parameters
    ----------
    table : AnnData
        Prediction table.
    place : str
        Its name in `obs_names`.

    Returns
    -------
    Attribution

    Raises
    ------
    UnknownName
        No such place.
    NotAvailable
        A student made the prediction.
    Damaged
        The table names no neighbours, or is of an older version.
    """
    names = list(map(str, table.obs_names))
    if place not in names:
        raise UnknownName("location in the prediction", place, names)
    told: dict[str, Any] = table.uns.get("cmrcnet", {})
    if STUDENT in told:
        raise NotAvailable.from_sentence(
            f"The prediction of {told.get('slide', 'this slide')} was made by a student, which has no attributions; "
            "predict with MODEL and --bank for these."
        )
    lacking = [key for key in ("neighbour_ids", "neighbour_similarity", "neighbour_weight") if key not in table.obsm]
    if lacking or "neighbour_spots" not in told or "head_weights" not in told:
        why = f"it lacks {', '.join(lacking) or 'neighbour_spots or head_weights'}, so nothing can be explained"
        raise Damaged("The prediction table", why, _HINT)
    row = names.index(place)
    ids = np.asarray(table.obsm["neighbour_ids"][row])
    spots = told["neighbour_spots"].loc[[str(each) for each in ids]].reset_index(drop=True)
    spots = spots.assign(
        similarity=np.asarray(table.obsm["neighbour_similarity"][row], np.float64),
        weight=np.asarray(table.obsm["neighbour_weight"][row], np.float64),
    )
    patient_weights = (
        spots.groupby("patient", sort=False, observed=True)["weight"].sum().sort_values(ascending=False, kind="stable")
    )
    parts = json.loads(told["head_weights"])
    return Attribution(
        place, row, spots, {str(patient): float(share) for patient, share in patient_weights.items()}, parts
    )


@dataclass(frozen=True, eq=False)
class MatchedTissue:
    """What could be shown of a attribution.

    Parameters
    ----------
    patch : numpy.ndarray or None, shape (px, px, 3)
        Of the predicted place.
    patches : list of numpy.ndarray or None
        Of the first matches.
    expression : numpy.ndarray, shape (spots, genes), float32
        Measured log-normalised expression of every spot of the attribution; NaN: not at hand, or not measured.
    missing : tuple of str
        Sentences on what could not be shown, and how it could.
    """

    patch: np.ndarray | None
    patches: list[np.ndarray | None]
    expression: np.ndarray
    missing: tuple[str, ...]


def matched_tissue(
    table: AnnData,
    found: Attribution,
    genes: Sequence[str],
    *,
    cohort: Cohort | None,
    slide: Slide | None,
    shown: int,
) -> MatchedTissue:
    """Read patches and counts of a attribution's spots from their cohort.

    Parameters
    ----------
    table : AnnData
        The prediction table.
    found : Attribution
    genes : sequence of str
    cohort : Cohort or None
        That the bank was built from.
    slide : Slide or None
        That was predicted; looked for among the cohort's slides when left out.
    shown : int
        Matches whose patch is read.
    """
    told = table.uns["cmrcnet"]
    scale = PatchScale(size_px=int(told["patch_px"]), mpp=float(told["patch_mpp"]))
    patches: list[np.ndarray | None] = [None] * min(shown, len(found.spots))
    expression = np.full((len(found.spots), len(genes)), np.nan, np.float32)
    missing: list[str] = []
    wanted = str(told["slide_fingerprint"])
    if slide is not None and slide.fingerprint() != wanted:
        missing.append(f"{slide.name} is not the slide that was predicted ({told['slide']}).")
        slide = None
    for name in dict.fromkeys(found.spots["section"]) if cohort is not None else ():
        if name not in cohort.sections:
            missing.append(f"{cohort.name} has no section {name}.")
            continue
        section = cohort.read(name)
        if slide is None and section.slide.fingerprint() == wanted:
            slide = section.slide
        _fill(section, found, genes, told, scale, patches, expression)
    if slide is None and cohort is not None:
        slide = _slide_in(cohort, wanted)
    if cohort is None:
        missing.append("Patches and measured values of the matches need their cohort: --cohort COHORT.csv.")
    if slide is None:
        missing.append(f"The patch of the place needs the slide {told['slide']}: a cohort that holds it, or --slide.")
    centre = np.asarray(table.obsm["spatial"][found.row], np.float64)[None]
    patch = None
    if slide is not None:  # as much of it as the prediction saw, by the micrometres that it was told
        seen = scale.showing(scale.side_um * known_scale(slide) / float(told["mpp"]))
        patch = next(iter(crop_patches(slide, centre, seen)))[0]
    return MatchedTissue(patch, patches, expression, tuple(missing))


def _fill(
    section: Section,
    found: Attribution,
    genes: Sequence[str],
    told: dict[str, Any],
    scale: PatchScale,
    patches: list[np.ndarray | None],
    expression: np.ndarray,
) -> None:
    """Put down what one section knows."""
    mine = np.flatnonzero((found.spots["section"] == section.name).to_numpy())
    row_of = {barcode: row for row, barcode in enumerate(section.spots.barcodes)}
    rows = [(place, row_of[barcode]) for place in mine if (barcode := found.spots["barcode"][place]) in row_of]
    target = told["target_sum"]
    values = normalize(section.counts, target if target == "median" else float(target)).tocsc()
    column_of = {gene: column for column, gene in enumerate(section.genes)}
    for number, gene in enumerate(genes):
        if gene in column_of:
            column = np.asarray(values[:, [column_of[gene]]].todense()).ravel()
            for place, row in rows:
                expression[place, number] = column[row]
        elif section.absent_genes == "zero":
            expression[[place for place, _ in rows], number] = 0
    near = mine[mine < len(patches)]
    if len(near):
        centres = found.spots.loc[near, ["x", "y"]].to_numpy(np.float64)
        for place, patch in zip(near, np.concatenate(list(crop_patches(section.slide, centres, scale))), strict=True):
            patches[place] = patch


def _slide_in(cohort: Cohort, fingerprint: str) -> Slide | None:
    """The slide of this fingerprint among the cohort's."""
    for section in cohort:
        if section.slide.fingerprint() == fingerprint:
            return section.slide
    return None
