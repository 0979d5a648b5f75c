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

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from cmrcnet.evaluation.methods.baseline_training import (
    BaselineInputs,
    Schedule,
    SpotInputs,
    TrainedBaseline,
    genes_learnt,
    train_baseline,
)
from cmrcnet.evaluation.methods.baselines import hvg_of, section_pearson, sparse_ridge
from cmrcnet.evaluation.methods.method import FoldData, Location, Prediction
from cmrcnet.heads.ridge import Ridge

PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
"""Of the output layer of the genes that were not trained, on a standardised hidden layer."""


class Regressor(nn.Module):
    """A network with a linear output layer; subclasses say what the hidden layer is."""

    head: nn.Linear  # from the hidden layer to the genes learnt

    def hidden(self, inputs: SpotInputs, rows: Tensor) -> Tensor:
        """The last hidden layer at some rows of the inputs: (rows, width)."""
        raise NotImplementedError

    def loss(self, inputs: SpotInputs, rows: Tensor, wanted: Tensor) -> Tensor:
        """Mean squared error of some rows, given their expression (rows, genes learnt)."""
        return mse_loss(self.head(self.hidden(inputs, rows)), wanted)


def output_layer(width: int, level: Tensor) -> nn.Linear:
    """A linear output layer whose bias is each gene's training mean (genes,) and whose weights start small."""
    head = nn.Linear(width, len(level))
    with torch.no_grad():
        head.bias.copy_(level)
        head.weight.mul_(0.1)
    return head


@dataclass(frozen=True, eq=False)
class Regression:
    """One network and the expression of the genes that it learns (spots, genes), HVG first: a `Trainable`."""

    network: Regressor
    inputs: SpotInputs
    targets: Tensor
    n_hvg: int

    def loss(self, rows: np.ndarray) -> Tensor:
        """The network's loss."""
        at = torch.from_numpy(rows)
        return self.network.loss(self.inputs, at, self.targets[at])

    def guess(self, rows: np.ndarray) -> np.ndarray:
        """The HVG, which are the first of the genes learnt."""
        with torch.no_grad():
            return self.network.head(self.hidden_at(rows))[:, : self.n_hvg].numpy()

    def hidden_at(self, rows: np.ndarray) -> Tensor:
        """The hidden layer at some training rows."""
        with torch.no_grad():
            return self.network.hidden(self.inputs, torch.from_numpy(rows))


@dataclass(frozen=True)
class RegressionMethod:
    """A method: one network for the genes learnt, and an output layer for the genes that it was not trained on.

    `build` takes the width of a spot's features and the training mean of each gene learnt.
    """

    name: str
    about: str
    build: Callable[[int, Tensor], Regressor]
    schedule: Schedule = field(default_factory=Schedule)

    def fit(self, training: FoldData) -> FittedRegression:
        """Train the network, then fit the output layer of the other genes."""
        inputs, columns = BaselineInputs(training), genes_learnt(training)
        targets = torch.from_numpy(np.asarray(training.expression[:, columns].todense(), np.float32))

        def make(rows: np.ndarray) -> Regression:
            network = self.build(inputs.width, targets[rows].mean(dim=0))
            return Regression(network, inputs.training, targets, len(training.sets["HVG"]))

        learnt = train_baseline(training, make, self.schedule)
        others = np.setdiff1d(np.arange(len(training.genes)), columns)
        penalty = _choose_penalty(training, learnt)
        hidden = learnt.trainable.hidden_at(np.arange(len(targets))).numpy()
        rest = sparse_ridge(hidden, training.expression[:, others], penalty, standardise=True)
        record = {**learnt.record, "genes_learnt": len(columns), "penalty_of_other_genes": penalty}
        return FittedRegression(training.genes, inputs, learnt.trainable.network, columns, others, rest, record)


def _choose_penalty(training: FoldData, learnt: TrainedBaseline) -> float:
    """The penalty whose closed-form output layer predicts the HVG of the validation group best."""
    if learnt.searcher is None:
        return PENALTIES[len(PENALTIES) // 2]
    inside, hvg = learnt.inside, hvg_of(training)
    hidden = learnt.searcher.hidden_at(np.arange(len(inside))).numpy()

    def score(penalty: float) -> float:
        ridge = sparse_ridge(hidden[inside], sparse.csr_matrix(hvg[inside]), penalty, standardise=True)
        return section_pearson(hvg[~inside], ridge.predict(hidden[~inside]), training.section_of[~inside])

    return max(PENALTIES, key=score)


@dataclass(frozen=True, eq=False)
class FittedRegression:
    """A trained network for some columns of the genes, and the output layer of the others."""

    genes: tuple[str, ...]
    inputs: BaselineInputs
    network: Regressor
    columns: np.ndarray
    others: np.ndarray
    rest: Ridge
    record: dict[str, Any]

    def predict(self, location: Location) -> Prediction:
        """Every gene at every spot."""
        mean = np.empty((len(location.spots), len(self.genes)), np.float32)
        with torch.no_grad():
            hidden = self.network.hidden(self.inputs.of(location), torch.arange(len(location.spots)))
            mean[:, self.columns] = self.network.head(hidden).numpy()
        mean[:, self.others] = self.rest.predict(hidden.numpy())
        return Prediction(self.genes, mean)


class LinearLayer(Regressor):
    """Nothing but the output layer: the hidden layer is the features themselves."""

    def __init__(self, dim: int, level: Tensor) -> None:
        super().__init__()
        self.head = output_layer(dim, level)

    def hidden(self, inputs: SpotInputs, rows: Tensor) -> Tensor:
        """The features."""
        return inputs.features[rows]


ST_NET = RegressionMethod(
    "st-net",
    "after ST-Net (He et al. 2020): linear output layer on frozen features, MSE, early stopping on a validation group",
    LinearLayer,
)
"""Features, a linear output layer over genes, MSE, trained by gradient and stopped early.

Source: He et al., "Integrating spatial gene expression and breast tumour morphology via deep learning", Nature
Biomedical Engineering 2020, doi 10.1038/s41551-020-0578-x.

Differs from the original: the encoder is the run's frozen one, seen through PCA-256, where ST-Net trains a
DenseNet-121 too; the optimiser is AdamW; the epoch is chosen on a validation group; genes are chosen and completed
as this file says.
"""


DEEPSPOT_DIM = 256
DROPOUT = 0.3


class DeepSet(Regressor):
    """``rho(phi(spot), mean over neighbours of phi'(neighbour))``; without neighbours the mean is 0.

    The order of the neighbours changes nothing.
    """

    def __init__(self, dim: int, level: Tensor) -> None:
        super().__init__()
        self.head = output_layer(DEEPSPOT_DIM, level)
        self.spot, self.neighbour, self.together = (
            nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(width, DEEPSPOT_DIM), nn.GELU())
            for width in (dim, dim, 2 * DEEPSPOT_DIM)
        )

    def hidden(self, inputs: SpotInputs, rows: Tensor) -> Tensor:
        """``rho``'s output."""
        ids, present = (each[rows] for each in inputs.neighbours)
        seen, column = torch.unique(ids, return_inverse=True)  # each neighbour once, however many spots it is near to
        around = masked_mean(self.neighbour(inputs.features[seen])[column], present)
        return self.together(torch.cat([self.spot(inputs.features[rows]), around], dim=1))


def masked_mean(values: Tensor, present: Tensor) -> Tensor:
    """Mean of `values` (rows, members, width) over the members that are `present` (rows, members); 0 without any."""
    weight = present.to(values.dtype)[:, :, None]
    return (values * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


DEEPSPOT = RegressionMethod(
    "deepspot",
    "after DeepSpot (Nonchev et al. 2025): deep set over a spot and its spatial neighbours, frozen features, MSE",
    DeepSet,
)
"""Spot and neighbours each through a network of their own (phi), neighbours averaged, both joined (rho), MSE.

Source: Nonchev et al., "DeepSpot: leveraging spatial context for enhanced spatial transcriptomics prediction from
H&E images", medRxiv 2025, doi 10.1101/2025.02.09.25321567; deep sets: Zaheer et al., NeurIPS 2017, arXiv
1703.06114.

Differs from the original: the frozen encoder is the run's (PCA-256), not a pathology foundation model; there are
no sub-spot tiles, only the spot and its spatial neighbours within 300 um (at most 24); neighbours are averaged;
plain MSE on log-normalised expression; genes are chosen and completed as this file says.
"""


TRIPLEX_DIM = 64
HEADS = 4
FUSED_SHARE = 0.5
"""Share of a branch's loss that is taken against the fused prediction instead of the truth."""


class ThreeScales(Regressor):
    """Target, neighbourhood and section branches, fused by attention of the section's vector over the other two.

    ``fused = norm(q + attention(q; target, neighbourhood))`` with q the spot's vector of the section branch. Loss, with
    y the truth and f the fused prediction, over the branches b::

        MSE(f, y) + sum_b (1 - share) MSE(b, y) + share MSE(b, f)          f fixed in the last term
    """

    def __init__(self, dim: int, level: Tensor) -> None:
        super().__init__()
        width = TRIPLEX_DIM
        self.target = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
        self.near_input = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(dim, width))
        self.near_location = _of_location()
        self.near = _attention_layer()
        self.whole_input = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(dim, width))
        self.whole_location = _of_location()
        self.whole = _attention_layer()
        self.fusion = nn.MultiheadAttention(width, HEADS, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = output_layer(width, level)
        self.branch_heads = nn.ModuleList(output_layer(width, level) for _ in range(3))

    def hidden(self, inputs: SpotInputs, rows: Tensor) -> Tensor:
        """The fused vector of each row: (rows, 64)."""
        return self._fused(inputs, rows)[0]

    def loss(self, inputs: SpotInputs, rows: Tensor, wanted: Tensor) -> Tensor:
        """The fused prediction's MSE and the branches' losses."""
        fused, branches = self._fused(inputs, rows)
        prediction = self.head(fused)
        total = mse_loss(prediction, wanted)
        for head, branch in zip(self.branch_heads, branches, strict=True):
            own = head(branch)
            to_fused = mse_loss(own, prediction.detach())
            total = total + (1 - FUSED_SHARE) * mse_loss(own, wanted) + FUSED_SHARE * to_fused
        return total

    def _fused(self, inputs: SpotInputs, rows: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        target = self.target(inputs.features[rows])
        tokens, absent = self._neighbourhood(inputs, rows)
        whole = self._section(inputs, rows)
        keys = torch.cat([target[:, None], tokens], dim=1)
        hidden = torch.cat([torch.zeros_like(absent[:, :1]), absent], dim=1)
        answer = self.fusion(whole[:, None], keys, keys, key_padding_mask=hidden, need_weights=False)[0][:, 0]
        return self.norm(whole + answer), (target, masked_mean(tokens, ~absent), whole)

    def _neighbourhood(self, inputs: SpotInputs, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the spot and its neighbours (rows, 1 + near, 64), and which of them are absent."""
        near, present = (each[rows] for each in inputs.neighbours)
        ids = torch.cat([rows[:, None], near], dim=1)
        absent = torch.cat([torch.zeros(len(rows), 1, dtype=torch.bool), ~present], dim=1)
        apart = inputs.location_mm[ids] - inputs.location_mm[rows][:, None]
        seen, column = torch.unique(ids, return_inverse=True)
        tokens = self.near_input(inputs.features[seen])[column] + self.near_location(apart)
        return self.near(tokens, src_key_padding_mask=absent), absent

    def _section(self, inputs: SpotInputs, rows: Tensor) -> Tensor:
        """Each row's token after attention over all spots of its section: (rows, 64)."""
        asked = rows.numpy()
        out = torch.zeros(len(rows), TRIPLEX_DIM)
        for members in inputs.sections:
            wanted = np.flatnonzero(np.isin(asked, members))
            if not len(wanted):
                continue
            at = torch.from_numpy(members)
            tokens = self.whole_input(inputs.features[at]) + self.whole_location(inputs.location_mm[at])
            column = torch.from_numpy(np.searchsorted(members, asked[wanted]))
            out = out.index_copy(0, torch.from_numpy(wanted), self.whole(tokens[None])[0][column])
        return out


def _of_location() -> nn.Sequential:
    """A vector for x and y in millimetres."""
    return nn.Sequential(nn.Linear(2, TRIPLEX_DIM), nn.GELU(), nn.Linear(TRIPLEX_DIM, TRIPLEX_DIM))


def _attention_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        TRIPLEX_DIM, HEADS, 2 * TRIPLEX_DIM, 0.1, "gelu", batch_first=True, norm_first=True
    )


TRIPLEX = RegressionMethod(
    "triplex",
    "after TRIPLEX (Chung et al. 2024): spot, neighbourhood and section encoders on frozen features, fused",
    ThreeScales,
    Schedule(most_epochs=30, batch_size=None),
)
"""Three encoders (the spot; its neighbourhood; the section), fused by cross-attention, each branch with a loss.

Source: Chung et al., "Accurate Spatial Gene Expression Prediction by integrating Multi-resolution features", CVPR
2024, arXiv 2403.07592.

Differs from the original: all three encoders see one frozen feature vector a spot (PCA-256), where TRIPLEX takes
token maps and trains its target encoder; the neighbourhood is the spatial neighbours within 300 um (at most 24);
locations enter through a small network of x and y instead of its convolutional position encoding; the network is
small (64 wide, one layer each); the share of the branch losses is ours; a step takes one section; genes are
chosen and completed as this file says.
"""
