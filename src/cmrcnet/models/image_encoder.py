"""Image encoders: patches in, tokens out, from any block of any timm network; and the symmetries of a patch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.models.encoder_weights import import_timm
from cmrcnet.models.pretrained import PretrainedConfig
from cmrcnet.storage.hashing import fingerprint_stream

_TOKENS_FORMAT = 1  # counts up when the same weights would give other tokens


@dataclass(frozen=True)
class EncoderOrigin:
    """Arguments of `create_image_encoder`, so that a trained model can build its encoder again."""

    name: str
    weights: str
    blocks: tuple[int, ...]
    depth: int | None
    heads: int | None
    seed: int
    patch_px: int | None


class ImageEncoder(nn.Module):
    """A timm network and the blocks whose tokens are used.

    The tokens of a block are its output before the network's final norm: a feature map (batch, dim, height, width) is
    averaged to the config's grid, the patch and class tokens of a transformer are taken as they are, and its register
    tokens are left out. Several blocks are concatenated along the features.

    Parameters
    ----------
    backbone : torch.nn.Module
        A timm network without classifier.
    config : PretrainedConfig
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

    backbone: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        config: PretrainedConfig,
        blocks: tuple[int, ...] = (),
        origin: EncoderOrigin | None = None,
    ) -> None:
        super().__init__()
        blocks = tuple(blocks)
        if any(not 0 <= block < len(config.blocks) for block in blocks):
            known = f"0 to {len(config.blocks) - 1}" if config.blocks else "of which it has none"
            raise BadOption("model.blocks", list(blocks), f"blocks of {config.name}, {known}")
        if len(set(blocks)) != len(blocks):
            raise BadOption("model.blocks", list(blocks), "each block once")
        self.backbone = backbone
        self.config = config
        self.blocks = blocks
        self.origin = origin
        self.n_tokens = config.n_tokens
        self.dim = sum(config.blocks[block] for block in blocks) if blocks else config.dim
        self._maps_are_channels_last = str(getattr(backbone, "output_fmt", "")).endswith("NHWC")
        for name, share in (("mean", config.mean), ("std", config.std)):
            pixels = torch.tensor([255.0 * each for each in share]).view(1, 3, 1, 1)
            self.register_buffer(name, pixels, persistent=False)

    def prepare(
        self, patches: UInt8[Tensor, "batch height width 3"] | UInt8[np.ndarray, "batch height width 3"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Normalise RGB pixels with the config's mean and deviation, on the encoder's device."""
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
        side = self.config.patch_px
        if not self.config.any_size and tuple(patches.shape[-2:]) != (side, side):
            raise ShapeMismatch(
                f"a batch of patches for {self.config.name}", want=("batch", 3, side, side), got=tuple(patches.shape)
            )
        outputs = output_maps(self.backbone, self.blocks, patches)
        tokens = torch.cat([self._tokens(output) for output in outputs], dim=2)
        if tuple(tokens.shape[1:]) != (self.n_tokens, self.dim):
            raise ShapeMismatch(
                f"tokens of {self.config.name}", want=("batch", self.n_tokens, self.dim), got=tuple(tokens.shape)
            )
        return tokens

    def below(self, trained_blocks: int, patch_px: int) -> ImageEncoder:
        """The part below the last blocks, sharing all weights: its tokens are what `finish` takes.

        Parameters
        ----------
        trained_blocks : int
            Blocks that are left to `finish`.
        patch_px : int
            Side of the patches, on which the size of feature maps depends; they are not averaged.

        Raises
        ------
        BadOption
            There are no so many blocks with one below them, tokens of a block below are wanted, or the network is
            neither a vision transformer nor an EfficientNet.
        """
        config, option = self.config, "model.trained_blocks"
        models = import_timm().models
        if not isinstance(self.backbone, models.VisionTransformer | models.EfficientNet):
            raise BadOption(option, trained_blocks, f"nothing: {config.name} is no vision transformer or EfficientNet")
        first = len(config.blocks) - trained_blocks
        if not 0 < first < len(config.blocks):
            raise BadOption(
                option, trained_blocks, f"1 to {len(config.blocks) - 1} of {config.name}'s {len(config.blocks)}"
            )
        if any(block < first for block in self.blocks):
            raise BadOption("model.blocks", list(self.blocks), f"blocks that are trained, {first} or more, or none")
        if config.grid is None:
            prefix = config.class_tokens + config.register_tokens
            tokens = config.n_tokens + config.register_tokens
            whole = replace(config, class_tokens=prefix, register_tokens=0, n_tokens=tokens)
        else:
            blank = torch.zeros(1, 3, patch_px, patch_px, device=self.mean.device)
            training = self.backbone.training
            with torch.no_grad():
                (output,) = block_outputs(self.backbone.eval(), (first - 1,), blank)
            self.backbone.train(training)
            rows, columns = output.shape[-2:]
            whole = replace(config, grid=(rows, columns), n_tokens=rows * columns)
        return ImageEncoder(self.backbone, whole, (first - 1,)).to(self.mean.device)

    def finish(
        self, tokens: Float[Tensor, "batch tokens_below dim_below"], trained_blocks: int
    ) -> Float[Tensor, "batch tokens dim"]:
        """Run the last blocks on tokens of `below`: what `forward` gives of the same patches."""
        modules, seen = blocks_of(self.backbone), {}
        if self.config.grid is not None:
            side = math.isqrt(tokens.shape[1])
            tokens = tokens.transpose(1, 2).unflatten(2, (side, side)).contiguous(memory_format=torch.channels_last)
        for block in range(len(modules) - trained_blocks, max(self.blocks, default=len(modules) - 1) + 1):
            seen[block] = tokens = modules[block](tokens)
        if self.blocks:
            return torch.cat([self._tokens(seen[block]) for block in self.blocks], dim=2)
        if self.config.grid is None:
            return self._tokens(self.backbone.norm(tokens))
        return self._tokens(self.backbone.bn2(self.backbone.conv_head(tokens)))

    @property
    def licence(self) -> str:
        """Name and licence of the weights; of the user's own file nothing is known, random ones have none."""
        weights = "pretrained" if self.origin is None else self.origin.weights
        if weights.startswith("random"):
            return f"{self.config.name}: random weights"
        return f"{self.config.name}: {self.config.licence if weights == 'pretrained' else 'not stated'}"

    def fingerprint(self) -> str:
        """Name of everything that its tokens depend on: architecture, blocks, pixel scaling and all weights."""
        config, modules = self.config, blocks_of(self.backbone)
        facts = {
            "tokens": _TOKENS_FORMAT,
            "architecture": [config.architecture, [list(pair) for pair in config.settings]],
            "depth": len(config.blocks),
            "heads": getattr(getattr(modules[0], "attn", None), "num_heads", None) if modules else None,
            "blocks": list(self.blocks),
            "grid": list(config.grid or ()),
            "prefix": [config.class_tokens, config.register_tokens],
            "pixels": [list(config.mean), list(config.std)],
        }

        def parts() -> Iterator[object]:
            yield facts
            for name, value in sorted(self.backbone.state_dict().items()):
                yield name
                value = value.detach().cpu()
                yield (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()

        return fingerprint_stream(parts())

    def _tokens(self, output: Tensor) -> Tensor:
        if self.config.grid is not None:
            if output.ndim == 3:  # a square feature map, unrolled by the block
                side = math.isqrt(output.shape[1])
                grid = output.transpose(1, 2).unflatten(2, (side, -1))
            else:
                grid = output.permute(0, 3, 1, 2) if self._maps_are_channels_last else output
            if tuple(grid.shape[-2:]) != self.config.grid:
                grid = adaptive_avg_pool2d(grid, self.config.grid)
            return grid.flatten(2).transpose(1, 2)
        if self.config.register_tokens:
            kept, locations = self.config.class_tokens, self.config.class_tokens + self.config.register_tokens
            return torch.cat([output[:, :kept], output[:, locations:]], dim=1)
        return output


ROTATIONS_FIRST = (0, 5, 3, 6, 1, 7, 2, 4)
"""The eight ways of `d4`: the four rotations, then their mirror images."""


def d4(patches: Tensor, way: int, rows: int = 2, columns: int = 3) -> Tensor:
    """Turn or mirror square patches by one of the eight symmetries of a square (the dihedral group D4).

    In `way`, 0 to 7, bit 0 mirrors left and right, bit 1 top and bottom, and bit 2 then swaps rows and columns, which
    are dimensions of `patches`. A view or a new tensor is returned.
    """
    if way & 1:
        patches = patches.flip(columns)
    if way & 2:
        patches = patches.flip(rows)
    return patches.transpose(rows, columns) if way & 4 else patches


def mean_token(encoder: Callable[[Tensor], Tensor], patches: Tensor, augmentations: int) -> Tensor:
    """Features (batch, dim) of prepared patches: the mean over their tokens and over symmetries, the rotations first.

    `encoder` gives tokens (batch, tokens, dim) of patches (batch, 3, height, width), as `ImageEncoder` does.
    """
    total = torch.zeros((), device=patches.device)
    for way in ROTATIONS_FIRST[:augmentations]:
        total = total + encoder(d4(patches, way).contiguous()).float().mean(dim=1)
    return total / augmentations


class _LastWanted(Exception):
    """Raised by the hook of the last wanted block, to skip the rest of the network."""


def block_outputs(backbone: Any, blocks: Sequence[int], patches: Tensor) -> list[Tensor]:
    """Outputs of the given blocks, in the order given; later blocks are not computed.

    Vision transformers give them through timm's `forward_intermediates`; other networks, whose intermediates are
    stages and not blocks, through hooks that live for this one call. Blocks are numbered as by `blocks_of`.
    """
    if isinstance(backbone, import_timm().models.VisionTransformer):
        how = {"norm": False, "stop_early": True, "output_fmt": "NLC", "return_prefix_tokens": True}
        found = backbone.forward_intermediates(patches, sorted(blocks), **how, intermediates_only=True)
        joined = [each if isinstance(each, Tensor) else torch.cat([each[1], each[0]], dim=1) for each in found]
        return [joined[sorted(blocks).index(block)] for block in blocks]
    modules = blocks_of(backbone)
    seen: dict[int, Tensor] = {}

    def keep(block: int, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen[block] = output
        if len(seen) == len(blocks):
            raise _LastWanted

    handles = [modules[block].register_forward_hook(partial(keep, block)) for block in blocks]
    try:
        backbone.forward_features(patches)
    except _LastWanted:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [seen[block] for block in blocks]


def output_maps(backbone: Any, blocks: tuple[int, ...], patches: Tensor) -> list[Tensor]:
    """Outputs of the wanted blocks; of none: the last output, with its final norm or convolution.

    Those of a convolutional network are maps (batch, channels, height / stride, width / stride).
    """
    return block_outputs(backbone, blocks, patches) if blocks else [backbone.forward_features(patches)]


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """A network's blocks in the order in which they run, stages flattened; empty when it names none."""
    for name in ("blocks", "stages", "layers"):
        found = getattr(backbone, name, None)
        if isinstance(found, nn.Sequential | nn.ModuleList):
            flat: list[nn.Module] = []
            for part in found:
                inner = getattr(part, "blocks", part)
                flat += inner if isinstance(inner, nn.Sequential | nn.ModuleList) and len(inner) else [part]
            return flat
    stages = [getattr(backbone, f"layer{number}", None) for number in (1, 2, 3, 4)]
    return [block for stage in stages if isinstance(stage, nn.Sequential) for block in stage]
