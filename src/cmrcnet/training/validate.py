"""A look at the network from outside: losses, collapse meter and, on validation spots, the metric that is reported."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from cmrcnet.config import Config
from cmrcnet.genes.components import loadings_of
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.search.aggregate import average
from cmrcnet.search.exact import ExactSearch
from cmrcnet.training.batches import steps_in
from cmrcnet.training.data import Pairs
from cmrcnet.training.meter import CollapseMeter, CollapseReading
from cmrcnet.training.module import Learner
from cmrcnet.training.validation_split import ValidationSplit

LEAST_VALIDATION = 32
"""With fewer validation spots the collapse meter reads a sample of the training spots: recall of a few says nothing."""

SAMPLE = 512
"""Training spots in that sample, at most."""

CANDIDATES = 64
"""Spots that a patch chooses from, at least: among few, chance is high and proves little."""

_SPOTS_AT_A_TIME = 1024


@dataclass(frozen=True, eq=False)
class Look:
    """What one look saw.

    Parameters
    ----------
    objective : float or None
        Mean training objective on the validation spots.
    pearson : float or None
        Mean Pearson over the scored genes, then over validation sections; None where nothing is defined.
    reading : CollapseReading
    retrieved : numpy.ndarray or None, shape (validation pairs, rank)
        Expression scores retrieved for the validation patches, when the config works on components.
    spread, similarity : numpy.ndarray or None, shapes (validation pairs, rank) and (validation pairs,)
        Deviation of the neighbours' scores and mean cosine to them, together with `retrieved`.
    """

    objective: float | None
    pearson: float | None
    reading: CollapseReading
    retrieved: np.ndarray | None = None
    spread: np.ndarray | None = None
    similarity: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the history; the meter's own names carry the prefix ``meter_``."""
        meter = {f"meter_{name}": value for name, value in self.reading.to_dict().items()}
        return {"validation_loss": self.objective, "validation_pearson": self.pearson, **meter}


class Looker:
    """Looks at a learner in evaluation mode, the same way every time.

    Parameters
    ----------
    pairs : Pairs
    validation : ValidationSplit
        What is held in, and which pairs are trained on.
    config : Config
    fabric : lightning_fabric.Fabric
    """

    def __init__(self, pairs: Pairs, validation: ValidationSplit, config: Config, fabric: Fabric) -> None:
        self._pairs, self._validation, self._config, self._fabric = pairs, validation, config, fabric
        self._meter = CollapseMeter(max(config.train.batch_size, CANDIDATES))
        self._sample, self._where = validation.ids, f"validation {validation.name}"
        if len(validation.ids) < LEAST_VALIDATION:
            rng = np.random.default_rng(config.train.seed)
            self._sample, self._where = rng.permutation(validation.rest)[:SAMPLE], "training spots"

    def look(self, learner: Learner) -> Look:
        """Look once. Masks are seeded, or drawn anew, as `model.mask_seeded_in_validation` says."""
        training = learner.training
        learner.eval()
        try:
            with torch.inference_mode(), self._fabric.autocast():
                objective = pearson = None
                found: tuple[np.ndarray | None, ...] = (None, None, None)
                if self._validation:
                    objective, contrast, image, gene = self._forward(learner, self._validation.ids)
                    pearson, *found = self._pearson(learner, image)
                if self._sample is not self._validation.ids:
                    _, contrast, image, gene = self._forward(learner, self._sample)
            return Look(objective, pearson, self._meter.read(image, gene, contrast, self._where), *found)
        finally:
            learner.train(training)

    def _forward(self, learner: Learner, ids: np.ndarray) -> tuple[float, float, Tensor, Tensor]:
        """Mean objective, mean contrastive loss over ln(batch), and the embeddings, of the pairs `ids`."""
        config = self._config.train
        masks = learner.network.validation_generator(config.seed)
        objective, contrast, images, genes = 0.0, 0.0, [], []
        for part in np.array_split(ids, steps_in(len(ids), config.batch_size)):
            inputs, expression = self._fabric.to_device(self._pairs.batch(part))
            total, contrastive, _, image, gene = learner(inputs, expression, masks)
            objective += float(total) * len(part)
            contrast += float(contrastive) / np.log(max(len(part), 2)) * len(part)
            images.append(image.float().cpu())
            genes.append(gene.float().cpu())
        return objective / len(ids), contrast / len(ids), torch.cat(images), torch.cat(genes)

    def _pearson(
        self, learner: Learner, image: Tensor
    ) -> tuple[float | None, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Retrieve the validation patches from the training spots, average as the config reads out, correlate.

        Behind the Pearson correlation, what `Look` keeps of the neighbours.
        """
        truth, rest, head = self._pairs.scored, self._validation.rest, self._config.head
        if truth is None:
            return None, None, None, None
        search = ExactSearch(self._embed_spots(learner, rest))
        neighbours = search.nearest(image.numpy(), min(head.k, len(rest)))
        components = self._pairs.scores
        averaged = truth[rest] if components is None else components[rest]
        guess, spread = average(
            neighbours,
            averaged,
            weighting=head.weighting,
            temperature=head.temperature,
            with_std=components is not None,
        )
        retrieved = similarity = None
        if components is not None:
            retrieved, similarity = guess, neighbours.similarity.mean(axis=1)
            guess = guess @ self._loadings
        ids = self._validation.ids
        sections = self._pairs.section_of[ids]
        means = []
        for section in np.unique(sections):
            inside = np.flatnonzero(sections == section)
            values = pearson_per_gene(truth[ids[inside]], guess[inside])
            if self._config.evaluation.undefined == "zero":
                values = np.nan_to_num(values)
            if np.isfinite(values).any():
                means.append(np.nanmean(values))
        return float(np.mean(means)) if means else None, retrieved, spread, similarity

    @cached_property
    def _loadings(self) -> np.ndarray:
        """(rank, scored genes): what the training spots' scores say of the genes that choose the epoch."""
        rest = self._validation.rest
        return loadings_of(self._pairs.scores[rest], self._pairs.scored[rest])

    def _embed_spots(self, learner: Learner, ids: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(ids), _SPOTS_AT_A_TIME):
            dense = self._pairs.expression[ids[start : start + _SPOTS_AT_A_TIME]].toarray()
            parts.append(learner.network.embed_genes(self._fabric.to_device(torch.from_numpy(dense))).float().cpu())
        return torch.cat(parts).numpy()
