"""Tokens of a section's locations, made from the scales of all of them, some locations at a time.

With the mean tokens v_is of scale s at location i (see `features.extract`), the tokens of location i are the v_is and,
with a neighbourhood of standard deviation sd, the Gaussian means over the section::

    u_is = sum_j g_ij v_js / sum_j g_ij,    g_ij = exp(-d_ij^2 / (2 sd^2))

where d_ij is the distance between two locations. A location that is the mean of sub-windows (`features.dense`) has the
mean of the u at the centres of these. With ``standardize="section"`` each feature of each token is then
shifted and scaled to mean 0 and deviation 1 over the section. Both need all locations, so the scales lie in one array,
which may be mapped from disk, and tokens are made when they are asked for: memory does not grow with the section, nor
with the number of anchors around a location.

On a map of fine pitch j runs over **anchors** instead, whole locations at the pitch of spots, and mean and deviation
are those of the anchors: then the tokens of a location depend neither on the pitch nor on the window that is asked for,
and cost the same at any pitch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.errors import CmrcnetWarning, TooFew

if TYPE_CHECKING:
    from scipy.spatial import KDTree

    from cmrcnet.features.extract import FeatureSpec

REACH = 3.0
"""Standard deviations beyond which a neighbour no longer counts."""
LOCATIONS_AT_ONCE = 1024
"""Locations whose tokens are in memory together while means and deviations are computed."""
PAIRS_AT_ONCE = 1 << 21
"""Pairs of a location and an anchor around it that are in memory together: about 300 MB."""
VALUES_AT_ONCE = 1 << 24
"""Features of anchors that are averaged together: 128 MB."""

FEWEST_STANDARDISED = 10
"""Locations below which the mean and deviation of a section are poorly known."""

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
        Its `neighbourhood_um`, `standardize` and `window_um`.
    anchors : int, optional
        So many of the locations, from the first on, are anchors; all when left out.
    sub_windows : array, shape (locations,), optional
        Sub-windows along a side of each location; those of whole locations when left out.
    """

    def __init__(
        self,
        scales: np.ndarray,
        location_um: np.ndarray,
        spec: FeatureSpec,
        anchors: int | None = None,
        sub_windows: np.ndarray | None = None,
    ) -> None:
        self._scales, self._location_um, self._spec = scales, location_um, spec
        self._anchors = len(scales) if anchors is None else anchors
        self._sub_windows = np.full(len(scales), spec.sub_windows) if sub_windows is None else sub_windows
        self._standardizer: Standardizer | None = None

    def __len__(self) -> int:
        return len(self._scales)

    def take(self, rows: slice) -> np.ndarray:
        """Tokens of some locations: (locations, tokens, dim) float32.

        Parameters
        ----------
        rows : slice
            Without a step.
        """
        start, stop, _ = rows.indices(len(self))
        tokens = self._raw(start, stop)
        if self._spec.standardize == "section" and len(self):
            if self._standardizer is None:
                has_all = start == 0 and stop >= self._anchors
                self._standardizer = Standardizer.fit(
                    tokens[part] if has_all else self._raw(part.start, part.stop) for part in _parts(0, self._anchors)
                )
            for part in _parts(0, len(tokens)):
                tokens[part] = self._standardizer(tokens[part])
        return tokens

    def _raw(self, start: int, stop: int) -> np.ndarray:
        """Tokens before they are standardised."""
        own, deviation_um = self._scales[start:stop], self._spec.neighbourhood_um
        if deviation_um <= 0:
            return np.array(own, np.float32)
        scales = own.shape[1]
        tokens = np.empty((len(own), 2 * scales, *own.shape[2:]), np.float32)
        tokens[:, :scales] = own
        tile = np.floor(self._location_um[start:stop] / (REACH * deviation_um))
        near_each_other = np.lexsort(tile.T)  # so that those of a part have the same anchors around them
        for part in _parts(0, len(own)):
            for rows in self._with_few_pairs(start + near_each_other[part]):
                points, of = self._centres(rows)
                anchors = self._scales[: self._anchors]
                tokens[rows - start, scales:] = _gaussian_rows(anchors, self._tree, points, of, deviation_um)
        return tokens

    def _with_few_pairs(self, rows: np.ndarray) -> list[np.ndarray]:
        """Locations in parts that have at most about `PAIRS_AT_ONCE` anchors around them, but one location each."""
        points, of = self._centres(rows)
        if len(points) * self._anchors <= PAIRS_AT_ONCE:
            return [rows]
        reach = REACH * self._spec.neighbourhood_um
        pairs = np.cumsum(np.bincount(of, self._tree.query_ball_point(points, reach, return_length=True)))
        return np.split(rows, np.flatnonzero(np.diff(pairs // PAIRS_AT_ONCE)) + 1)

    @cached_property
    def _tree(self):
        from scipy.spatial import KDTree

        return KDTree(self._location_um[: self._anchors])

    def _centres(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centres of the sub-windows of some locations, (centres, 2) in um, and which location each belongs to."""
        here, counts = self._location_um[rows], self._sub_windows[rows]
        points, of = [], []
        for count in np.unique(counts).tolist():
            which = np.flatnonzero(counts == count)
            steps = (np.arange(count) - (count - 1) / 2) * self._spec.window_um
            apart = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
            points.append((here[which, None] + apart).reshape(-1, 2))
            of.append(np.repeat(which, count * count))
        order = np.argsort(np.concatenate(of), kind="stable")
        return np.concatenate(points)[order], np.concatenate(of)[order]


def check_standardised(spec: FeatureSpec, locations: int, slide: str) -> None:
    """Refuse to standardise features within a section of one location, and warn of a few.

    Parameters
    ----------
    locations : int
        Over which mean and deviation are taken: the anchors, where there are any.
    slide : str
        Its name.

    Raises
    ------
    TooFew
        One location: all its features would be 0, whatever the slide shows.

    Warns
    -----
    CmrcnetWarning
        Fewer than `FEWEST_STANDARDISED`.
    """
    if spec.standardize != "section":
        return
    if locations == 1:
        hint = "give more locations, or a grid over the tissue at a finer pitch (--grid-um)"
        raise TooFew(f"location of {slide} to standardise features within", 1, 2, hint)
    if 0 < locations < FEWEST_STANDARDISED:
        warnings.warn(
            f"Features of {slide} are standardised within {locations} locations only, so that each depends much on the "
            f"others; {FEWEST_STANDARDISED} or more are wanted.",
            CmrcnetWarning,
            stacklevel=3,
        )


def _parts(start: int, stop: int) -> Iterator[slice]:
    for first in range(start, stop, LOCATIONS_AT_ONCE):
        yield slice(first, min(first + LOCATIONS_AT_ONCE, stop))


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Shift and scale each feature to mean 0 and deviation 1; one that does not vary becomes 0.

    Parameters
    ----------
    mean, deviation : numpy.ndarray, shape (tokens, dim), float64
    """

    mean: np.ndarray
    deviation: np.ndarray

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


def _gaussian_rows(
    scales: np.ndarray, tree: KDTree, points: np.ndarray, of: np.ndarray, deviation_um: float
) -> np.ndarray:
    """Gaussian means over the anchors around some points, of which each location of `of` (ascending) has the mean.

    The nearest anchor always counts, also beyond the reach; only anchors that count are read.
    """
    from scipy import sparse
    from scipy.spatial import KDTree

    near = KDTree(points).sparse_distance_matrix(tree, REACH * deviation_um, output_type="coo_matrix")
    least, nearest = (np.asarray(each) for each in tree.query(points))
    listed = nearest[near.row] == near.col  # some versions list a pair at distance 0, others do not
    row = np.concatenate([near.row[~listed], np.arange(len(points))])
    column = np.concatenate([near.col[~listed], nearest])
    distance = np.concatenate([near.data[~listed], least])
    within = np.unique(column)
    weights = np.exp((least[row] ** 2 - distance**2) / (2 * deviation_um**2))
    matrix = sparse.csr_matrix((weights, (row, np.searchsorted(within, column))), shape=(len(points), len(within)))
    matrix.sort_indices()
    total = np.asarray(matrix.sum(axis=1)).reshape(-1, 1)
    locations, counts = np.unique(of, return_counts=True)
    if len(locations) < len(of):  # a mean of means
        share = sparse.csr_matrix((1 / (counts[of] * total[:, 0]), (of, np.arange(len(of)))))
        matrix, total = share @ matrix, np.ones((len(locations), 1))
    means = np.empty((len(locations), *scales.shape[1:]), np.float32)
    step = max(1, VALUES_AT_ONCE // len(within))
    for scale in range(scales.shape[1]):
        for first in range(0, scales.shape[2], step):
            some = slice(first, first + step)
            means[:, scale, some] = (matrix @ scales[:, scale, some][within]) / total
    return means
