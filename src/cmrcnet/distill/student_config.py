"""How a student looks: as its teacher, or with less, so that a location costs fewer forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cmrcnet.config import Config
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.models.trained_model import TrainedModel


@dataclass(frozen=True, kw_only=True)
class StudentLook:
    """What a student is to look with; whatever is left out is its teacher's."""

    encoder: str | None = None
    """Image encoder, frozen: a name from `cmrcnet encoders`, or timm:NAME, or hf-hub:ORG/NAME."""
    weights: str = "pretrained"
    """Of `encoder`: pretrained; random; or the path of a local safetensors file."""
    orientations: int | None = None
    """Ways to turn a patch that are encoded and averaged, 1 to 8."""
    views_um: Sequence[float] | None = None
    """Sides of the views in micrometres."""
    patch_px: int | None = None
    """Pixels that a patch is resized to; it shows the same tissue."""


def look_of(model: TrainedModel, look: StudentLook) -> tuple[ImageEncoder, Config]:
    """The encoder and the config that a student looks with.

    Parameters
    ----------
    model : TrainedModel
        The teacher.
    look : StudentLook

    Returns
    -------
    encoder : ImageEncoder
    config : Config
        The teacher's, but for what `look` says.

    Raises
    ------
    BadOption
        What no config can say, as orientations without views.
    UnknownName, WeightsError
    """
    encoder, settings = model.encoder, {}
    if look.encoder is not None:
        encoder = create_image_encoder(look.encoder, weights=look.weights)
        settings |= {"model.encoder": look.encoder, "model.weights": look.weights, "model.blocks": []}
        settings |= {"model.encoder_depth": None, "model.encoder_heads": None, "model.train_encoder": False}
    if look.orientations is not None:
        settings["features.augmentations"] = look.orientations
    if look.views_um is not None:
        settings["features.scales_um"] = list(look.views_um)
    pixels = look.patch_px
    if pixels is None and not encoder.config.any_size:
        pixels = encoder.config.patch_px
    if pixels is not None:
        scale = model.config.patch
        settings |= {"patch.size_px": pixels, "patch.mpp": scale.side_um / max(pixels, 1)}
    return encoder, model.config.override(settings)


def passes_per_location(config: Config) -> int:
    """Forward passes of the encoder that a location costs."""
    return max(len(config.features.scales_um), 1) * config.features.augmentations
