"""How a training is judged while it goes on: validation groups, their score, and the collapse meter.

Spots are split by whole groups (patients or sections). The network is scored on those that are left out of training by
the metric that is reported: the Pearson correlation of retrieved with measured expression, per gene, within sections.

The collapse meter reads whether the network tells true pairs from false ones, or is at chance. Three readings, because
each alone can mislead (docs/concepts/collapse.md):

- the contrastive loss over ln(batch), which is 1 where all candidates get the same probability;
- recall@k: how often the true partner is among the k nearest of the batch, against chance k / batch;
- the effective rank of the image embeddings: the exponential of the entropy of the normalised singular values (Roy and
  Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007).

`at_chance` is derived from the ranks of the true partners, which need no scale and no temperature and use every
candidate (recall@k uses only those near k, so that it misses weak signals on a hundred spots). It is true when true
partners are not nearer than negatives by more than chance brings about in 1 of 100 runs.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from cmrcnet.config import Config
from cmrcnet.errors import CmrcnetWarning
from cmrcnet.genes.components import loadings_of
from cmrcnet.genes.spatial_stats import mean_pearson
from cmrcnet.search.aggregate import average
from cmrcnet.search.exact import ExactSearch
from cmrcnet.training.data import TrainingData, as_tensors, steps_in
from cmrcnet.training.module import TrainingModule

log = logging.getLogger("cmrcnet")

SPOTS_SHARE = 0.2
"""Share of the spots left out by ``train.validation: spots``."""
MAX_SPLITS = 5
"""Splits that groups are shared out over, at most."""
MIN_VALIDATION = 32
"""With fewer validation spots the collapse meter reads a sample of the training spots: recall of a few says nothing."""
SAMPLE = 512
"""Training spots in that sample, at most."""
CANDIDATES = 64
"""Spots that a patch chooses from, at least: among few, chance is high and proves little."""
RECALL_AT = 5
FAR_BEYOND_CHANCE = 2.326
"""Standard deviations that a mean rank at chance exceeds in 1 of 100 samples (normal approximation, one-sided)."""

_DRAW = 0x4E1D
"""Separates the choice of the validation group from other draws of the same seed."""
_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class ValidationSplit:
    """A split of the training spots."""

    ids: np.ndarray
    """Spots that choose the epoch, in a seeded random order; empty when the last epoch is kept."""
    rest: np.ndarray
    """Spots that are trained on, ascending. They are the bank that validation patches are retrieved from."""
    name: str
    """For people: "patient P2", "section C4", "97 random spots", "nothing"."""

    def __bool__(self) -> bool:
        return len(self.ids) > 0

    @classmethod
    def nothing(cls, spots: int) -> ValidationSplit:
        """Train on all spots."""
        return cls(np.arange(0), np.arange(spots), "nothing")


def validation_splits(data: TrainingData, config: Config) -> tuple[ValidationSplit, ...]:
    """Choose what is left out, by `train.validation`, `evaluation.group_by` and the seed.

    Returns
    -------
    tuple of ValidationSplit
        "each": every group once, more than five merged into five. "group" (a section, where there is one patient) and
        "spots": one split. Empty for "none", and with a warning where there is one training section: random spots of
        it would choose the epoch that fits that section best.
    """
    kind, spots = config.train.validation, len(data)
    rng = np.random.default_rng([config.train.seed, _DRAW])
    if kind == "none":
        return ()
    if kind == "spots":
        count = max(1, round(SPOTS_SHARE * spots))
        return (_split(rng.permutation(np.arange(spots))[:count], spots, f"{count} random spots", rng),)
    groups, group = data.groups(config.evaluation.group_by)
    names = list(dict.fromkeys(groups.tolist()))
    if len(names) < 2:
        kept = "the last epoch is" if kind == "group" else "the last epoch, middle penalties and an even ensemble are"
        warnings.warn(
            f"There is one training section only ({data.sections[0]}), so none can be left out: {kept} kept. Train on "
            "two sections or more, or set train.validation to none.",
            CmrcnetWarning,
            stacklevel=3,
        )
        return ()
    if kind == "group":
        chosen = names[int(rng.integers(len(names)))]
        log.info("The epoch is chosen on %s %s (%d spots), left out.", group, chosen, (groups == chosen).sum())
        return (_split(np.flatnonzero(groups == chosen), spots, f"{group} {chosen}", rng),)
    order = [names[i] for i in rng.permutation(len(names))] if len(names) > MAX_SPLITS else names
    merged = [order[start::MAX_SPLITS] for start in range(min(MAX_SPLITS, len(order)))]
    log.info("Epoch, penalties and ensemble are chosen on %d validation splits.", len(merged))
    return tuple(_split(np.flatnonzero(np.isin(groups, each)), spots, ", ".join(each), rng) for each in merged)


def _split(chosen: np.ndarray, spots: int, name: str, rng: np.random.Generator) -> ValidationSplit:
    # In mixed order: batches of neighbouring spots would make the contrastive loss harder than it is in training.
    return ValidationSplit(rng.permutation(chosen), np.setdiff1d(np.arange(spots), chosen), name)


@dataclass(frozen=True)
class CollapseReading:
    """Readings of the collapse meter on one sample of pairs."""

    loss_over_ln_batch: float
    """Mean contrastive loss over ln(batch); about 1 or more: no better than equal probabilities."""
    recall_at_k: float
    """Share of patches whose own spot is among their `k` nearest candidates."""
    chance: float
    """Recall of a network at chance."""
    ahead: float
    """Share of negatives that are farther than the true partner; 0.5 at chance."""
    k: int
    pairs: int
    effective_rank: float
    """1: all patches have the same embedding, up to scale."""
    at_chance: bool
    where: str
    """The sample: "validation P2", "training spots"."""

    @property
    def sentence(self) -> str:
        """The reading in one sentence."""
        conclusion = "the network is at chance" if self.at_chance else "the network is better than chance"
        return (
            f"On {self.pairs} pairs ({self.where}) the true spot is among the {self.k} nearest for "
            f"{self.recall_at_k:.1%} of patches (chance {self.chance:.1%}) and nearer than {self.ahead:.0%} of the "
            f"negatives (chance 50%), the contrastive loss is "
            f"{self.loss_over_ln_batch:.2f} x ln(batch), and embeddings spread in {self.effective_rank:.1f} "
            f"directions: {conclusion}."
        )


def read_collapse(
    image: Tensor,
    gene: Tensor,
    loss_over_ln_batch: float,
    where: str = "a sample",
    *,
    candidates: int = CANDIDATES,
    k: int = RECALL_AT,
) -> CollapseReading:
    """Read the collapse meter on embeddings of true pairs.

    Parameters
    ----------
    image, gene : torch.Tensor, shape (pairs, dim)
        Row i of both is one pair. Cosine is compared, so their length does not matter.
    loss_over_ln_batch : float
        Measured on the same sample (it depends on temperature and targets).
    candidates : int
        Spots that each patch chooses from, at most; at least 2.
    k : int
        Nearest candidates among which the true one counts as found; at most half of the candidates.
    """
    image, gene = image.detach().float().cpu(), gene.detach().float().cpu()
    pairs = len(image)
    hits, expected, farther, negatives = 0, 0, 0, 0
    surplus, variance = 0.0, 0.0
    for part in np.array_split(np.arange(pairs), max(1, math.ceil(pairs / max(2, candidates)))):
        nearest = min(k, max(1, len(part) // 2))
        ranks = partner_ranks(image[part], gene[part])
        hits += int((ranks < nearest).sum())
        expected += nearest
        farther += int((len(part) - 1 - ranks).sum())
        negatives += len(part) * (len(part) - 1)
        # At chance a rank is uniform on 0 .. n - 1: mean (n - 1) / 2, variance (n^2 - 1) / 12.
        surplus += float(((len(part) - 1) / 2 - ranks).sum())
        variance += len(part) * (len(part) ** 2 - 1) / 12
    return CollapseReading(
        loss_over_ln_batch=float(loss_over_ln_batch),
        recall_at_k=hits / pairs,
        chance=expected / pairs,
        ahead=farther / max(negatives, 1),
        k=k,
        pairs=pairs,
        effective_rank=effective_rank(image),
        at_chance=surplus <= FAR_BEYOND_CHANCE * math.sqrt(variance),
        where=where,
    )


def partner_ranks(image: Tensor, gene: Tensor) -> Tensor:
    """Number of negatives that are at least as near to each patch as its own spot: 0 is a hit at k = 1.

    Takes (pairs, dim), returns (pairs,) int64. A tie counts against the network: embeddings that are all one vector get
    the last rank.
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


@dataclass(frozen=True, eq=False)
class ValidationResult:
    """One validation of the network."""

    objective: float | None
    """Mean training objective on the validation spots."""
    pearson: float | None
    """Mean Pearson over the scored genes, then over validation sections; None where nothing is defined."""
    reading: CollapseReading
    retrieved: np.ndarray | None = None
    """(validation spots, rank): expression scores retrieved for the patches, when the config works on components."""
    neighbour_std: np.ndarray | None = None
    """(validation spots, rank): deviation of the neighbours' scores, together with `retrieved`."""
    similarity: np.ndarray | None = None
    """(validation spots,): mean cosine to the neighbours, together with `retrieved`."""

    def score(self, select_by: str) -> float | None:
        """What the best epoch is best in ("pearson" or "objective"), higher is better; None where it is undefined."""
        if select_by == "pearson":
            return self.pearson
        return None if self.objective is None else -self.objective

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the history; the meter's own names carry the prefix ``meter_``."""
        meter = {f"meter_{name}": value for name, value in asdict(self.reading).items()}
        return {"validation_loss": self.objective, "validation_pearson": self.pearson, **meter}


class Validator:
    """Validates a module on one split, the same way every time."""

    def __init__(self, data: TrainingData, split: ValidationSplit, config: Config, fabric: Fabric) -> None:
        self._data, self._split, self._config, self._fabric = data, split, config, fabric
        self._sample, self._where = split.ids, f"validation {split.name}"
        if len(split.ids) < MIN_VALIDATION:
            rng = np.random.default_rng(config.train.seed)
            self._sample, self._where = rng.permutation(split.rest)[:SAMPLE], "training spots"

    def validate(self, module: TrainingModule) -> ValidationResult:
        """Validate once, in evaluation mode. Masks are seeded if `model.mask_seeded_in_validation`."""
        training = module.training
        module.eval()
        try:
            with torch.inference_mode(), self._fabric.autocast():
                objective = pearson = None
                neighbours: list[np.ndarray | None] = []
                if self._split:
                    objective, contrast, image, gene = self._forward(module, self._split.ids)
                    pearson, *neighbours = self._pearson(module, image)
                if self._sample is not self._split.ids:
                    _, contrast, image, gene = self._forward(module, self._sample)
            candidates = max(self._config.train.batch_size, CANDIDATES)
            reading = read_collapse(image, gene, contrast, self._where, candidates=candidates)
            return ValidationResult(objective, pearson, reading, *neighbours)
        finally:
            module.train(training)

    def _forward(self, module: TrainingModule, ids: np.ndarray) -> tuple[float, float, Tensor, Tensor]:
        """Mean objective, mean contrastive loss over ln(batch), and the embeddings, of the spots `ids`."""
        config = self._config.train
        masks = module.network.validation_generator(config.seed)
        objective, contrast, images, genes = 0.0, 0.0, [], []
        for part in np.array_split(ids, steps_in(len(ids), config.batch_size)):
            inputs, expression = self._fabric.to_device(as_tensors(*self._data.gather(part)))
            total, contrastive, _, image, gene = module(inputs, expression, masks)
            objective += float(total) * len(part)
            contrast += float(contrastive) / np.log(max(len(part), 2)) * len(part)
            images.append(image.float().cpu())
            genes.append(gene.float().cpu())
        return objective / len(ids), contrast / len(ids), torch.cat(images), torch.cat(genes)

    def _pearson(
        self, module: TrainingModule, image: Tensor
    ) -> tuple[float | None, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Retrieve the validation patches from the training spots, average as the head does, correlate.

        After the correlation, what `ValidationResult` keeps of the neighbours.
        """
        truth, rest, head = self._data.scored, self._split.rest, self._config.head
        if truth is None:
            return None, None, None, None
        parts = []
        for start in range(0, len(rest), _CHUNK):
            dense = self._data.expression[rest[start : start + _CHUNK]].toarray()
            parts.append(module.network.embed_genes(self._fabric.to_device(torch.from_numpy(dense))).float().cpu())
        neighbours = ExactSearch(torch.cat(parts).numpy()).nearest(image.numpy(), min(head.k, len(rest)))
        components = self._data.scores
        averaged = truth[rest] if components is None else components[rest]
        predicted, deviation = average(
            neighbours,
            averaged,
            weighting=head.weighting,
            temperature=head.temperature,
            with_std=components is not None,
        )
        retrieved = similarity = None
        if components is not None:
            retrieved, similarity = predicted, neighbours.similarity.mean(axis=1)
            predicted = predicted @ self._loadings
        ids = self._split.ids
        value = mean_pearson(
            truth[ids], predicted, self._data.section_of[ids], undefined=self._config.evaluation.undefined
        )
        return None if np.isnan(value) else value, retrieved, deviation, similarity

    @cached_property
    def _loadings(self) -> np.ndarray:
        """(rank, scored genes): loadings of the genes that choose the epoch, over the training spots."""
        rest = self._split.rest
        assert self._data.scores is not None and self._data.scored is not None
        return loadings_of(self._data.scores[rest], self._data.scored[rest])
