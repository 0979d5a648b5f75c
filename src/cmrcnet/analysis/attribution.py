"""Attribution of one predicted location: the measured spots that were averaged, their weights, patches and counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.analysis.localisation import measured_expression
from cmrcnet.errors import Damaged, Incompatible, UnknownName
from cmrcnet.genes.table import STUDENT, scaling_of
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.section import Cohort
from cmrcnet.slides.slide import PatchScale, Slide, known_scale

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_HINT = "predict again with this version of cmrcnet"


@dataclass(frozen=True, eq=False)
class Attribution:
    """Measured spots behind the prediction of one location, and their weights.

    Parameters
    ----------
    location : str
        Its name.
    row : int
        Of the prediction table.
    spots : pandas.DataFrame
        One row per measured spot, most similar first: section, patient, barcode, x, y (level-0 px of that section's
        slide), similarity, weight. The weights sum to 1.
    patient_weights : dict of str to float
        Share of the weight per patient, largest first.
    parts : dict of str to float
        Share of each part of the head in the prediction. The spots account for "retrieval" alone.

    Examples
    --------
    >>> import pandas as pd
    >>> spots = pd.DataFrame({"section": ["S1"], "patient": ["A"], "barcode": ["1x1"], "weight": [1.0]})
    >>> Attribution("q", 0, spots, {"A": 1.0}, {"retrieval": 1.0}).sentence
    'The prediction is the weighted mean of these spots.'
    """

    location: str
    row: int
    spots: pd.DataFrame
    patient_weights: dict[str, float]
    parts: dict[str, float]

    @property
    def sentence(self) -> str:
        """How much of the prediction the spots account for."""
        share = self.parts.get("retrieval", 0.0)
        if share == 1:
            return "The prediction is the weighted mean of these spots."
        others = [f"{part:.0%} {_SPOKEN.get(name, name)}" for name, part in self.parts.items() if name != "retrieval"]
        rest = " and ".join(others)
        if share == 0:
            return (
                f"The prediction is {rest}, fitted on all training spots together and not attributable to single "
                "spots. These are the most similar measured spots."
            )
        return (
            f"These spots account for the retrieval, {share:.0%} of the prediction. The rest ({rest}) was fitted on "
            "all training spots together and is not attributable to single spots."
        )


_SPOKEN = {"ridge": "ridge regression", "kernel": "kernel ridge regression"}


def attribution(table: AnnData, location: str) -> Attribution:
    """Look up the attribution of one location of a prediction table.

    Parameters
    ----------
    table : AnnData
        Prediction table.
    location : str
        Name in `obs_names`.

    Returns
    -------
    Attribution

    Raises
    ------
    UnknownName
        The table has no such location.
    Incompatible
        A student made the prediction, or it was written without neighbours.
    Damaged
        The table has no neighbours, or is of an older version.

    Examples
    --------
    >>> import anndata, pandas as pd
    >>> spots = pd.DataFrame({"section": ["S1", "S2"], "patient": ["A", "B"], "barcode": ["1x1", "2x2"]})
    >>> table = anndata.AnnData(np.ones((1, 1)), obs=pd.DataFrame(index=["q"]))
    >>> table.uns["cmrcnet"] = {"neighbour_spots": spots.set_axis(["0", "7"]), "head_weights": '{"retrieval": 1.0}'}
    >>> table.obsm["neighbour_ids"] = np.array([[7, 0]])
    >>> table.obsm["neighbour_similarity"] = np.array([[0.9, 0.8]])
    >>> table.obsm["neighbour_weight"] = np.array([[0.75, 0.25]])
    >>> attribution(table, "q").patient_weights
    {'B': 0.75, 'A': 0.25}
    """
    names = list(map(str, table.obs_names))
    if location not in names:
        raise UnknownName("location in the prediction", location, names)
    info: dict[str, Any] = table.uns.get("cmrcnet", {})
    if STUDENT in info:
        raise Incompatible.from_sentence(
            f"The prediction of {info.get('slide', 'this slide')} was made by a student, which has no attributions; "
            "predict with MODEL and --bank for these."
        )
    content = info.get("content", "all")
    if content != "all":
        raise Incompatible.from_sentence(
            f"The prediction of {info.get('slide', 'this slide')} holds {content} without neighbours; predict with "
            "--content all for these."
        )
    lacking = [key for key in ("neighbour_ids", "neighbour_similarity", "neighbour_weight") if key not in table.obsm]
    lacking += [key for key in ("neighbour_spots", "head_weights") if key not in info]
    if lacking:
        why = f"it lacks {', '.join(lacking)}, so nothing can be explained"
        raise Damaged("The prediction table", why, _HINT)
    row = names.index(location)
    ids = np.asarray(table.obsm["neighbour_ids"][row])
    spots = info["neighbour_spots"].loc[[str(each) for each in ids]].reset_index(drop=True)
    spots = spots.assign(
        similarity=np.asarray(table.obsm["neighbour_similarity"][row], np.float64),
        weight=np.asarray(table.obsm["neighbour_weight"][row], np.float64),
    )
    patient_weights = (
        spots.groupby("patient", sort=False, observed=True)["weight"].sum().sort_values(ascending=False, kind="stable")
    )
    parts = json.loads(info["head_weights"])
    return Attribution(
        location, row, spots, {str(patient): float(share) for patient, share in patient_weights.items()}, parts
    )


@dataclass(frozen=True, eq=False)
class MatchedTissue:
    """Patches and measured expression of an attribution's spots.

    `patch` (px, px, 3) is that of the predicted location, `patches` are those of the first spots; None where not
    available. `expression` (spots, genes) float32 is log-normalised, NaN where not available or not measured. `missing`
    holds sentences on what is missing, and how to provide it.
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
    """Read patches (of the first `shown` spots) and expression of `genes` at an attribution's spots from their cohort.

    `cohort` is that of the bank; `slide` the predicted one, which is searched among the cohort's slides when None.
    """
    info = table.uns["cmrcnet"]
    scale = PatchScale(size_px=int(info["patch_px"]), mpp=float(info["patch_mpp"]))
    patches: list[np.ndarray | None] = [None] * min(shown, len(found.spots))
    expression = np.full((len(found.spots), len(genes)), np.nan, np.float32)
    missing: list[str] = []
    wanted = str(info["slide_fingerprint"])
    if slide is not None and slide.fingerprint() != wanted:
        missing.append(f"{slide.name} is not the slide that was predicted ({info['slide']}).")
        slide = None
    for name in dict.fromkeys(map(str, found.spots["section"])):
        if cohort is None:
            break
        if name not in cohort.sections:
            missing.append(f"{cohort.name} has no section {name}.")
            continue
        section = cohort.read(name)
        if slide is None and section.slide.fingerprint() == wanted:
            slide = section.slide
        rows = np.flatnonzero((found.spots["section"] == name).to_numpy())
        measured = measured_expression(section, genes, scaling_of(table))
        measured = measured.reindex(columns=list(genes), fill_value=0 if section.absent_genes == "zero" else np.nan)
        expression[rows] = measured.reindex(index=found.spots["barcode"][rows].astype(str)).to_numpy()
        near = rows[rows < len(patches)]
        centres = found.spots.loc[near, ["x", "y"]].to_numpy(np.float64)
        cropped = (patch for batch in crop_patches(section.slide, centres, scale) for patch in batch)
        for row, patch in zip(near, cropped, strict=True):
            patches[row] = patch
    if slide is None and cohort is not None:
        slide = next((each.slide for each in cohort if each.slide.fingerprint() == wanted), None)
    if cohort is None:
        missing.append("Patches and measured values of the matches need their cohort: --cohort COHORT.csv.")
    if slide is None:
        missing.append(
            f"The patch of the location needs the slide {info['slide']}: a cohort that holds it, or --slide."
        )
    centre = np.asarray(table.obsm["spatial"][found.row], np.float64)[None]
    patch = None
    if slide is not None:  # the same extent as in the prediction, by its mpp
        seen = scale.showing(scale.side_um * known_scale(slide) / float(info["mpp"]))
        patch = next(iter(crop_patches(slide, centre, seen)))[0]
    return MatchedTissue(patch, patches, expression, tuple(missing))
