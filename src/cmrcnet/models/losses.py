"""The losses of arXiv 2506.08854: contrastive, reconstruction, and their total."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, log_softmax, mse_loss, normalize


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses of a batch; `total` is minimised."""

    contrastive: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""] | None
    total: Float[Tensor, ""]


def contrastive_loss(
    image: Float[Tensor, "batch dim"],
    gene: Float[Tensor, "batch dim"],
    *,
    temperature: float,
    similarity: Literal["cosine", "dot"] = "cosine",
    targets: Literal["soft", "identity"] = "soft",
    second_targets: Literal["softmax", "transpose"] = "softmax",
) -> Float[Tensor, " batch"]:
    """Symmetric cross-entropy between image-gene similarities and soft targets, after BLEEP (Xie et al., 2023).

    With I and G the embeddings (at unit length when `similarity` is "cosine") and tau the temperature::

        logits  = G I^T / tau
        targets = softmax((I I^T + G G^T) / 2 * tau)      over each row
        l_i     = (CE(logits, targets)_i + CE(logits^T, second targets)_i) / 2      for pair i, and L_con = mean l_i

    tau divides the logits and multiplies the targets, and gradients flow through the targets too, as in BLEEP.
    Pairs that cannot be told apart cost ``ln(batch)``, the loss at chance. Cosines lie within 1, so soft targets at a
    temperature of 1 or less are almost uniform and training on them stays at chance: with "cosine" and a low
    temperature use "identity" targets.

    Parameters
    ----------
    image, gene : tensor, shape (batch, dim)
        Row i of both belongs to pair i.
    temperature : float
        tau, above 0.
    similarity : {"cosine", "dot"}
        "dot" takes the embeddings as they are, as the released code does in training.
    targets : {"soft", "identity"}
        "soft": pairs with similar images or similar expression share the probability. "identity": the pair itself.
    second_targets : {"softmax", "transpose"}
        Targets of the direction from image to gene. The similarities are symmetric, so a softmax of their own equals
        the first targets; "transpose" is the first targets' transpose, whose rows do not sum to one (released code).

    Returns
    -------
    torch.Tensor, shape (batch,)
        Loss of each pair.
    """
    if similarity == "cosine":
        image, gene = normalize(image, dim=1), normalize(gene, dim=1)
    logits = gene @ image.T / temperature
    if targets == "identity":
        first = torch.eye(len(image), dtype=image.dtype, device=image.device)
        second = first
    else:
        first = ((image @ image.T + gene @ gene.T) / 2 * temperature).softmax(dim=1)
        second = first.T if second_targets == "transpose" else first
    gene_to_image = -(first * log_softmax(logits, dim=1)).sum(dim=1)
    image_to_gene = -(second * log_softmax(logits.T, dim=1)).sum(dim=1)
    return (gene_to_image + image_to_gene) / 2


def reconstruction_loss(
    reconstruction: Float[Tensor, "batch dim"],
    target: Float[Tensor, "batch dim"],
    *,
    kind: Literal["mse", "cosine"] = "mse",
) -> Float[Tensor, ""]:
    """Distance of reconstructed embeddings r from their targets t: ``L_rec = mean((r - t)^2)``.

    Parameters
    ----------
    reconstruction, target : tensor, shape (batch, dim)
    kind : {"mse", "cosine"}
        "cosine": ``mean(1 - cos(r, t))`` in place of the mean squared error.
    """
    if kind == "cosine":
        return (1 - cosine_similarity(reconstruction, target, dim=1)).mean()
    return mse_loss(reconstruction, target)


def total_loss(
    contrastive: Float[Tensor, " batch"],
    reconstruction: Float[Tensor, ""] | None,
    *,
    logarithm_of: Literal["batch", "sample"] = "batch",
) -> Float[Tensor, ""]:
    """The loss that is minimised: ``L = log(1 + L_con) + log(1 + L_rec)``, without the second term if there is none.

    Parameters
    ----------
    contrastive : tensor, shape (batch,)
        Loss of each pair.
    reconstruction : tensor, shape (), or None
    logarithm_of : {"batch", "sample"}
        "sample": ``mean log(1 + l_i)`` in place of ``log(1 + mean l_i)``, as in the released code.
    """
    total = contrastive.mean().log1p() if logarithm_of == "batch" else contrastive.log1p().mean()
    return total if reconstruction is None else total + reconstruction.log1p()
