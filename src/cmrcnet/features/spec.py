"""What is extracted at each location, and the pieces in which it comes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from cmrcnet.config import Config
from cmrcnet.features.map_strides import choose_method
from cmrcnet.slides.slide import PatchScale

if TYPE_CHECKING:
    from cmrcnet.models.image_encoder import ImageEncoder

STATISTICS, PERTURBED = -1, -2
"""Layer numbers, beside those of the scales: the image statistics of each location, and those of a few locations under
each perturbation (`uncertainty.ood`)."""


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
    augmentations: int = 1
    """Test-time augmentation: of the eight symmetries of a square (D4), how many are encoded and averaged, the four
    rotations first. Scales only."""
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
        )

    @property
    def scales(self) -> list[PatchScale]:
        """What is cut around a location: a patch a scale, or the one plain patch."""
        return [self.patch.showing(side) for side in self.scales_um] or [self.patch]

    @property
    def made_by(self) -> str:
        """Engine, precision and kind of device in words, as models and predictions store them."""
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
