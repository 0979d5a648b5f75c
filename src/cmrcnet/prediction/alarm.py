"""The domain alarm of a prediction: does the slide, and each place of it, look like what the model has learnt from?"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import CmrcnetWarning
from cmrcnet.tissue.slide import Slide
from cmrcnet.tissue.spots import Spots
from cmrcnet.trust.appearance import appearance

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.trust.trust import Trust


def sound_alarm(table: AnnData, trust: Trust | None, slide: Slide, places: Spots) -> None:
    """Write ``obs["in_domain"]`` and ``uns["cmrcnet"]["alarm"]``, and warn where the slide is unlike the training's.

    Reads one small patch a place; all places are kept as nine numbers each, and judged together.

    Parameters
    ----------
    table : AnnData
        Prediction table of these places, in this order.
    trust : Trust or None
        What the model knows of its limits; without a domain it says nothing.
    slide : Slide
    places : Spots

    Warns
    -----
    CmrcnetWarning
    """
    if trust is None or trust.domain is None:
        return
    inside, alarm = trust.domain.judge(appearance(slide, places.centre_px), slide.name)
    table.obs["in_domain"] = inside.astype(np.int64)
    table.uns["cmrcnet"]["alarm"] = {
        "raised": int(alarm.raised),
        "kind": alarm.kind,
        "sentence": alarm.sentence,
        "distance": alarm.distance,
        "limit": alarm.limit,
    }
    if alarm.raised:
        warnings.warn(alarm.sentence, CmrcnetWarning, stacklevel=4)
