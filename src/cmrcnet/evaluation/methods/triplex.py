"""TRIPLEX: target, neighbourhood and whole section fused."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from cmrcnet.evaluation.methods.baseline_inputs import View
from cmrcnet.evaluation.methods.deepspot import masked_mean
from cmrcnet.evaluation.methods.method import TrainingData
from cmrcnet.evaluation.methods.regression import RegressionPredictor, fit_regression, started_at
from cmrcnet.evaluation.methods.training_loop import Schedule

WIDTH = 64
HEADS = 4
DROPOUT = 0.3
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

    def fit(self, training: TrainingData) -> RegressionPredictor:
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
        self.target = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(dim, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.near_input = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(dim, WIDTH))
        self.near_place = _of_location()
        self.near = _attention_layer()
        self.whole_input = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(dim, WIDTH))
        self.whole_place = _of_location()
        self.whole = _attention_layer()
        self.fusion = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = started_at(WIDTH, level)
        self.branch_heads = nn.ModuleList(started_at(WIDTH, level) for _ in range(3))

    def hidden(self, view: View, rows: Tensor) -> Tensor:
        """The fused vector of each row: (rows, 64)."""
        return self._fused(view, rows)[0]

    def loss(self, view: View, rows: Tensor, wanted: Tensor) -> Tensor:
        """The fused prediction's MSE and the branches' losses."""
        fused, branches = self._fused(view, rows)
        said = self.head(fused)
        total = mse_loss(said, wanted)
        for head, branch in zip(self.branch_heads, branches, strict=True):
            own = head(branch)
            total = total + (1 - FUSED_SHARE) * mse_loss(own, wanted) + FUSED_SHARE * mse_loss(own, said.detach())
        return total

    def _fused(self, view: View, rows: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        target = self.target(view.features[rows])
        tokens, absent = self._neighbourhood(view, rows)
        whole = self._section(view, rows)
        keys = torch.cat([target[:, None], tokens], dim=1)
        hidden = torch.cat([torch.zeros_like(absent[:, :1]), absent], dim=1)
        answer = self.fusion(whole[:, None], keys, keys, key_padding_mask=hidden, need_weights=False)[0][:, 0]
        return self.norm(whole + answer), (target, masked_mean(tokens, ~absent), whole)

    def _neighbourhood(self, view: View, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the spot and its neighbours (rows, 1 + near, 64), and which of them are absent."""
        ids = torch.cat([rows[:, None], view.near_ids[rows]], dim=1)
        absent = torch.cat([torch.zeros(len(rows), 1, dtype=torch.bool), ~view.near_present[rows]], dim=1)
        apart = view.location_mm[ids] - view.location_mm[rows][:, None]
        seen, place = torch.unique(ids, return_inverse=True)
        tokens = self.near_input(view.features[seen])[place] + self.near_place(apart)
        return self.near(tokens, src_key_padding_mask=absent), absent

    def _section(self, view: View, rows: Tensor) -> Tensor:
        """Each row's token after all spots of its section have looked at each other: (rows, 64)."""
        asked = rows.numpy()
        out = torch.zeros(len(rows), WIDTH)
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
    return nn.Sequential(nn.Linear(2, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))


def _attention_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.1, "gelu", batch_first=True, norm_first=True)
