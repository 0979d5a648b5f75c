"""The tokens of a section's spots, made from the views of all of them, some spots at a time.

With views v_is (see `spot_tokens`) the tokens of spot i are the v_is and, with a neighbourhood, their Gaussian means
u_is over the section; with ``standardize: section`` each feature has mean 0 and deviation 1 over the section's spots.
Both need every spot's views, so those lie in one array, which may be mapped from disk; the tokens of a few thousand
spots are made when they are asked for, and memory does not grow with the section.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from cmrcnet.config import FeaturesConfig

REACH = 3.0
"""Standard deviations beyond which a neighbour no longer counts."""
SPOTS_AT_ONCE = 1024
"""Spots whose tokens are in memory together while means and deviations are taken."""

_NO_SPREAD = 1e-6


class SectionTokens:
    """Tokens of the spots of one section.

    Parameters
    ----------
    views : array, shape (spots, views, dim), float32
        May be mapped from disk.
    location_um : array, shape (spots, 2)
        Where the spots are.
    config : FeaturesConfig
        Its `neighbourhood_um` and `standardize`.
    """

    def __init__(self, views: np.ndarray, location_um: np.ndarray, config: FeaturesConfig) -> None:
        self._views, self._location_um, self._config = views, location_um, config

    def __len__(self) -> int:
        return len(self._views)

    def take(self, rows: slice) -> np.ndarray:
        """Tokens of some spots: (spots, tokens, dim) float32.

        Parameters
        ----------
        rows : slice
            Without a step.
        """
        tokens = self._raw(rows)
        return self._scaling(tokens) if self._config.standardize == "section" else tokens

    def _raw(self, rows: slice) -> np.ndarray:
        """Tokens before they are standardised."""
        tokens = np.array(self._views[rows], np.float32)
        if self._config.neighbourhood_um <= 0:
            return tokens
        around = _gaussian_rows(self._views, self._location_um, self._tree, rows, self._config.neighbourhood_um)
        return np.concatenate([tokens, around], axis=1)

    @cached_property
    def _tree(self):
        from scipy.spatial import cKDTree

        return cKDTree(self._location_um)

    @cached_property
    def _scaling(self) -> Standardizing:
        steps = range(0, len(self), SPOTS_AT_ONCE)
        return Standardizing.over(
            [lambda start=start: self._raw(slice(start, start + SPOTS_AT_ONCE)) for start in steps]
        )


class Standardizing:
    """Shift and scale of each feature, so that it has mean 0 and deviation 1; one that does not vary becomes 0.

    Parameters
    ----------
    middle, deviation : numpy.ndarray, shape (tokens, dim), float64
    """

    def __init__(self, middle: np.ndarray, deviation: np.ndarray) -> None:
        self.middle, self.deviation = middle, deviation

    @classmethod
    def over(cls, blocks) -> Standardizing:
        """Of spots that come in blocks, each made by a function without arguments: only one block is held.

        Means and squares of blocks are joined as Chan, Golub and LeVeque (1983) do, which loses no digits.
        """
        count, middle, squares = 0, 0.0, 0.0
        for block in blocks:
            values = block().astype(np.float64)
            of_block = values.mean(axis=0)
            values -= of_block
            square = np.multiply(values, values, out=values).sum(axis=0)
            apart, more = of_block - middle, len(values)
            share = more / (count + more)
            squares = squares + square + apart**2 * (count * share)
            middle = of_block if count == 0 else middle + apart * share
            count += more
        return cls(np.asarray(middle), np.sqrt(np.asarray(squares) / max(count, 1)))

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens (spots, tokens, dim), standardised, float32."""
        varies = self.deviation > _NO_SPREAD * np.maximum(np.abs(self.middle), 1e-3)
        values = (tokens.astype(np.float64) - self.middle) / np.where(varies, self.deviation, 1.0)
        return np.where(varies, values, 0.0).astype(np.float32)


def standardized(tokens: np.ndarray) -> np.ndarray:
    """Each feature shifted and scaled to mean 0 and deviation 1 over the spots; one that does not vary becomes 0."""
    if len(tokens) == 0:
        return tokens.astype(np.float32)
    return Standardizing.over([lambda: tokens])(tokens)


def gaussian_means(tokens: np.ndarray, location_um: np.ndarray, deviation_um: float) -> np.ndarray:
    """Gaussian means of the spots' tokens over their section, the spot itself included.

    Parameters
    ----------
    tokens : array, shape (spots, ...)
    location_um : array, shape (spots, 2)
    deviation_um : float
        Standard deviation; spots beyond three of them do not count, so that memory grows with the spots only.

    Returns
    -------
    numpy.ndarray, float32
        As `tokens`.
    """
    from scipy.spatial import cKDTree

    if len(tokens) == 0:
        return tokens.astype(np.float32)
    return _gaussian_rows(tokens, location_um, cKDTree(location_um), slice(0, len(tokens)), deviation_um)


def _gaussian_rows(tokens: np.ndarray, location_um: np.ndarray, tree, rows: slice, deviation_um: float) -> np.ndarray:
    """`gaussian_means` of some spots; of the others only those within reach are read."""
    from scipy import sparse
    from scipy.spatial import cKDTree

    here = np.arange(len(tokens))[rows]
    near = cKDTree(location_um[here]).sparse_distance_matrix(tree, REACH * deviation_um, output_type="coo_matrix")
    itself = here[near.row] == near.col  # some versions list a spot at distance 0, others do not
    row = np.concatenate([near.row[~itself], np.arange(len(here))])
    column = np.concatenate([near.col[~itself], here])
    distance = np.concatenate([near.data[~itself], np.zeros(len(here))])
    within = np.unique(column)
    weights = np.exp(-(distance**2) / (2 * deviation_um**2))
    matrix = sparse.csr_matrix((weights, (row, np.searchsorted(within, column))), shape=(len(here), len(within)))
    matrix.sort_indices()
    flat = np.asarray(tokens[within]).reshape(len(within), -1)
    means = (matrix @ flat) / np.asarray(matrix.sum(axis=1))
    return np.asarray(means, np.float32).reshape(len(here), *tokens.shape[1:])
