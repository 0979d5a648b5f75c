"""The card of one location: the measured spots behind its prediction, and its genes with their intervals, as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from cmrcnet.analysis.attribution import attribution, matched_tissue
from cmrcnet.errors import Damaged, Incompatible
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.section import Cohort
from cmrcnet.slides.slide import PatchScale
from cmrcnet.viewer.overlay import PredictedSlide
from cmrcnet.viewer.tiles import data_uri

if TYPE_CHECKING:
    from jinja2 import Environment

SHOWN = 8
"""Measured spots that are shown."""
GENES = 8
"""Genes that are shown, the chosen one first, then the most reliable."""
PATCH_PX = 160
"""Longest side of a patch that is sent."""


@cache
def _environment() -> Environment:
    """Templates of this room; every value is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cmrcnet.viewer"), autoescape=True, trim_blocks=True, undefined=StrictUndefined
    )
    environment.filters["picture"] = _small_picture
    environment.filters["thousands"] = "{:,}".format
    return environment


def card(template: str, values: Mapping[str, Any]) -> str:
    """Fill a template of this room."""
    return _environment().get_template(template).render(values)


def location_card(
    slide: PredictedSlide, row: int, gene: str, ranked: list[str], cohort: Cohort | None, *, without: str = ""
) -> str:
    """HTML on one location.

    Parameters
    ----------
    slide : PredictedSlide
    row : int
        Of the prediction table.
    gene : str
        Shown first.
    ranked : list of str
        All genes, the most reliable first.
    cohort : Cohort, optional
        That of the bank, for patches and measured values of the spots.
    without : str
        Why there is no cohort; how to give it, when left out.
    """
    picture = slide.tiles.slide if slide.deep else None
    table = slide.prediction.location(row)
    genes = list(dict.fromkeys([gene, *ranked]))[:GENES]
    var = slide.prediction.var
    mean = np.asarray(table.X)[:, var.index.get_indexer(genes)]
    lower, upper = slide.interval(mean, np.array([row]), genes)
    obs = table.obs.iloc[0]
    measured, why, found, patches, patch, missing = {}, "", None, [], None, ()
    try:
        found = attribution(table, str(table.obs_names[0]))
    except (Incompatible, Damaged) as error:
        why = str(error)
    if found is not None and cohort is not None:
        held = cohort.only(set(map(str, found.spots["section"])) & set(cohort.sections))
        tissue = matched_tissue(table, found, genes, cohort=held, slide=picture, shown=SHOWN)
        patches, patch, missing = tissue.patches, tissue.patch, tissue.missing
        weight = found.spots["weight"].to_numpy()
        for column, name in enumerate(genes):
            known = np.isfinite(tissue.expression[:, column])
            if known.any():
                values = tissue.expression[known, column]
                measured[name] = float((weight[known] * values).sum() / weight[known].sum())
    elif picture is not None and "patch_px" in slide.prediction.facts:
        facts = slide.prediction.facts
        scale = PatchScale(size_px=int(facts["patch_px"]), mpp=float(facts["patch_mpp"]))
        patch = next(iter(crop_patches(picture, slide.prediction.centre_px[[row]], scale)))[0]
    if cohort is None and found is not None:
        missing = (without or "Patches and measured values of the spots need their cohort: --bank or --cohort.",)
    reach = float(np.nanmax([*upper[0], *mean[0], 0.1]))
    return card(
        "location.html",
        {
            "name": str(table.obs_names[0]),
            "slide": slide.name,
            "x": float(obs["x_um"]),
            "y": float(obs["y_um"]),
            "units": slide.prediction.facts["units"],
            "confidence": float(obs["confidence"]),
            "similarity": float(obs["similarity"]),
            "flags": [
                text
                for column, bad, text in (
                    ("abstained", 1, "Abstained: this location is too uncertain to be used."),
                    ("in_distribution", 0, "This location looks unlike the training sections."),
                    ("in_tissue", 0, "This location is not on tissue."),
                )
                if column in obs and obs[column] == bad
            ],
            "patch": patch,
            "why": why,
            "found": found,
            "spots": [] if found is None else found.spots.head(SHOWN).to_dict("records"),
            "patches": patches,
            "missing": missing,
            "reach": reach,
            "genes": [
                {
                    "name": name,
                    "grade": str(var.loc[name, "grade"]) if "grade" in var else "not measured",
                    "predicted": float(mean[0, column]),
                    "lower": float(lower[0, column]),
                    "upper": float(upper[0, column]),
                    "measured": measured.get(name),
                }
                for column, name in enumerate(genes)
            ],
        },
    )


def _small_picture(pixels: np.ndarray) -> str:
    step = -(-max(pixels.shape[:2]) // PATCH_PX)
    height, width = (side // step * step for side in pixels.shape[:2])
    small = pixels[:height, :width].reshape(height // step, step, width // step, step, 3).mean(axis=(1, 3))
    return data_uri(small.astype(np.uint8))
