"""Which image tokens the reconstruction may see."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor


def keep_mask(
    batch: int,
    tokens: int,
    dim: int,
    *,
    rate: float,
    rate_is: Literal["hidden", "kept"] = "hidden",
    unit: Literal["token", "scalar"] = "token",
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "batch tokens dim"]:
    """Draw what stays visible. What does not is set to zero: ``tokens * keep``, without rescaling.

    Parameters
    ----------
    batch, tokens, dim : int
        Size of the tokens.
    rate : float
        A share in [0, 1].
    rate_is : {"hidden", "kept"}
        What the rate counts. The released code takes it as the share kept.
    unit : {"token", "scalar"}
        "token": whole tokens, the same number in every row (the rate times the tokens, halves rounded up), each
        choice equally likely. "scalar": every feature by its own coin, as the released code does.
    generator : torch.Generator or None
        Where chance comes from; None: torch's own. It is drawn on the generator's device, so that one seed gives
        one mask on every machine.
    device : torch.device or None
        Where the mask is wanted.

    Returns
    -------
    bool tensor, shape (batch, tokens, dim)
        True where a feature is visible.
    """
    at = generator.device if generator is not None else device
    if unit == "scalar":
        visible = rate if rate_is == "kept" else 1.0 - rate
        return (torch.rand(batch, tokens, dim, generator=generator, device=at) < visible).to(device)
    counted = math.floor(rate * tokens + 0.5)
    hidden = tokens - counted if rate_is == "kept" else counted
    order = torch.rand(batch, tokens, generator=generator, device=at).argsort(dim=1)
    keep = torch.ones(batch, tokens, dtype=torch.bool, device=at)
    keep.scatter_(1, order[:, :hidden], False)
    return keep.to(device)[:, :, None].expand(batch, tokens, dim)
