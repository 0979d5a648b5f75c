"""What is extracted at each location, the pieces in which it comes, and which encoders have dense features."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch

from cmrcnet.config import Config
from cmrcnet.errors import BadOption
from cmrcnet.models.image_encoder import ImageEncoder, output_maps
from cmrcnet.slides.slide import PatchScale

READ = "files"
"""The engine of features that were computed elsewhere."""

STATISTICS, PERTURBED = -1, -2
"""Layer numbers, beside those of the scales: the image statistics of each location, and those of a few locations under
each perturbation (`uncertainty.ood`)."""

LARGEST_STRIDE = 128
"""Which the stride of each map must divide."""
_STRIP = (32, 2048)

_known: dict[str, tuple[int, ...] | None] = {}


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What is extracted at each location.

    Examples
    --------
    >>> from cmrcnet.features.extract import FeatureSpec
    >>> spec = FeatureSpec(scales_um=(112.0, 350.0), neighbourhood_um=150.0)
    >>> [scale.mpp for scale in spec.scales]
    [0.5, 1.5625]
    """

    patch: PatchScale = field(default_factory=PatchScale)
    """Size of a patch; with `scales_um` only its pixel size counts."""
    scales_um: tuple[float, ...] = ()
    """Sides of square patches around a location, each resized to the patch's pixel size; each becomes one token.
    Empty: the encoder's own tokens of one patch."""
    augmentations: int | tuple[int, ...] = 1
    """Of the eight symmetries of a square (D4), how many are encoded, the four rotations first; one number a scale, or
    one for all. Those of a scale are averaged (test-time augmentation); those of a plain patch, to train on, follow
    each other along the tokens."""
    neighbourhood_um: float = 0.0
    """Standard deviation of a Gaussian mean over the section's other locations, one more token a scale; 0: none."""
    standardize: Literal["training", "section"] = "training"
    """section: each feature gets mean 0 and deviation 1 over the locations of its section."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    engine: str = "auto"
    """auto, torch or openvino; see `features.engine.choose_engine`."""
    precision: str = "auto"
    """auto (bf16 or fp16 on a GPU, bf16 by OpenVINO on a CPU that has it, else float32), float32, bf16 or fp16."""
    method: Literal["patches", "dense"] = "patches"
    """patches: the encoder sees a patch a scale and location; dense: it sees the slide once a scale, in large tiles
    (`features.dense`). Scales and convolutional encoders only."""
    window_um: float = 0.0
    """Side of the sub-windows of which a location is the mean (`features.dense`); 0: it is not divided. Dense only."""

    @classmethod
    def of(cls, config: Config, encoder: ImageEncoder) -> FeatureSpec:
        """From a config's `features` and `patch`, device and precision of its `train`, and what its encoder allows.

        Torch computes an encoder that is trained with the rest, unless another engine is asked for.

        Raises
        ------
        BadOption
            The config states dense features, which this encoder does not allow.
        """
        features = config.features
        trained = config.model.train_encoder and features.engine == "auto"
        return cls(
            patch=config.patch,
            scales_um=tuple(features.scales_um),
            augmentations=features.augmentations,
            neighbourhood_um=features.neighbourhood_um,
            standardize=features.standardize,
            device=config.train.device,
            engine="torch" if trained else features.engine,
            precision=config.train.precision,
            method=choose_method(config, encoder),
            window_um=features.window_um,
        )

    @property
    def scales(self) -> list[PatchScale]:
        """What is cut around a location: a patch a scale, or the one plain patch."""
        return [self.patch.showing(side) for side in self.scales_um] or [self.patch]

    def augmentations_of(self, layer: int) -> int:
        """Symmetries that are encoded of a scale, or of the plain patch (0)."""
        return self.augmentations if isinstance(self.augmentations, int) else self.augmentations[layer]

    @property
    def side_um(self) -> float:
        """Side of the smallest square around a location."""
        return min(scale.side_um for scale in self.scales)

    @property
    def sub_windows(self) -> int:
        """Sub-windows along a side of a whole location."""
        return round(self.side_um / self.window_um) if self.window_um else 1

    def sub_windows_in(self, window_um: float) -> int:
        """Sub-windows along a side of a window of this size.

        Raises
        ------
        BadOption
            No whole number of sub-windows fills it, it is larger than a location, or locations have no sub-windows.
        """
        if not self.window_um:
            want = f"nothing: this model was trained for its whole window of {self.side_um:g} um; for smaller ones "
            raise BadOption("window_um", window_um, want + "train with features.window_um")
        count = window_um / self.window_um
        if not (1 <= round(count, 6) <= self.sub_windows and abs(count - round(count)) < 1e-6):
            sizes = [f"{self.window_um * (number + 1):g}" for number in range(self.sub_windows)]
            want = f"one of {', '.join(sizes)} um: the model was trained with sub-windows of {self.window_um:g} um"
            raise BadOption("window_um", window_um, want)
        return round(count)

    @property
    def made_by(self) -> str:
        """Engine, precision and kind of device in words, as models and predictions store them."""
        if self.engine == READ:
            return "another program"
        return f"{self.engine} {self.precision} on {self.device.partition(':')[0]}"

    def token_count(self, encoder: ImageEncoder) -> int:
        """Tokens of a location."""
        if not self.scales_um:
            return encoder.n_tokens
        return len(self.scales_um) * (2 if self.neighbourhood_um > 0 else 1)


class FeatureChunk(NamedTuple):
    """Features of some locations: float16 (locations, tokens, dim), or float32 (locations, dim) of one scale.

    `rows` are the locations: a slice, or with dense features the indices of those of one tile, ascending. `layer` is
    the index of the scale; or `STATISTICS` with image statistics (locations, 9) float32; or `PERTURBED` with statistics
    (picked locations, 1 + perturbations, 9) float32, where `rows` are the picked ones among them.
    """

    rows: slice | np.ndarray
    layer: int
    values: np.ndarray


def choose_method(config: Config, encoder: ImageEncoder) -> Literal["patches", "dense"]:
    """Find the way of a config's `features.method`: auto takes dense where the encoder allows it.

    Raises
    ------
    BadOption
        The config states dense or sub-windows, which this encoder does not allow.
    """
    method = config.features.method
    if method == "patches" or not config.features.scales_um:
        return "patches"
    if map_strides(encoder) is not None:
        return "dense"
    why = f"{config.model.encoder} is no convolutional network, or one that looks at its whole input at once"
    if method == "dense":
        raise BadOption("features.method", method, f"auto or patches, as {why}")
    if config.features.window_um:
        raise BadOption("features.window_um", config.features.window_um, f"0, as {why}, and has no dense features")
    return "patches"


def state_method(config: Config, encoder: ImageEncoder) -> Config:
    """The config with the way that is used in place of auto, as artefacts store it."""
    return config.override({"features.method": choose_method(config, encoder)})


def map_strides(encoder: ImageEncoder) -> tuple[int, ...] | None:
    """Side of a cell of each of the encoder's maps, in pixels; None where it has no maps that move with the pixels.

    That is so for transformers, for networks of one input size, and for convolutional networks that look at their whole
    input at once (squeeze and excitation, attention): their features would depend on the tile. It is tried: the left
    half of a strip is exchanged, and the cell at its right end must stay the same.
    """
    if not isinstance(encoder, ImageEncoder) or encoder.config.grid is None or not encoder.config.any_size:
        return None
    name = encoder.fingerprint()
    if name not in _known:
        backbone = copy.deepcopy(encoder.backbone).cpu().float().eval()
        height, width = _STRIP
        noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        changed = torch.cat([-noise[..., : width // 2], noise[..., width // 2 :]], dim=3)
        with torch.inference_mode():
            one, two = (output_maps(backbone, encoder.blocks, each) for each in (noise, changed))
        widths = [encoder.config.blocks[block] for block in encoder.blocks] or [encoder.config.dim]
        local = all(
            here.ndim == 4
            and here.shape[1] == channels
            and LARGEST_STRIDE * here.shape[3] % width == 0
            and torch.equal(here[..., -1], there[..., -1])
            for here, there, channels in zip(one, two, widths, strict=True)
        )
        _known[name] = tuple(width // each.shape[3] for each in one) if local else None
    return _known[name]
