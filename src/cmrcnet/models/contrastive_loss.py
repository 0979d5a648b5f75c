"""The contrastive loss between the image and the gene embeddings of a batch of pairs."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import log_softmax, normalize


def contrastive_loss(
    image: Float[Tensor, "batch dim"],
    gene: Float[Tensor, "batch dim"],
    *,
    temperature: float,
    similarity: Literal["cosine", "dot"] = "cosine",
    targets: Literal["soft", "identity"] = "soft",
    second_targets: Literal["softmax", "transpose"] = "softmax",
) -> Float[Tensor, ""]:
    """Cross-entropy between who looks like whose genes and who should.

    With I and G the embeddings (at unit length when `similarity` is "cosine") and tau the temperature::

        logits = G I^T / tau
        targets = softmax((I I^T + G G^T) / 2 * tau)      over each row
        loss = mean of CE(logits, targets) and CE(logits^T, second targets)

    after BLEEP (Xie et al., 2023) and arXiv 2506.08854: tau divides the logits and multiplies the targets.
    Gradients flow through the targets too, as in BLEEP. Indistinguishable pairs cost ``ln(batch)``, the price of
    guessing. Cosines lie within 1, so soft targets at a temperature of 1 or less are almost even, and training on them
    ends in guessing: with "cosine" and a low temperature ask for "identity" targets.

    Parameters
    ----------
    image, gene : tensor, shape (batch, dim)
        Row i of both belongs to pair i.
    temperature : float
    similarity : {"cosine", "dot"}
        "dot" takes the embeddings as they are, as the released code does in training.
    targets : {"soft", "identity"}
        "soft": pairs that look alike or express alike share the probability. "identity": the pair itself.
    second_targets : {"softmax", "transpose"}
        For the direction from image to gene. The similarities are symmetric, so a softmax of its own is the first
        targets again; "transpose" is the first targets' transpose, whose rows do not sum to one (released code).

    Returns
    -------
    tensor, scalar
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
    return (_cross_entropy(logits, first) + _cross_entropy(logits.T, second)) / 2


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * log_softmax(logits, dim=1)).sum(dim=1).mean()
