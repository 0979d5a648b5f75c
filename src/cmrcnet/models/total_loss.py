"""The sum that training makes small."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def total_loss(contrastive: Float[Tensor, ""], reconstruction: Float[Tensor, ""] | None) -> Float[Tensor, ""]:
    """``log(1 + L_contrastive) + log(1 + L_reconstruction)`` (arXiv 2506.08854).

    Without a reconstruction the second term is left out: the total is ``log(1 + L_contrastive)`` alone.
    """
    total = contrastive.log1p()
    return total if reconstruction is None else total + reconstruction.log1p()
