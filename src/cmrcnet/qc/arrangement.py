"""Arrangement of the spots on the picture: the stated one against shifted, turned, mirrored and shuffled ones.

Tissue and counts vary together: dense tissue yields more transcripts, and its leading expression components follow
the stain. Five colour statistics under each spot explain log depth, log number of genes and two expression components
by ridge regression, scored by the leave-one-out R2 (exact, from the hat matrix). The same is computed for other likely
arrangements; one that fits much better AND covers the tissue as well is reported. Shuffled pairs are recognised without
the picture: expression that varied smoothly over the section no longer does (Moran's I).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse

from cmrcnet.genes.scaling import library_sizes, normalize
from cmrcnet.heads.ridge import ridge_solutions
from cmrcnet.qc.section_summary import Finding, SpotMaps

FEWEST_SPOTS = 50
"""With fewer spots, random arrangements fit as well as true ones: there is no finding."""
STEP_UM, REACH_UM = 100.0, 500.0
"""Shifts are tried on a grid of this step, to this distance in x and y."""
GAIN = 0.08
"""R2 that another arrangement must gain over the stated one; twice as much with fewer than 150 spots."""
FIT = 0.12
"""Least R2 of the other arrangement; sound sections of over 150 spots reach 0.19 and more."""
NO_FIT = 0.05
"""R2 of at most this, or of the best permuted pairs, explains nothing."""
TISSUE_LOST = 0.03
"""Share of tissue that the other arrangement may lose."""
SMOOTH_Z = 3.5
"""Below this z of Moran's I in every target, expression is as rough as shuffled."""
PERMUTATIONS = 99
MOST_SPOTS = 1_500
"""More spots than this are subsampled (seed 0)."""
RIDGE_PENALTY = 1.0

TURNS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "turned by 90 degrees": ((0, -1), (1, 0)),
    "turned by 180 degrees": ((-1, 0), (0, -1)),
    "turned by 270 degrees": ((0, 1), (-1, 0)),
    "mirrored left to right": ((-1, 0), (0, 1)),
    "mirrored top to bottom": ((1, 0), (0, -1)),
    "with x and y exchanged": ((0, 1), (1, 0)),
    "mirrored at the other diagonal": ((0, -1), (-1, 0)),
}


@dataclass(frozen=True)
class Arrangement:
    """Fit of the stated arrangement and of the best other one.

    Parameters
    ----------
    outcome : {"fits", "shuffled", "misaligned", "cannot tell"}
        "fits": the stated arrangement explains something, and no other one much more.
    stated, permuted : float
        Leave-one-out R2 of the stated arrangement, mean over targets, and the largest of `PERMUTATIONS` permuted ones.
    best, best_is : float, str
        R2 and description of the best other arrangement that lies on tissue as well.
    smooth_z : float
        Largest z of Moran's I among the targets.
    spots : int
        Number of spots used.
    """

    outcome: Literal["fits", "shuffled", "misaligned", "cannot tell"]
    stated: float = float("nan")
    permuted: float = float("nan")
    best: float = float("nan")
    best_is: str = ""
    smooth_z: float = float("nan")
    spots: int = 0


def judge_arrangement(maps: SpotMaps, centre_px: np.ndarray, counts: sparse.csr_matrix) -> Arrangement:
    """Compare the stated arrangement of a section's spots with others.

    `centre_px` (spots, 2) are in level-0 pixels of the slide of `maps`, `counts` (spots, genes) are raw.
    """
    random = np.random.default_rng(0)
    used = np.flatnonzero(library_sizes(counts) > 0)
    if len(used) < FEWEST_SPOTS:
        return Arrangement("cannot tell", spots=len(used))
    if len(used) > MOST_SPOTS:
        used = np.sort(random.choice(used, MOST_SPOTS, replace=False))
    locations, targets = np.asarray(centre_px)[used], expression_targets(counts[used])
    features, covered = maps.at(locations)
    stated = loo_r2(features, targets)
    shuffles = [random.permutation(len(used)) for _ in range(PERMUTATIONS)]
    permuted = max(loo_r2(features, targets[order]) for order in shuffles)
    smooth = _smoothness(locations, targets, shuffles)
    best, best_is = -np.inf, ""
    for name, other in _others(locations, maps):
        features, share = maps.at(other)
        if share.mean() >= covered.mean() - TISSUE_LOST:
            score = loo_r2(features, targets)
            if score > best:
                best, best_is = score, name
    outcome = "fits" if stated >= max(FIT, permuted) else "cannot tell"
    if best >= max(FIT, 2 * permuted) and best - stated >= _least_gain(len(used)):
        outcome = "misaligned"
    elif smooth < SMOOTH_Z and stated <= max(permuted, NO_FIT):
        outcome = "shuffled"
    return Arrangement(outcome, stated, permuted, float(best), best_is, smooth, len(used))


def arrangement_finding(name: str, fit: Arrangement) -> Finding | None:
    """The finding of section `name`, or None when its arrangement fits or cannot be judged."""
    if fit.outcome == "shuffled":
        sentence = (
            f"The spots of {name} look shuffled: neighbouring spots are no more alike than permuted ones (Moran's I "
            f"z = {fit.smooth_z:.1f}; sound sections have {SMOOTH_Z:g} and more) and the picture explains nothing of "
            f"the counts (R2 {fit.stated:.2f}); check that the counts' spot names and the spot file belong together."
        )
        return Finding("shuffled", (name,), fit.smooth_z, SMOOTH_Z, sentence)
    if fit.outcome == "misaligned":
        sentence = (
            f"The spots of {name} may not lie where they are said to: {fit.best_is} they fit its picture better (R2 "
            f"of depth and expression {fit.best:.2f} against {fit.stated:.2f}); look at the spots on the picture."
        )
        return Finding("misaligned", (name,), fit.best - fit.stated, _least_gain(fit.spots), sentence)
    return None


def expression_targets(counts: sparse.csr_matrix) -> np.ndarray:
    """Log depth, log number of genes, and two principal components of the 500 most variable genes, standardised.

    Of raw counts (spots, genes): (spots, 4) float64.
    """
    logged = normalize(counts)
    square = np.asarray(logged.multiply(logged).mean(axis=0)).ravel()
    variance = square - np.asarray(logged.mean(axis=0)).ravel() ** 2
    chosen = logged[:, np.argsort(-variance, kind="stable")[:500]].toarray().astype(np.float64)
    left, size, _ = np.linalg.svd(chosen - chosen.mean(axis=0), full_matrices=False)
    genes = np.diff(sparse.csr_matrix(counts).indptr)
    parts = np.zeros((len(chosen), 2))
    parts[:, : min(2, len(size))] = (left * size)[:, :2]
    targets = np.column_stack([np.log1p(library_sizes(counts)), np.log1p(genes), parts])
    deviation = targets.std(axis=0)
    return (targets - targets.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1)


def loo_r2(features: np.ndarray, targets: np.ndarray) -> float:
    """Leave-one-out R2 of a ridge regression with intercept, mean over the targets.

    The residual of a spot left out is ``r / (1 - h)`` with its leverage h (Allen 1974, PRESS). Features are (spots,
    features), targets (spots, targets) and standardised.
    """
    values = features.astype(np.float64) - features.mean(axis=0)
    deviation = values.std(axis=0)
    values /= np.where(deviation > 1e-6, deviation, 1)
    (solved,) = ridge_solutions(values.T @ values, values.T, (RIDGE_PENALTY,))
    leverage = (values * solved.T).sum(axis=1) + 1 / len(values)
    left_out = (targets - targets.mean(axis=0) - values @ (solved @ targets)) / (1 - leverage)[:, None]
    return float(1 - (left_out**2).mean())


def _least_gain(spots: int) -> float:
    return GAIN if spots >= 150 else 2 * GAIN


def _others(locations: np.ndarray, maps: SpotMaps):
    """Yield the description and the locations (spots, 2) of every other arrangement."""
    steps = np.arange(-REACH_UM, REACH_UM + 1, STEP_UM)
    for x in steps:
        for y in steps:
            if x or y:
                yield f"shifted by {x:.0f} um in x and {y:.0f} um in y", locations + np.array([x, y]) / maps.mpp
    for about, middle in (
        ("their own middle", (locations.min(axis=0) + locations.max(axis=0)) / 2),
        ("the middle of the picture", np.array(maps.size_px) / 2),
    ):
        for name, turn in TURNS.items():
            yield f"{name} about {about}", (locations - middle) @ np.array(turn, float).T + middle


def _smoothness(locations: np.ndarray, targets: np.ndarray, shuffles: list[np.ndarray]) -> float:
    """Largest z of Moran's I (four targets, up to six neighbours within 1.6 times the usual distance)."""
    from scipy.spatial import KDTree

    found: Any = KDTree(locations).query(locations, k=min(7, len(locations)))
    distance, near = found
    close = distance[:, 1:] < 1.6 * np.median(distance[:, 1])
    weight = close / np.maximum(close.sum(axis=1, keepdims=True), 1)

    def moran(values: np.ndarray) -> np.ndarray:
        return (values * (values[near[:, 1:]] * weight[..., None]).sum(axis=1)).mean(axis=0)

    null = np.array([moran(targets[order]) for order in shuffles])
    return float(((moran(targets) - null.mean(axis=0)) / np.maximum(null.std(axis=0), 1e-9)).max())
