"""Whether dense features can be had of an encoder, and how large the cells of its maps are."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor

from cmrcnet.config import Config
from cmrcnet.errors import BadOption
from cmrcnet.models.image_encoder import ImageEncoder, block_outputs

LARGEST_STRIDE = 128
"""Which the stride of each map must divide."""
_STRIP = (32, 2048)

_known: dict[str, tuple[int, ...] | None] = {}


def choose_method(config: Config, encoder: ImageEncoder) -> Literal["patches", "dense"]:
    """Find the way of a config's `features.method`: auto takes dense where the encoder allows it.

    Raises
    ------
    BadOption
        The config states dense, which this encoder does not allow.
    """
    method = config.features.method
    if method == "patches" or not config.features.scales_um:
        return "patches"
    if map_strides(encoder) is not None:
        return "dense"
    if method == "dense":
        why = f"{config.model.encoder} is no convolutional network, or one that looks at its whole input at once"
        raise BadOption("features.method", method, f"auto or patches, as {why}")
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


def output_maps(backbone: Any, blocks: tuple[int, ...], pixels: Tensor) -> list[Tensor]:
    """Maps (batch, channels, height / stride, width / stride) of the wanted blocks, or the last output."""
    return block_outputs(backbone, blocks, pixels) if blocks else [backbone.forward_features(pixels)]
