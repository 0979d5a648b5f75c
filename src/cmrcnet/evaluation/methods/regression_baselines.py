"""Published baselines that regress (ST-Net, DeepSpot, TRIPLEX): a network with a linear output layer, trained by MSE.

The originals predict some hundred genes; here every gene must be predicted, and an output layer over all of them,
trained by gradient, would be most of the cost. So the network is trained on up to 1,000 genes, the scored sets among
them, and these keep the output layer that was trained. For each other gene the output layer is the ridge solution on
the trained network's last hidden layer, with the penalty that predicts the HVG of the validation group best. That is
the same model (a linear layer on the same hidden layer), solved in closed form instead of by gradient, so no gene is at
a disadvantage; scores of HVG and HEG do not depend on it.

The file is one thing: regressing baselines, which differ in their hidden layer only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch
from scipy import linalg, sparse
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from cmrcnet.evaluation import Sparse
from cmrcnet.evaluation.methods.baseline_training import (
    BaselineInputs,
    Schedule,
    SpotInputs,
    TrainedBaseline,
    genes_learnt,
    random_batches,
    section_batches,
    train_baseline,
)
from cmrcnet.evaluation.methods.baselines import hvg_of, section_pearson
from cmrcnet.evaluation.methods.method import FoldData, Location, Prediction

BATCH = 128
PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
"""Of the output layer of the genes that were not trained, on a standardised hidden layer."""


class Regressor(Protocol):
    """A network of a regressing baseline (a `torch.nn.Module`).

    Attributes
    ----------
    head : torch.nn.Linear
        From the hidden layer to the genes learnt.
    """

    head: nn.Linear

    def hidden(self, view: SpotInputs, rows: Tensor) -> Tensor:
        """The last hidden layer at some rows of a view: (rows, width)."""
        ...

    def loss(self, view: SpotInputs, rows: Tensor, wanted: Tensor) -> Tensor:
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

    def hidden(self, view: SpotInputs, rows: Tensor) -> Tensor:
        """The last hidden layer at some rows of a view: (rows, width)."""
        raise NotImplementedError

    def loss(self, view: SpotInputs, rows: Tensor, wanted: Tensor) -> Tensor:
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
    """One network, its training expression, and the rows that it may learn from: a `Trainable`."""

    def __init__(
        self, network: Any, view: SpotInputs, targets: Tensor, rows: np.ndarray, n_hvg: int, by_section: bool
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
    training: FoldData,
    build: Any,
    *,
    by_section: bool = False,
    schedule: Schedule | None = None,
) -> FittedRegression:
    """Train a network, and add the output layer of the genes that it was not trained on.

    Parameters
    ----------
    build : callable
        Takes the width of a spot's features and the training mean of each gene learnt (tensor); gives a `Regressor`.
    by_section : bool
        Take a step for each section, in place of one for about 128 random spots.
    schedule : Schedule, optional

    Returns
    -------
    FittedRegression
    """
    baseline_inputs, columns = BaselineInputs(training), genes_learnt(training)
    targets = torch.from_numpy(np.asarray(training.expression[:, columns].todense(), np.float32))

    def make(rows: np.ndarray) -> Regression:
        network = build(baseline_inputs.width, targets[rows].mean(dim=0))
        return Regression(network, baseline_inputs.training, targets, rows, len(training.sets["HVG"]), by_section)

    learnt = train_baseline(training, make, schedule or Schedule())
    others = np.setdiff1d(np.arange(len(training.genes)), columns)
    penalty = _choose_penalty(training, learnt)
    rest = OutputLayer(
        learnt.trainable.hidden_at(np.arange(len(targets))).numpy(), training.expression[:, others], penalty
    )
    record = {**learnt.record, "genes_learnt": len(columns), "penalty_of_other_genes": penalty}
    return FittedRegression(training.genes, baseline_inputs, learnt.trainable.network, columns, others, rest, record)


class FittedRegression:
    """A trained network, and the output layer of the other genes."""

    def __init__(
        self,
        genes: tuple[str, ...],
        baseline_inputs: BaselineInputs,
        network: Any,
        columns: np.ndarray,
        others: np.ndarray,
        rest: OutputLayer,
        record: dict[str, Any],
    ) -> None:
        self.record = record
        self._genes, self._baseline_inputs, self._network = genes, baseline_inputs, network
        self._columns, self._others, self._rest = columns, others, rest

    def predict(self, location: Location) -> Prediction:
        """Every gene at every spot."""
        view = self._baseline_inputs.of(location)
        mean = np.empty((len(location.spots), len(self._genes)), np.float32)
        with torch.no_grad():
            hidden = self._network.hidden(view, torch.arange(len(location.spots)))
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
    """

    def __init__(self, hidden: np.ndarray, expression: Sparse, penalty: float) -> None:
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


def _choose_penalty(training: FoldData, learnt: TrainedBaseline) -> float:
    """The penalty whose closed-form output layer predicts the HVG of the validation group best."""
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


class STNet:
    """Features, a linear output layer over genes, MSE, trained by gradient and stopped early.

    Source: He et al., "Integrating spatial gene expression and breast tumour morphology via deep learning", Nature
    Biomedical Engineering 2020, doi 10.1038/s41551-020-0578-x.

    Differs from the original: the encoder is the run's frozen one, seen through PCA-256, where ST-Net trains a
    DenseNet-121 too; the optimiser is AdamW; the epoch is chosen on a validation group; genes are chosen and completed
    as
    in `regression`.
    """

    name = "st-net"
    about = (
        "after ST-Net (He et al. 2020): linear output layer on frozen features, MSE, early stopping "
        "on a validation group"
    )

    def fit(self, training: FoldData) -> FittedRegression:
        """Train the output layer."""
        return fit_regression(training, LinearLayer)


class LinearLayer(MSERegressor):
    """Nothing but the output layer: the hidden layer is the features themselves.

    Parameters
    ----------
    dim : int
        Length of a spot's features.
    level : tensor, shape (genes,)
    """

    def __init__(self, dim: int, level: Tensor) -> None:
        super().__init__(dim, level)

    def hidden(self, view: SpotInputs, rows: Tensor) -> Tensor:
        """The features."""
        return view.features[rows]


DEEPSPOT_DIM = 256
DROPOUT = 0.3


class DeepSpot:
    """Spot and neighbours each through a network of their own (phi), neighbours averaged, both joined (rho), MSE.

    Source: Nonchev et al., "DeepSpot: leveraging spatial context for enhanced spatial transcriptomics prediction from
    H&E images", medRxiv 2025, doi 10.1101/2025.02.09.25321567; deep sets: Zaheer et al., NeurIPS 2017, arXiv
    1703.06114.

    Differs from the original: the frozen encoder is the run's (PCA-256), not a pathology foundation model; there are
    no sub-spot tiles, only the spot and its spatial neighbours within 300 um (at most 24); neighbours are averaged;
    plain MSE on log-normalised expression; genes are chosen and completed as in `regression`.
    """

    name = "deepspot"
    about = (
        "after DeepSpot (Nonchev et al. 2025): deep set over a spot and its spatial neighbours, frozen features, MSE"
    )

    def fit(self, training: FoldData) -> FittedRegression:
        """Train the deep set."""
        return fit_regression(training, DeepSet)


class DeepSet(MSERegressor):
    """``rho(phi(spot), mean over neighbours of phi'(neighbour))``; without neighbours the mean is 0.

    The order of the neighbours changes nothing.

    Parameters
    ----------
    dim : int
        Length of a spot's features.
    level : tensor, shape (genes,)
    """

    def __init__(self, dim: int, level: Tensor) -> None:
        super().__init__(DEEPSPOT_DIM, level)
        self.spot = _layer(dim)
        self.neighbour = _layer(dim)
        self.together = _layer(2 * DEEPSPOT_DIM)

    def hidden(self, view: SpotInputs, rows: Tensor) -> Tensor:
        """``rho``'s output."""
        ids, present = view.near_ids[rows], view.near_present[rows]
        seen, place = torch.unique(ids, return_inverse=True)  # each neighbour once, however many spots it is near to
        around = masked_mean(self.neighbour(view.features[seen])[place], present)
        return self.together(torch.cat([self.spot(view.features[rows]), around], dim=1))


def masked_mean(values: Tensor, present: Tensor) -> Tensor:
    """Mean over the members that are present; 0 where there is none.

    Parameters
    ----------
    values : tensor, shape (rows, members, width)
    present : tensor, shape (rows, members), bool

    Returns
    -------
    tensor, shape (rows, width)
    """
    weight = present.to(values.dtype)[:, :, None]
    return (values * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def _layer(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(dim, DEEPSPOT_DIM), nn.GELU())


TRIPLEX_DIM = 64
HEADS = 4
FUSED_SHARE = 0.5
"""Share of a branch's loss that is taken against the fused prediction instead of the truth."""


class Triplex:
    """Three encoders (the spot; its neighbourhood; the section), fused by cross-attention, each branch with a loss.

    Source: Chung et al., "Accurate Spatial Gene Expression Prediction by integrating Multi-resolution features", CVPR
    2024, arXiv 2403.07592.

    Differs from the original: all three encoders see one frozen feature vector a spot (PCA-256), where TRIPLEX takes
    token maps and trains its target encoder; the neighbourhood is the spatial neighbours within 300 um (at most 24);
    locations enter through a small network of x and y instead of its convolutional position encoding; the network is
    small (64 wide, one layer each); the share of the branch losses is ours; a step takes one section; genes are
    chosen and completed as in `regression`.
    """

    name = "triplex"
    about = "after TRIPLEX (Chung et al. 2024): spot, neighbourhood and section encoders on frozen features, fused"

    def fit(self, training: FoldData) -> FittedRegression:
        """Train the three encoders and their fusion."""
        return fit_regression(training, ThreeScales, by_section=True, schedule=Schedule(most_epochs=30))


class ThreeScales(nn.Module):
    """Target, neighbourhood and section branches; the section's vector asks, the other two answer.

    ``fused = norm(q + attention(q; target, neighbourhood))`` with q the whole section's view of the spot. Loss, with y
    the truth and f the fused prediction, over the branches b::

        MSE(f, y) + sum_b (1 - share) MSE(b, y) + share MSE(b, f)          f fixed in the last term

    Parameters
    ----------
    dim : int
        Length of a spot's features.
    level : tensor, shape (genes,)
    """

    def __init__(self, dim: int, level: Tensor) -> None:
        super().__init__()
        self.target = nn.Sequential(
            nn.Dropout(DROPOUT), nn.Linear(dim, TRIPLEX_DIM), nn.GELU(), nn.Linear(TRIPLEX_DIM, TRIPLEX_DIM)
        )
        self.near_input = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(dim, TRIPLEX_DIM))
        self.near_place = _of_location()
        self.near = _attention_layer()
        self.whole_input = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(dim, TRIPLEX_DIM))
        self.whole_place = _of_location()
        self.whole = _attention_layer()
        self.fusion = nn.MultiheadAttention(TRIPLEX_DIM, HEADS, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(TRIPLEX_DIM)
        self.head = started_at(TRIPLEX_DIM, level)
        self.branch_heads = nn.ModuleList(started_at(TRIPLEX_DIM, level) for _ in range(3))

    def hidden(self, view: SpotInputs, rows: Tensor) -> Tensor:
        """The fused vector of each row: (rows, 64)."""
        return self._fused(view, rows)[0]

    def loss(self, view: SpotInputs, rows: Tensor, wanted: Tensor) -> Tensor:
        """The fused prediction's MSE and the branches' losses."""
        fused, branches = self._fused(view, rows)
        said = self.head(fused)
        total = mse_loss(said, wanted)
        for head, branch in zip(self.branch_heads, branches, strict=True):
            own = head(branch)
            total = total + (1 - FUSED_SHARE) * mse_loss(own, wanted) + FUSED_SHARE * mse_loss(own, said.detach())
        return total

    def _fused(self, view: SpotInputs, rows: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        target = self.target(view.features[rows])
        tokens, absent = self._neighbourhood(view, rows)
        whole = self._section(view, rows)
        keys = torch.cat([target[:, None], tokens], dim=1)
        hidden = torch.cat([torch.zeros_like(absent[:, :1]), absent], dim=1)
        answer = self.fusion(whole[:, None], keys, keys, key_padding_mask=hidden, need_weights=False)[0][:, 0]
        return self.norm(whole + answer), (target, masked_mean(tokens, ~absent), whole)

    def _neighbourhood(self, view: SpotInputs, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the spot and its neighbours (rows, 1 + near, 64), and which of them are absent."""
        ids = torch.cat([rows[:, None], view.near_ids[rows]], dim=1)
        absent = torch.cat([torch.zeros(len(rows), 1, dtype=torch.bool), ~view.near_present[rows]], dim=1)
        apart = view.location_mm[ids] - view.location_mm[rows][:, None]
        seen, place = torch.unique(ids, return_inverse=True)
        tokens = self.near_input(view.features[seen])[place] + self.near_place(apart)
        return self.near(tokens, src_key_padding_mask=absent), absent

    def _section(self, view: SpotInputs, rows: Tensor) -> Tensor:
        """Each row's token after all spots of its section have looked at each other: (rows, 64)."""
        asked = rows.numpy()
        out = torch.zeros(len(rows), TRIPLEX_DIM)
        for members in view.sections:
            wanted = np.flatnonzero(np.isin(asked, members))
            if not len(wanted):
                continue
            at = torch.from_numpy(members)
            tokens = self.whole_input(view.features[at]) + self.whole_place(view.location_mm[at])
            place = torch.from_numpy(np.searchsorted(members, asked[wanted]))
            out = out.index_copy(0, torch.from_numpy(wanted), self.whole(tokens[None])[0][place])
        return out


def _of_location() -> nn.Sequential:
    """A vector for x and y in millimetres."""
    return nn.Sequential(nn.Linear(2, TRIPLEX_DIM), nn.GELU(), nn.Linear(TRIPLEX_DIM, TRIPLEX_DIM))


def _attention_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        TRIPLEX_DIM, HEADS, 2 * TRIPLEX_DIM, 0.1, "gelu", batch_first=True, norm_first=True
    )
