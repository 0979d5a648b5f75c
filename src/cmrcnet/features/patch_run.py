"""How the features of some locations are made: by an encoder that sees patches, or read, where they were made before.

The dense counterpart is `dense.DenseRun`; `extract` chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from cmrcnet.errors import Incompatible, MissingInput
from cmrcnet.features import resumable
from cmrcnet.features.device import choose_batch, choose_device
from cmrcnet.features.engine import LARGEST, Engine, open_engine
from cmrcnet.features.spec import PERTURBED, STATISTICS, FeatureSpec
from cmrcnet.models.image_encoder import ROTATIONS_FIRST, d4
from cmrcnet.progress import Meter
from cmrcnet.readers.patch_files import FeatureSlide
from cmrcnet.slides.patches import crop_patches, crop_scales, share_regions
from cmrcnet.slides.slide import Slide, known_scale, scales_differ
from cmrcnet.uncertainty.ood import PERTURBED_SCALES, STATISTICS_SCALE, patch_statistics, perturbed_statistics

if TYPE_CHECKING:
    from cmrcnet.models.image_encoder import ImageEncoder


class PatchRun:
    """An encoder on its device, for one slide and one spec, that sees patches."""

    def __init__(self, encoder: ImageEncoder, slide: Slide, spec: FeatureSpec, batch: int | Literal["auto"]) -> None:
        self.encoder, self.slide, self.spec, self.scales = encoder, slide, spec, spec.scales
        self.device = choose_device(spec.device)
        self.batch = choose_batch(batch, self.device)

    @cached_property
    def engine(self) -> Engine:
        """Opened when the first patches are encoded."""
        return open_engine(self.encoder, self.spec)

    def chunks(self, centre_px: np.ndarray, layers: tuple[int, ...]) -> Iterator[tuple[slice, tuple[int, ...]]]:
        """Locations that are taken together, and their layers."""
        yield from ((rows, layers) for rows in resumable.chunk_slices(len(centre_px)))

    def grouped(self, missing: list[tuple[int, str]]) -> list[list[tuple[int, str]]]:
        """Each scale by itself, and image statistics with a scale that is cut from the same regions."""
        groups = [[each] for each in missing if each[0] >= 0]
        statistics = [each for each in missing if each[0] < 0]
        sharing = [g for g in groups if share_regions(self.slide, self.scales[g[0][0]], STATISTICS_SCALE)]
        if statistics and sharing:
            max(sharing, key=lambda g: self.scales[g[0][0]].side_um).extend(statistics)
        elif statistics:
            groups.append(statistics)
        return groups

    def cut(
        self, centres: np.ndarray, picked: np.ndarray, layers: list[int], counts: np.ndarray | None = None
    ) -> list[list[np.ndarray]]:
        """The patches of some layers, a list of scales each; those that are perturbed at the picked locations only."""
        scales = [
            (STATISTICS_SCALE if layer == STATISTICS else self.scales[layer]) for layer in layers if layer != PERTURBED
        ]
        if len(layers) == 1 and scales:
            return [[next(crop_patches(self.slide, centres, scales[0], batch=len(centres)))]]
        if PERTURBED not in layers:
            return [[patches] for patches in crop_scales(self.slide, centres, scales)]
        more = [*scales, *PERTURBED_SCALES]
        here = crop_scales(self.slide, centres[picked], more)
        rest = np.setdiff1d(np.arange(len(centres)), picked)
        found = []
        for plain, there in zip(here, crop_scales(self.slide, centres[rest], scales) if scales else [], strict=False):
            patches = np.empty((len(centres), *plain.shape[1:]), np.uint8)
            patches[picked], patches[rest] = plain, there
            found.append([patches])
        return [*found, here[len(scales) :]]

    def values(self, scales: list[np.ndarray], layer: int, meter: Meter) -> np.ndarray:
        """Features or image statistics of patches (patches, px, px, 3) uint8 of one scale, or of several."""
        patches = scales[0]
        if layer == PERTURBED:
            meter.advance(len(patches))
            return perturbed_statistics(scales)
        if layer == STATISTICS:
            meter.advance(len(patches))
            return patch_statistics(patches)
        found = []
        for start in range(0, len(patches), self.batch):
            some = patches[start : start + self.batch]
            if self.spec.scales_um:
                found.append(self.engine.mean_token(some, self.spec.augmentations))
            else:
                found.append(np.concatenate([self.engine.tokens(each) for each in self._turned(some)], axis=1))
            meter.advance(len(some))
        return np.concatenate(found)

    def _turned(self, patches: np.ndarray) -> Iterator[np.ndarray]:
        """The patches as they are, then by each further symmetry."""
        yield patches
        for way in ROTATIONS_FIRST[1 : self.spec.augmentations]:
            yield d4(torch.from_numpy(patches), way, rows=1, columns=2).contiguous().numpy()


class ReadRun(PatchRun):
    """Features that were computed elsewhere and come with the slide; image statistics are still taken of its pixels.

    Raises
    ------
    MissingInput
        The slide comes without features.
    Incompatible
        They are of another encoder, width or patch than the model's.
    """

    def __init__(self, encoder: ImageEncoder, slide: Slide, spec: FeatureSpec, batch: int | Literal["auto"]) -> None:
        super().__init__(encoder, slide, spec, batch)
        wanted, width = encoder.config.external, encoder.dim
        if not isinstance(slide, FeatureSlide):
            raise MissingInput.from_sentence(
                f"{slide.name} comes without features, and this model reads those of {wanted} ({width} numbers a "
                "patch); give their file: --features FILE, or the column features of the cohort file."
            )
        self.patches = patches = slide.patches
        if not patches.width:
            raise Incompatible(patches.path, "it holds coords and no features", f"encode its patches with {wanted}")
        if not patches.encoder:
            hint = f'if it is {wanted}, add: file["{patches.dataset}"].attrs["encoder"] = "{wanted}"'
            raise Incompatible(patches.path, "it does not state the encoder of its features", hint)
        if (patches.encoder, patches.width) != (wanted, width):
            found = f"{patches.width} numbers of {patches.encoder}"
            why = f"its features are {found}, and the model needs {width} of {wanted}"
            raise Incompatible(patches.path, why, f"encode its patches with {wanted}")
        here, side_um = patches.side_px * known_scale(slide), self.scales[0].side_um
        if scales_differ(here, side_um):
            why = f"its patches show {here:.4g} um a side on {slide.name}, and the model needs {side_um:.4g} um"
            raise Incompatible(patches.path, why, "encode patches of that side, or correct the slide's mpp")

    def grouped(self, missing: list[tuple[int, str]]) -> list[list[tuple[int, str]]]:
        """The scale by itself, without pixels; and image statistics."""
        parts = [each for each in missing if each[0] >= 0], [each for each in missing if each[0] < 0]
        return [part for part in parts if part]

    def cut(
        self, centres: np.ndarray, picked: np.ndarray, layers: list[int], counts: np.ndarray | None = None
    ) -> list[list[np.ndarray]]:
        """The features of a scale, in place of its patches; statistics as of patches."""
        if layers != [0]:
            return super().cut(centres, picked, layers, counts)
        return [[self.patches.features(self.patches.rows_at(centres, self.slide.name))]]

    def values(self, scales: list[np.ndarray], layer: int, meter: Meter) -> np.ndarray:
        """Features as they were read: float32, or for a plain patch one token of float16."""
        if layer < 0:
            return super().values(scales, layer, meter)
        meter.advance(len(scales[0]))
        if self.spec.scales_um:
            return scales[0]
        return np.clip(scales[0], -LARGEST, LARGEST).astype(np.float16)[:, None]
