"""The collapse meter: does the network know which spot belongs to a patch, or does it only guess?

Three readings, because each alone can mislead (docs/concepts/collapse.md):

- the contrastive loss over ln(batch), which is 1 where every candidate is thought alike;
- recall@k: how often the true partner is among the k nearest of the batch, against chance k / batch;
- the effective rank of the image embeddings, in how many directions they spread: the exponential of the entropy of
  the normalised singular values (Roy and Vetterli, "The effective rank: a measure of effective dimensionality",
  EUSIPCO 2007).

The verdict "guessing" comes from the partners' ranks, which need no scale and no temperature and use every candidate
(recall@k only those near k, so that on a hundred spots it misses what is there): it is given when true partners do
not stand nearer than strangers by more than chance would bring about in 1 of 100 runs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

RECALL_AT = 5
FAR_BEYOND_CHANCE = 2.326
"""Standard deviations that a guesser's mean rank exceeds in 1 of 100 samples (normal approximation, one-sided)."""


@dataclass(frozen=True)
class CollapseReading:
    """What the meter says of one sample of pairs.

    Parameters
    ----------
    loss_over_ln_batch : float
        Mean contrastive loss over ln(batch); about 1 or more: no better than "each alike".
    recall_at_k : float
        Share of patches whose own spot is among their `k` nearest candidates.
    chance : float
        Recall of a network that guesses.
    ahead : float
        Share of strangers that stand farther than the true partner; 0.5: a guesser.
    k, pairs : int
    effective_rank : float
        1: all patches have become one vector.
    guessing : bool
    where : str
        The sample: "validation P2", "training spots".
    """

    loss_over_ln_batch: float
    recall_at_k: float
    chance: float
    ahead: float
    k: int
    pairs: int
    effective_rank: float
    guessing: bool
    where: str

    @property
    def sentence(self) -> str:
        """The reading in one sentence."""
        verdict = "the network only guesses" if self.guessing else "the network knows more than chance"
        return (
            f"On {self.pairs} pairs ({self.where}) the true spot is among the {self.k} nearest for "
            f"{self.recall_at_k:.1%} of patches (chance {self.chance:.1%}) and nearer than {self.ahead:.0%} of the "
            f"strangers (chance 50%), the contrastive loss is "
            f"{self.loss_over_ln_batch:.2f} x ln(batch), and embeddings spread in {self.effective_rank:.1f} "
            f"directions: {verdict}."
        )

    def to_dict(self) -> dict[str, float | int | bool | str]:
        """Plain values for the history."""
        return asdict(self)


class CollapseMeter:
    """Reads embeddings of true pairs.

    Parameters
    ----------
    candidates : int
        Spots that each patch chooses from, at most.
    k : int
        Nearest candidates among which the true one counts as found.
    """

    def __init__(self, candidates: int = 64, k: int = RECALL_AT) -> None:
        self.candidates, self.k = max(2, candidates), k

    def read(self, image: Tensor, gene: Tensor, loss_over_ln_batch: float, where: str = "a sample") -> CollapseReading:
        """Read one sample.

        Parameters
        ----------
        image, gene : torch.Tensor, shape (pairs, dim)
            Row i of both is one pair. Cosine is compared, whatever their length.
        loss_over_ln_batch : float
            The loss's own value, measured on the same sample (it depends on temperature and targets).
        where : str
            What the sample is.
        """
        image, gene = image.detach().float().cpu(), gene.detach().float().cpu()
        pairs = len(image)
        hits, expected, farther, strangers = 0, 0, 0, 0
        surplus, variance = 0.0, 0.0
        for part in np.array_split(np.arange(pairs), max(1, math.ceil(pairs / self.candidates))):
            k = min(self.k, max(1, len(part) // 2))
            ranks = partner_ranks(image[part], gene[part])
            hits += int((ranks < k).sum())
            expected += k
            farther += int((len(part) - 1 - ranks).sum())
            strangers += len(part) * (len(part) - 1)
            # A guesser's rank is uniform on 0 .. n - 1: mean (n - 1) / 2, variance (n^2 - 1) / 12.
            surplus += float(((len(part) - 1) / 2 - ranks).sum())
            variance += len(part) * (len(part) ** 2 - 1) / 12
        chance = expected / pairs
        return CollapseReading(
            loss_over_ln_batch=float(loss_over_ln_batch),
            recall_at_k=hits / pairs,
            chance=chance,
            ahead=farther / max(strangers, 1),
            k=self.k,
            pairs=pairs,
            effective_rank=effective_rank(image),
            guessing=surplus <= FAR_BEYOND_CHANCE * math.sqrt(variance),
            where=where,
        )


def partner_ranks(image: Tensor, gene: Tensor) -> Tensor:
    """How many strangers are at least as near to each patch as its own spot: (pairs,) int64; 0 is a hit at k = 1.

    A tie counts against the network: embeddings that are all one vector find nobody.
    """
    similarity = torch.nn.functional.normalize(image, dim=1) @ torch.nn.functional.normalize(gene, dim=1).T
    own = similarity.diagonal()[:, None]
    return (similarity >= own - 1e-6).sum(dim=1) - 1


def effective_rank(vectors: Tensor) -> float:
    """exp(-sum p ln p) of the singular values p, scaled to sum 1 (Roy and Vetterli 2007); 1 to min(pairs, dim)."""
    values = torch.linalg.svdvals(vectors.double())
    share = values / values.sum().clamp(min=1e-300)
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum())) if len(share) else 1.0
