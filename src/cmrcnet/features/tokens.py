"""Tokens of a section's locations, made from the scales of all of them, some locations at a time.

With the mean tokens v_is of scale s at location i (see `features.extract`), the tokens of location i are the v_is and,
with a neighbourhood of standard deviation sd, the Gaussian means over the section::

    u_is = sum_j g_ij v_js / sum_j g_ij,    g_ij = exp(-d_ij^2 / (2 sd^2))

where d_ij is the distance between two locations. With ``standardize="section"`` each feature of each token is then
shifted and scaled to mean 0 and deviation 1 over the section. Both need all locations, so the scales lie in one array,
which may be mapped from disk, and tokens are made when they are asked for: memory does not grow with the section.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cmrcnet.features.extract import FeatureSpec

REACH = 3.0
"""Standard deviations beyond which a neighbour no longer counts."""
LOCATIONS_AT_ONCE = 1024
"""Locations whose tokens are in memory together while means and deviations are computed."""

_NO_SPREAD = 1e-6


class SectionTokens:
    """Tokens of the locations of one section.

    Parameters
    ----------
    scales : array, shape (locations, scales, dim), float32
        May be mapped from disk.
    location_um : array, shape (locations, 2)
        Where the locations are.
    spec : FeatureSpec
        Its `neighbourhood_um` and `standardize`.
    """

    def __init__(self, scales: np.ndarray, location_um: np.ndarray, spec: FeatureSpec) -> None:
        self._scales, self._location_um, self._spec = scales, location_um, spec

    def __len__(self) -> int:
        return len(self._scales)

    def take(self, rows: slice) -> np.ndarray:
        """Tokens of some locations: (locations, tokens, dim) float32.

        Parameters
        ----------
        rows : slice
            Without a step.
        """
        if self._spec.standardize == "section" and len(self):
            return self._standardizer(self._raw(rows))
        return self._raw(rows)

    def _raw(self, rows: slice) -> np.ndarray:
        """Tokens before they are standardised."""
        own = np.array(self._scales[rows], np.float32)
        deviation_um = self._spec.neighbourhood_um
        if deviation_um <= 0 or not len(self):
            return own if deviation_um <= 0 else np.concatenate([own, own], axis=1)
        around = _gaussian_rows(self._scales, self._location_um, self._tree, rows, deviation_um)
        return np.concatenate([own, around], axis=1)

    @cached_property
    def _tree(self):
        from scipy.spatial import KDTree

        return KDTree(self._location_um)

    @cached_property
    def _standardizer(self) -> Standardizer:
        starts = range(0, len(self), LOCATIONS_AT_ONCE)
        return Standardizer.fit(self._raw(slice(start, start + LOCATIONS_AT_ONCE)) for start in starts)


class Standardizer:
    """Shift and scale each feature to mean 0 and deviation 1; one that does not vary becomes 0.

    Parameters
    ----------
    mean, deviation : numpy.ndarray, shape (tokens, dim), float64
    """

    def __init__(self, mean: np.ndarray, deviation: np.ndarray) -> None:
        self.mean, self.deviation = mean, deviation

    @classmethod
    def fit(cls, blocks: Iterable[np.ndarray]) -> Standardizer:
        """Mean and deviation of locations that come in blocks, of which only one is held.

        Means and squares of blocks are joined as by Chan, Golub and LeVeque (1983), which loses no digits.
        """
        count, mean, squares = 0, 0.0, 0.0
        for block in blocks:
            values = block.astype(np.float64)
            of_block = values.mean(axis=0)
            values -= of_block
            square = np.multiply(values, values, out=values).sum(axis=0)
            apart, more = of_block - mean, len(values)
            share = more / (count + more)
            squares = squares + square + apart**2 * (count * share)
            mean = of_block if count == 0 else mean + apart * share
            count += more
        return cls(np.asarray(mean), np.sqrt(np.asarray(squares) / max(count, 1)))

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens (locations, tokens, dim), standardised, float32."""
        varies = self.deviation > _NO_SPREAD * np.maximum(np.abs(self.mean), 1e-3)
        values = (tokens.astype(np.float64) - self.mean) / np.where(varies, self.deviation, 1.0)
        return np.where(varies, values, 0.0).astype(np.float32)


def _gaussian_rows(scales: np.ndarray, location_um: np.ndarray, tree, rows: slice, deviation_um: float) -> np.ndarray:
    """Gaussian means over the section around some locations, themselves included; only those in reach are read."""
    from scipy import sparse
    from scipy.spatial import KDTree

    here = np.arange(len(scales))[rows]
    near = KDTree(location_um[here]).sparse_distance_matrix(tree, REACH * deviation_um, output_type="coo_matrix")
    itself = here[near.row] == near.col  # some versions list a spot at distance 0, others do not
    row = np.concatenate([near.row[~itself], np.arange(len(here))])
    column = np.concatenate([near.col[~itself], here])
    distance = np.concatenate([near.data[~itself], np.zeros(len(here))])
    within = np.unique(column)
    weights = np.exp(-(distance**2) / (2 * deviation_um**2))
    matrix = sparse.csr_matrix((weights, (row, np.searchsorted(within, column))), shape=(len(here), len(within)))
    matrix.sort_indices()
    flat = np.asarray(scales[within]).reshape(len(within), -1)
    means = (matrix @ flat) / np.asarray(matrix.sum(axis=1))
    return np.asarray(means, np.float32).reshape(len(here), *scales.shape[1:])
