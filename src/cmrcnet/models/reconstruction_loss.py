"""How far a reconstructed embedding lies from its target."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss


def reconstruction_loss(
    reconstruction: Float[Tensor, "batch dim"],
    target: Float[Tensor, "batch dim"],
    *,
    kind: Literal["mse", "cosine"] = "mse",
) -> Float[Tensor, ""]:
    """``mean((r - t)^2)``, or ``mean(1 - cos(r, t))`` (arXiv 2506.08854).

    Parameters
    ----------
    reconstruction, target : tensor, shape (batch, dim)
    kind : {"mse", "cosine"}

    Returns
    -------
    tensor, scalar
    """
    if kind == "cosine":
        return (1 - cosine_similarity(reconstruction, target, dim=1)).mean()
    return mse_loss(reconstruction, target)
