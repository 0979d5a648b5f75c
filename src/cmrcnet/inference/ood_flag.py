"""The domain alarm of a prediction: does the slide, and each location of it, look like what the model has learnt
from?"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import CmrcnetWarning
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide
from cmrcnet.uncertainty.ood import appearance

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.uncertainty.calibration import Trust


def sound_alarm(table: AnnData, trust: Trust | None, slide: Slide, locations: Spots) -> None:
    """Write ``obs["in_distribution"]`` and ``uns["cmrcnet"]["ood"]``, and warn where the slide is out of distribution.

    Reads one small patch a location; all locations are kept as nine numbers each, and judged together.

    Parameters
    ----------
    table : AnnData
        Prediction table of these locations, in this order.
    trust : Trust or None
        What the model knows of its limits; without a domain it says nothing.
    slide : Slide
    locations : Spots

    Warns
    -----
    CmrcnetWarning
    """
    if trust is None or trust.domain is None:
        return
    inside, alarm = trust.domain.judge(appearance(slide, locations.centre_px), slide.name)
    table.obs["in_distribution"] = inside.astype(np.int64)
    table.uns["cmrcnet"]["ood"] = {
        "raised": int(alarm.raised),
        "kind": alarm.kind,
        "sentence": alarm.sentence,
        "distance": alarm.distance,
        "limit": alarm.limit,
    }
    if alarm.raised:
        warnings.warn(alarm.sentence, CmrcnetWarning, stacklevel=4)
