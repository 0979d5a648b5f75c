"""DeepSpot: a deep set over a spot and its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmrcnet.evaluation.methods.baseline_inputs import View
from cmrcnet.evaluation.methods.method import TrainingData
from cmrcnet.evaluation.methods.regression import MSERegressor, RegressionPredictor, fit_regression

WIDTH = 256
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

    def fit(self, training: TrainingData) -> RegressionPredictor:
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
        super().__init__(WIDTH, level)
        self.spot = _layer(dim)
        self.neighbour = _layer(dim)
        self.together = _layer(2 * WIDTH)

    def hidden(self, view: View, rows: Tensor) -> Tensor:
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
    return nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(dim, WIDTH), nn.GELU())
