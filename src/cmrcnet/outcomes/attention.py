"""Gated attention over the locations of a case (Ilse, Tomczak and Welling, ICML 2018), learnt with the outcome.

A location's expression is reduced to components that the training locations give, then ``h = relu(A x)``; its weight is
``softmax(w' (tanh(V h) * sigmoid(U h)))`` over all locations of the case, and the case's output ``c' sum(weight * h)``.
The output is a sum over locations, which is what `contributions` gives. Survival is learnt by Cox's partial likelihood
(Breslow), classes by cross-entropy with balanced classes. The number of epochs is chosen by an inner cross-validation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cmrcnet.outcomes.cohort import Classes, OutcomeCohort, Survival
from cmrcnet.outcomes.folds import splits
from cmrcnet.outcomes.metrics import partial_log_likelihood
from cmrcnet.outcomes.models import CoxModel
from cmrcnet.outcomes.pooling import SlideStack, location_components

INPUTS = 16
WIDTH = 16
MOST_LOCATIONS = 256
"""Locations of a case that are used in training, drawn at random where it has more."""
EPOCHS = 60
STEP = 5
"""Epochs between two looks at the held-out score."""
_LEARNING_RATE, _DECAY = 3e-3, 1e-3


class GatedAttention(nn.Module):
    """The network; `forward` takes locations (cases, locations, inputs) and which of them are real."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Dropout(0.25))
        self.tanh, self.gate, self.weight = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.head = nn.Linear(WIDTH, outputs)

    def parts(self, locations: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Attention (cases, locations) and each location's output (cases, locations, outputs) before weighting."""
        hidden = self.embed(locations)
        raw = self.weight(torch.tanh(self.tanh(hidden)) * torch.sigmoid(self.gate(hidden))).squeeze(-1)
        return torch.softmax(raw.masked_fill(~real, -torch.inf), dim=1), self.head(hidden)

    def forward(self, locations: Tensor, real: Tensor) -> Tensor:
        attention, each = self.parts(locations, real)
        return (attention.unsqueeze(-1) * each).sum(dim=1)


@dataclass(frozen=True, eq=False)
class AttentionModel:
    """A fitted network with the components of its inputs, and for survival the baseline of its risk."""

    network: GatedAttention
    middle: np.ndarray
    directions: np.ndarray
    baseline: CoxModel | None
    epochs: int

    def inputs(self, stack: SlideStack, case: int) -> np.ndarray:
        """Inputs of all locations of a case: (locations, inputs)."""
        return _inputs(stack, case, self.middle, self.directions)

    def output(self, stack: SlideStack, rows: np.ndarray) -> np.ndarray:
        """Log hazard, or logits, of cases: (cases, outputs)."""
        found = []
        for row in rows:
            locations = torch.from_numpy(self.inputs(stack, int(row)))[None]
            with torch.no_grad():
                found.append(self.network(locations, torch.ones(locations.shape[:2], dtype=torch.bool))[0].numpy())
        return np.stack(found).astype(np.float64)

    def contributions(self, stack: SlideStack, case: int, output: int = 0) -> np.ndarray:
        """What each location adds to the case's output: (locations,); their sum is the output."""
        locations = torch.from_numpy(self.inputs(stack, case))[None]
        with torch.no_grad():
            attention, each = self.network.parts(locations, torch.ones(locations.shape[:2], dtype=torch.bool))
        return (attention[0] * each[0, :, output]).numpy().astype(np.float64)

    def probabilities(self, stack: SlideStack, rows: np.ndarray) -> np.ndarray:
        """Probability of each class: (cases, classes)."""
        logits = self.output(stack, rows)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)


def fit_attention(
    cohort: OutcomeCohort, stack: SlideStack, train: np.ndarray, inner_folds: int, seed: int
) -> AttentionModel:
    """Fit on training cases: an inner cross-validation chooses the epochs and calibrates the risk.

    Parameters
    ----------
    train : numpy.ndarray, shape (rows,)
        Numbers of the training cases.
    """
    curves, risks, held = [], [], []
    for inside, outside in splits(cohort, train, inner_folds, seed):
        scores, outputs = [], []
        for model in _trained(cohort, stack, inside, EPOCHS, seed):
            found = model.output(stack, outside)
            outputs.append(found)
            outcome = cohort.outcome.take(outside)
            if isinstance(outcome, Survival):
                scores.append(partial_log_likelihood(outcome, found[:, 0]))
            else:
                scores.append(-float(_loss(torch.from_numpy(found.astype(np.float32)), outcome)))
        curves.append(scores)
        risks.append(np.stack(outputs))
        held.append(outside)
    steps = 1 + int(np.nanmean(curves, axis=0).argmax()) if curves else EPOCHS // STEP // 2
    *_, model = _trained(cohort, stack, train, steps * STEP, seed)
    if not isinstance(cohort.outcome, Survival):
        return model
    # Risks of patients that the network has seen are too extreme, so the baseline comes from held-out ones.
    risk = np.concatenate([each[steps - 1, :, 0] for each in risks]) if risks else model.output(stack, train)[:, 0]
    rows = np.concatenate(held) if held else train
    baseline = CoxModel.fit(risk[:, None], cohort.outcome.take(rows), np.array([0.01]), 0.0)
    return AttentionModel(model.network, model.middle, model.directions, baseline, steps * STEP)


def _trained(cohort: OutcomeCohort, stack: SlideStack, train: np.ndarray, epochs: int, seed: int):
    """Train, and yield the model every `STEP` epochs."""
    middle, directions = location_components(stack, train, INPUTS)
    values = [_inputs(stack, int(case), middle, directions) for case in train]
    rng = np.random.default_rng([seed, len(train)])
    values = [v if len(v) <= MOST_LOCATIONS else v[rng.choice(len(v), MOST_LOCATIONS, replace=False)] for v in values]
    locations = pad_sequence([torch.from_numpy(v).float() for v in values], batch_first=True)
    real = torch.arange(locations.shape[1]) < torch.tensor([[len(v)] for v in values])
    outcome = cohort.outcome.take(train)
    outputs = 1 if isinstance(outcome, Survival) else len(outcome.names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = GatedAttention(directions.shape[1], outputs)
        optimiser = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_DECAY)
        for epoch in range(1, epochs + 1):
            network.train()
            optimiser.zero_grad()
            _loss(network(locations, real), outcome).backward()
            optimiser.step()
            if epoch % STEP == 0:
                network.eval()
                yield AttentionModel(network, middle, directions, None, epoch)


def cox_loss(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Negative log partial likelihood (Breslow's ties) per event, of log hazards (cases,)."""
    order = torch.argsort(-time, stable=True)
    time, event, risk = time[order], event[order], risk[order]
    last = torch.searchsorted(-time, -time, right=True) - 1  # ties share one risk set
    return -(risk - torch.logcumsumexp(risk, dim=0)[last])[event].sum() / event.sum()


def _loss(output: Tensor, outcome: Survival | Classes) -> Tensor:
    if isinstance(outcome, Survival):
        return cox_loss(output[:, 0], torch.from_numpy(outcome.time), torch.from_numpy(outcome.event))
    counts = np.bincount(outcome.codes, minlength=len(outcome.names))
    weight = torch.tensor(len(outcome) / np.maximum(counts, 1) / len(counts), dtype=torch.float32)
    return nn.functional.cross_entropy(output, torch.from_numpy(outcome.codes), weight=weight)


def _inputs(stack: SlideStack, case: int, middle: np.ndarray, directions: np.ndarray) -> np.ndarray:
    parts = [stack.expression(int(number)) for number in stack.of_case[case]]
    return np.clip((np.concatenate(parts) - middle) @ directions, -4, 4).astype(np.float32)
