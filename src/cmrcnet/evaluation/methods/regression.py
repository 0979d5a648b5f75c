"""Rivals that regress: a network with a linear output layer over genes, trained by MSE.

The originals predict some hundred genes; here every gene must be predicted, and an output layer over all of them,
trained by gradient, would be most of the cost. So the network is trained on up to 1,000 genes, the scored sets among
them, and these keep the output layer that was trained. For each other gene the output layer is the ridge solution on
the trained network's last hidden layer, with the penalty that served the HVG best on the validation unit. That is the
same model (a linear layer on the same hidden layer), solved in closed form instead of by gradient, so no gene is
put at a disadvantage; scores of HVG and HEG never touch it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch
from scipy import linalg, sparse
from torch import Tensor, nn

from cmrcnet.evaluation.methods.baseline_inputs import Sight, View
from cmrcnet.evaluation.methods.genes_learnt import genes_learnt
from cmrcnet.evaluation.methods.method import Location, Prediction, TrainingData
from cmrcnet.evaluation.methods.training_loop import Learnt, Schedule, learn, random_batches, section_batches
from cmrcnet.evaluation.methods.validation_choice import hvg_of, section_pearson

BATCH = 128
PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
"""Of the output layer of the genes that were not trained, on a standardised hidden layer."""


class Regressor(Protocol):
    """A network of a regressing rival (a `torch.nn.Module`).

    Attributes
    ----------
    head : torch.nn.Linear
        From the hidden layer to the genes learnt.
    """

    head: nn.Linear

    def hidden(self, view: View, rows: Tensor) -> Tensor:
        """The last hidden layer at some rows of a view: (rows, width)."""
        ...

    def loss(self, view: View, rows: Tensor, wanted: Tensor) -> Tensor:
        """What some rows cost, given their expression (rows, genes learnt)."""
        ...


class MSERegressor(nn.Module):
    """A regressor whose loss is the mean squared error; subclasses say what the hidden layer is.

    Parameters
    ----------
    width : int
        Of the hidden layer.
    level : tensor, shape (genes,)
        Where each gene's prediction starts: its training mean.
    """

    def __init__(self, width: int, level: Tensor) -> None:
        super().__init__()
        self.head = started_at(width, level)

    def hidden(self, view: View, rows: Tensor) -> Tensor:
        """The last hidden layer at some rows of a view: (rows, width)."""
        raise NotImplementedError

    def loss(self, view: View, rows: Tensor, wanted: Tensor) -> Tensor:
        """Mean squared error over rows and genes."""
        return nn.functional.mse_loss(self.head(self.hidden(view, rows)), wanted)


def started_at(width: int, level: Tensor) -> nn.Linear:
    """A linear output layer whose bias is each gene's training mean and whose weights start small."""
    head = nn.Linear(width, len(level))
    with torch.no_grad():
        head.bias.copy_(level)
        head.weight.mul_(0.1)
    return head


class Regression:
    """One network, its training expression, and the rows that it may learn from: a `Learner`."""

    def __init__(
        self, network: Any, view: View, targets: Tensor, rows: np.ndarray, n_hvg: int, by_section: bool
    ) -> None:
        self.network, self._view, self._targets = network, view, targets
        self._rows, self._n_hvg, self._by_section = rows, n_hvg, by_section

    def batches(self, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """About 128 random spots, or one section, at a time."""
        if self._by_section:
            return section_batches(self._rows, self._view.section_of, rng)
        return random_batches(self._rows, BATCH, rng)

    def loss(self, rows: np.ndarray) -> Tensor:
        """The network's loss."""
        at = torch.from_numpy(rows)
        return self.network.loss(self._view, at, self._targets[at])

    def guess(self, rows: np.ndarray) -> np.ndarray:
        """The HVG, which are the first of the genes learnt."""
        with torch.no_grad():
            return self.network.head(self.hidden_at(rows))[:, : self._n_hvg].numpy()

    def hidden_at(self, rows: np.ndarray) -> Tensor:
        """The hidden layer at some training rows."""
        with torch.no_grad():
            return self.network.hidden(self._view, torch.from_numpy(rows))


def fit_regression(
    training: TrainingData,
    build: Any,
    *,
    by_section: bool = False,
    schedule: Schedule | None = None,
) -> RegressionPredictor:
    """Train a network, and add the output layer of the genes that it was not trained on.

    Parameters
    ----------
    training : TrainingData
    build : callable
        Takes the width of a spot's features and the training mean of each gene learnt (tensor); gives a `Regressor`.
    by_section : bool
        Take a step for each section, in place of one for about 128 random spots.
    schedule : Schedule, optional

    Returns
    -------
    RegressionPredictor
    """
    sight, columns = Sight(training), genes_learnt(training)
    targets = torch.from_numpy(np.asarray(training.expression[:, columns].todense(), np.float32))

    def make(rows: np.ndarray) -> Regression:
        network = build(sight.width, targets[rows].mean(dim=0))
        return Regression(network, sight.training, targets, rows, len(training.sets["HVG"]), by_section)

    learnt = learn(training, make, schedule or Schedule())
    others = np.setdiff1d(np.arange(len(training.genes)), columns)
    penalty = _choose_penalty(training, learnt)
    rest = OutputLayer(
        learnt.learner.hidden_at(np.arange(len(targets))).numpy(), training.expression[:, others], penalty
    )
    record = {**learnt.record, "genes_learnt": len(columns), "penalty_of_other_genes": penalty}
    return RegressionPredictor(training.genes, sight, learnt.learner.network, columns, others, rest, record)


class RegressionPredictor:
    """A trained network, and the output layer of the other genes."""

    def __init__(
        self,
        genes: tuple[str, ...],
        sight: Sight,
        network: Any,
        columns: np.ndarray,
        others: np.ndarray,
        rest: OutputLayer,
        record: dict[str, Any],
    ) -> None:
        self.record = record
        self._genes, self._sight, self._network = genes, sight, network
        self._columns, self._others, self._rest = columns, others, rest

    def predict(self, place: Location) -> Prediction:
        """Every gene at every spot."""
        view = self._sight.of(place)
        mean = np.empty((len(place.spots), len(self._genes)), np.float32)
        with torch.no_grad():
            hidden = self._network.hidden(view, torch.arange(len(place.spots)))
            mean[:, self._columns] = self._network.head(hidden).numpy()
        mean[:, self._others] = self._rest.predict(hidden.numpy())
        return Prediction(self._genes, mean)


class OutputLayer:
    """A linear layer in closed form: ridge on a standardised hidden layer, ``(H'H + penalty)^-1 H'Y`` and a level.

    Parameters
    ----------
    hidden : array, shape (spots, width)
    expression : scipy.sparse.csr_matrix, shape (spots, genes)
        Never dense as a whole.
    penalty : float
    """

    def __init__(self, hidden: np.ndarray, expression: sparse.csr_matrix, penalty: float) -> None:
        hidden = hidden.astype(np.float64)
        self._middle, scale = hidden.mean(axis=0), hidden.std(axis=0)
        self._scale = np.where(scale > 1e-8, scale, 1.0)
        inputs = (hidden - self._middle) / self._scale
        gram = inputs.T @ inputs + penalty * np.eye(inputs.shape[1])
        # The inputs are centred, so centring the expression would change nothing here.
        self._weights = linalg.solve(gram, np.asarray((expression.T @ inputs).T), assume_a="pos")
        self._level = np.asarray(expression.mean(axis=0), np.float64).ravel()

    def predict(self, hidden: np.ndarray) -> np.ndarray:
        """(spots, genes) float64."""
        return (hidden - self._middle) / self._scale @ self._weights + self._level


def _choose_penalty(training: TrainingData, learnt: Learnt) -> float:
    """The penalty whose closed-form output layer predicts the HVG of the validation unit best."""
    if learnt.searcher is None:
        return PENALTIES[len(PENALTIES) // 2]
    inside = learnt.inside
    hidden = learnt.searcher.hidden_at(np.arange(len(inside))).numpy()
    hvg = hvg_of(training)
    of_row = training.section_of[~inside]

    def score(penalty: float) -> float:
        layer = OutputLayer(hidden[inside], sparse.csr_matrix(hvg[inside]), penalty)
        return section_pearson(hvg[~inside], layer.predict(hidden[~inside]), of_row)

    return max(PENALTIES, key=score)
