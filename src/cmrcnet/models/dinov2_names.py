"""Rename a vision transformer's weights from the library transformers (Dinov2Model) to timm's names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
}
_INSIDE = {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "attention.output.dense.": "attn.proj.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}
_QUERY, _KEY, _VALUE = (f"attention.attention.{part}." for part in ("query", "key", "value"))
_UNUSED = ("embeddings.mask_token",)  # only pretraining fills it in


def to_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename for timm; query, key and value become one matrix. Weights already in timm's names are left alone.

    A key that has no location is kept under its own name, so that the check of the loaded keys shows it.
    """
    if not any(key.startswith("encoder.layer.") for key in weights):
        return dict(weights)
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key in _UNUSED:
            continue
        if not key.startswith("encoder.layer."):
            renamed[_swap(key, _OUTSIDE)] = value
            continue
        layer, _, rest = key.removeprefix("encoder.layer.").partition(".")
        if rest.startswith(_QUERY):
            kind = rest.removeprefix(_QUERY)
            parts = [weights.get(f"encoder.layer.{layer}.{part}{kind}") for part in (_QUERY, _KEY, _VALUE)]
            if all(part is not None for part in parts):
                renamed[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
        elif not rest.startswith((_KEY, _VALUE)):
            renamed[f"blocks.{layer}.{_swap(rest, _INSIDE)}"] = value
    return renamed


def _swap(key: str, names: dict[str, str]) -> str:
    for theirs, ours in names.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key
