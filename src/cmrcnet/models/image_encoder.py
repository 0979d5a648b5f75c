"""An image encoder: patches in, tokens out, from any block of any timm network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.models.pretrained_config import PretrainedConfig
from cmrcnet.storage.hashing import fingerprint_stream

_TOKENS_FORMAT = 1  # counts up when the same weights would give other tokens


@dataclass(frozen=True)
class EncoderOrigin:
    """What `create_image_encoder` was asked for, so that a trained model can ask for it again."""

    name: str
    weights: str
    blocks: tuple[int, ...]
    depth: int | None
    heads: int | None
    seed: int


class ImageEncoder(nn.Module):
    """A timm network and the blocks whose tokens are used.

    The tokens of a block are its output as it leaves the block, before the network's final norm: a feature map
    (batch, dim, height, width) is averaged to the card's grid, the patch and class tokens of a transformer are
    taken as they are, and its register tokens are left out. Several blocks are joined along the features.

    Parameters
    ----------
    backbone : torch.nn.Module
        A timm network without classifier.
    card : PretrainedConfig
        Of the backbone's last output.
    blocks : tuple of int
        Blocks whose tokens are used, counted from 0; empty: the last output, with its final norm or convolution.
    origin : EncoderOrigin or None
        How to build it again.

    Raises
    ------
    BadOption
        If the network has no such block.
    """

    def __init__(
        self,
        backbone: nn.Module,
        card: PretrainedConfig,
        blocks: tuple[int, ...] = (),
        origin: EncoderOrigin | None = None,
    ) -> None:
        super().__init__()
        blocks = tuple(blocks)
        if any(not 0 <= block < len(card.blocks) for block in blocks):
            known = f"0 to {len(card.blocks) - 1}" if card.blocks else "of which it names none"
            raise BadOption("model.blocks", list(blocks), f"blocks of {card.name}, {known}")
        if len(set(blocks)) != len(blocks):
            raise BadOption("model.blocks", list(blocks), "each block once")
        self.backbone = backbone
        self.card = card
        self.blocks = blocks
        self.origin = origin
        self.n_tokens = card.n_tokens
        self.dim = sum(card.blocks[block] for block in blocks) if blocks else card.dim
        self._maps_are_channels_last = str(getattr(backbone, "output_fmt", "")).endswith("NHWC")
        for name, share in (("mean", card.mean), ("std", card.std)):
            pixels = torch.tensor([255.0 * each for each in share]).view(1, 3, 1, 1)
            self.register_buffer(name, pixels, persistent=False)

    def prepare(
        self, patches: UInt8[Tensor, "batch height width 3"] | UInt8[np.ndarray, "batch height width 3"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Normalise RGB pixels with the card's mean and deviation, on the encoder's device."""
        if isinstance(patches, np.ndarray):
            patches = torch.from_numpy(patches if patches.flags.writeable else patches.copy())
        pixels = patches.to(self.mean.device).permute(0, 3, 1, 2)  # channels-last in memory, as the pixels lie
        return pixels.to(self.mean.dtype).sub_(self.mean).div_(self.std)

    def forward(self, patches: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Encode prepared patches.

        Raises
        ------
        ShapeMismatch
            If the patches are of another size than the network takes.
        """
        side = self.card.patch_px
        if not self.card.any_size and tuple(patches.shape[-2:]) != (side, side):
            raise ShapeMismatch(
                f"a batch of patches for {self.card.name}", want=("batch", 3, side, side), got=tuple(patches.shape)
            )
        outputs = self._outputs(patches)
        tokens = torch.cat([self._tokens(output) for output in outputs], dim=2)
        if tuple(tokens.shape[1:]) != (self.n_tokens, self.dim):
            raise ShapeMismatch(
                f"tokens of {self.card.name}", want=("batch", self.n_tokens, self.dim), got=tuple(tokens.shape)
            )
        return tokens

    def fingerprint(self) -> str:
        """Name of everything that its tokens depend on: architecture, blocks, pixel scaling and all weights."""
        card = self.card
        facts = {
            "tokens": _TOKENS_FORMAT,
            "architecture": [card.architecture, [list(pair) for pair in card.settings]],
            "depth": len(card.blocks),
            "heads": _heads(self.backbone),
            "blocks": list(self.blocks),
            "grid": list(card.grid or ()),
            "prefix": [card.class_tokens, card.register_tokens],
            "pixels": [list(card.mean), list(card.std)],
        }
        return fingerprint_stream(_facts_and_weights(facts, self.backbone))

    def _outputs(self, patches: Tensor) -> list[Tensor]:
        """The wanted outputs in order; what comes after the last wanted block is not computed."""
        if not self.blocks:
            return [self.backbone.forward_features(patches)]
        return block_outputs(self.backbone, self.blocks, patches)

    def _tokens(self, output: Tensor) -> Tensor:
        if self.card.grid is not None:
            if output.ndim == 3:  # a square feature map that the block has unrolled
                side = math.isqrt(output.shape[1])
                grid = output.transpose(1, 2).unflatten(2, (side, -1))
            else:
                grid = output.permute(0, 3, 1, 2) if self._maps_are_channels_last else output
            if tuple(grid.shape[-2:]) != self.card.grid:
                grid = adaptive_avg_pool2d(grid, self.card.grid)
            return grid.flatten(2).transpose(1, 2)
        if self.card.register_tokens:
            kept, locations = self.card.class_tokens, self.card.class_tokens + self.card.register_tokens
            return torch.cat([output[:, :kept], output[:, locations:]], dim=1)
        return output


ROTATIONS_FIRST = (0, 5, 3, 6, 1, 7, 2, 4)
"""The eight ways of `d4`: the four rotations, then their mirror images."""


def d4(patches: Tensor, way: int, rows: int = 2, columns: int = 3) -> Tensor:
    """Turn or mirror square patches by one of the eight symmetries of a square (the dihedral group D4).

    Parameters
    ----------
    patches : torch.Tensor
        Any shape; a view of it or a new tensor is returned.
    way : int
        0 to 7: bit 0 mirrors left and right, bit 1 top and bottom, and bit 2 then swaps rows and columns.
    rows, columns : int
        Dimensions of the picture.
    """
    if way & 1:
        patches = patches.flip(columns)
    if way & 2:
        patches = patches.flip(rows)
    return patches.transpose(rows, columns) if way & 4 else patches


class _LastWanted(Exception):
    """Raised by the hook of the last wanted block, to skip the rest of the network."""


def block_outputs(backbone: nn.Module, blocks: Iterable[int], patches: Tensor) -> list[Tensor]:
    """Outputs of the given blocks, in the order given. Hooks live for this one call, so copies stay clean."""
    wanted = tuple(blocks)
    modules = blocks_of(backbone)
    seen: dict[int, Tensor] = {}

    def keep(block: int):
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            seen[block] = output
            if len(seen) == len(set(wanted)):
                raise _LastWanted

        return hook

    handles = [modules[block].register_forward_hook(keep(block)) for block in set(wanted)]
    try:
        backbone.forward_features(patches)
    except _LastWanted:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [seen[block] for block in wanted]


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """A network's blocks in the order in which they run, stages flattened; empty when it names none."""
    for name in ("blocks", "stages", "layers"):
        found = getattr(backbone, name, None)
        if isinstance(found, nn.Sequential | nn.ModuleList):
            return [block for part in found for block in _flat(part)]
    stages = [getattr(backbone, f"layer{number}", None) for number in (1, 2, 3, 4)]
    return [block for stage in stages if isinstance(stage, nn.Sequential) for block in stage]


def _flat(part: nn.Module) -> list[nn.Module]:
    inner = getattr(part, "blocks", part)
    return list(inner) if isinstance(inner, nn.Sequential | nn.ModuleList) and len(inner) else [part]


def _heads(backbone: nn.Module) -> int | None:
    blocks = blocks_of(backbone)
    return getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None


def _facts_and_weights(facts: dict, module: nn.Module) -> Iterable[object]:
    yield facts
    for name, value in sorted(module.state_dict().items()):
        yield name
        value = value.detach().cpu()
        yield (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()
