"""The collapse meter: does the network know which spot belongs to a patch, or does it only guess?

Three readings, because each alone can mislead (docs/concepts/collapse.md):

- the contrastive loss over ln(batch), which is 1 where every candidate is thought alike;
- recall@k: how often the true partner is among the k nearest of the batch, against chance k / batch;
- the effective rank of the image embeddings, in how many directions they spread: the exponential of the entropy of
  the normalised singular values (Roy and Vetterli, "The effective rank: a measure of effective dimensionality",
  EUSIPCO 2007).

The verdict "guessing" comes from recall, which needs no scale and no temperature: it is given when the partners found
are no more than chance would find in 99 of 100 runs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

RECALL_AT = 5
BY_CHANCE = 0.01


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
    k, pairs : int
    effective_rank : float
        1: all patches have become one vector.
    guessing : bool
    where : str
        The sample: "held-in P2", "training spots".
    """

    loss_over_ln_batch: float
    recall_at_k: float
    chance: float
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
            f"{self.recall_at_k:.1%} of patches (chance {self.chance:.1%}), the contrastive loss is "
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
        hits, expected = 0, 0.0
        for part in np.array_split(np.arange(pairs), max(1, math.ceil(pairs / self.candidates))):
            k = min(self.k, max(1, len(part) // 2))
            hits += int((partner_ranks(image[part], gene[part]) < k).sum())
            expected += k
        chance = expected / pairs
        return CollapseReading(
            loss_over_ln_batch=float(loss_over_ln_batch),
            recall_at_k=hits / pairs,
            chance=chance,
            k=self.k,
            pairs=pairs,
            effective_rank=effective_rank(image),
            guessing=_within_chance(hits, pairs, chance),
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


def _within_chance(hits: int, pairs: int, chance: float) -> bool:
    """Whether a guesser would find as many partners in more than 1 of 100 samples (binomial tail)."""
    from scipy.stats import binom

    return bool(binom.sf(hits - 1, pairs, min(chance, 1.0)) > BY_CHANCE)
