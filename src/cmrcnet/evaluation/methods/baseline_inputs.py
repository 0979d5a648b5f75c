"""What the networks of the rivals see: the features that ridge sees, and where each spot lies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cmrcnet.evaluation.methods.baselines import reduction
from cmrcnet.evaluation.methods.method import Location, TrainingData
from cmrcnet.evaluation.methods.neighbourhoods import Neighbourhoods, find_neighbourhoods
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import Slide, known_scale


@dataclass(frozen=True, eq=False)
class View:
    """Spots of one section or more, ready for a network.

    Parameters
    ----------
    features : tensor, shape (spots, dim), float32
        Frozen features, standardised and rotated (see `Sight`).
    location_um : numpy.ndarray, shape (spots, 2), float64
        x, y from the mean of the section's spots, in micrometres.
    section_of : numpy.ndarray, shape (spots,)
        Section name of each row.
    """

    features: Tensor
    location_um: np.ndarray
    section_of: np.ndarray

    @cached_property
    def near(self) -> Neighbourhoods:
        """Spatial neighbours of each spot in its section."""
        return find_neighbourhoods(self.location_um, self.section_of)

    @cached_property
    def near_ids(self) -> Tensor:
        """(spots, widest) int64 of `near`."""
        return torch.from_numpy(self.near.ids)

    @cached_property
    def near_present(self) -> Tensor:
        """(spots, widest) bool of `near`."""
        return torch.from_numpy(self.near.present)

    @cached_property
    def location_mm(self) -> Tensor:
        """`location_um` in millimetres: (spots, 2) float32."""
        return torch.from_numpy(self.location_um / 1000).float()

    @cached_property
    def sections(self) -> tuple[np.ndarray, ...]:
        """Rows of each section, in order of first appearance."""
        return tuple(np.flatnonzero(self.section_of == name) for name in dict.fromkeys(self.section_of))


class Sight:
    """Turns locations into views, always alike: features standardised, then PCA to 256, as for `ridge`.

    Both are fitted on the features of all training spots; features know no expression, so validation spots may take
    part. The width of a network's input is thus the same for every encoder, and what it sees is what ridge sees.

    Parameters
    ----------
    training : TrainingData
    """

    def __init__(self, training: TrainingData) -> None:
        self._reduce = reduction(training.pooled, training.seed)
        locations = [_location_um(section.slide, section.spots) for section in training.cohort]
        self.training = View(self._seen(training.pooled), np.concatenate(locations), training.section_of)

    @property
    def width(self) -> int:
        """Length of a spot's features."""
        return self.training.features.shape[1]

    def of(self, place: Location) -> View:
        """What is seen at a location."""
        section_of = np.full(len(place.spots), place.section)
        return View(self._seen(place.pooled()), _location_um(place.slide, place.spots), section_of)

    def _seen(self, pooled: np.ndarray) -> Tensor:
        return torch.from_numpy(self._reduce.transform(pooled).astype(np.float32))


def _location_um(slide: Slide, spots: Spots) -> np.ndarray:
    return (spots.centre_px - spots.centre_px.mean(axis=0)) * known_scale(slide)
