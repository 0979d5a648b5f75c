"""Structural similarity: scikit-image's on a full lattice, and its rules at edges and holes."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from cmrcnet.errors import ShapeMismatch
from cmrcnet.evaluation.metrics import gene_metrics as module
from cmrcnet.evaluation.metrics.gene_metrics import ssim_per_gene, ssim_windows
from cmrcnet.genes.spatial_stats import SpotLattice, snap_to_lattice

SIDE = 16
LOCATIONS = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2).astype(float)


def maps(seed: int, genes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.gamma(1.0, 1.0, (len(LOCATIONS), genes)) + LOCATIONS[:, :1] / 8
    return truth, 0.6 * truth + random.normal(0, 0.5, truth.shape)


def test_inside_a_full_lattice_it_is_what_scikit_image_computes():
    truth, guess = maps(0)
    windows = ssim_windows(snap_to_lattice(LOCATIONS * 200.0))
    inside = (LOCATIONS.min(axis=1) >= 5) & (LOCATIONS.max(axis=1) <= SIDE - 6)
    for gene in range(3):
        options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": np.ptp(truth[:, gene])}
        images = (each[:, gene].reshape(SIDE, SIDE) for each in (truth, guess))
        theirs, whole = structural_similarity(*images, full=True, **options)
        # Ours at the locations whose windows lie on the lattice; the mean of those is what scikit-image returns.
        ours = _map_of(truth[:, [gene]], guess[:, [gene]], windows)[inside]
        np.testing.assert_allclose(ours, whole.reshape(-1)[inside], atol=1e-10)
        assert ours.mean() == pytest.approx(theirs)


def _map_of(truth, guess, windows) -> np.ndarray:
    """The value at each spot: scores with the mean over spots taken away, by asking for one spot's window only."""
    found = []
    for spot in range(len(truth)):
        row = windows[[spot]]
        every = np.repeat(row.toarray(), len(truth), axis=0)  # every spot gets this spot's window
        found.append(ssim_per_gene(truth, guess, every)[0])
    return np.array(found)


def test_a_map_is_wholly_like_itself_and_unlike_its_negative():
    truth, _ = maps(1)
    windows = ssim_windows(snap_to_lattice(LOCATIONS))
    np.testing.assert_allclose(ssim_per_gene(truth, truth, windows), 1.0)
    mirrored = 2 * truth.mean(axis=0) - truth
    assert (ssim_per_gene(truth, mirrored, windows) < 0.1).all()


def test_empty_places_take_no_part():
    """A window at the edge of a section with holes, by hand."""
    locations = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 2.0], [9.0, 9.0]])
    windows = ssim_windows(SpotLattice("square", locations, 0.0)).toarray()
    raw = np.exp(-np.array([0.0, 1.0, 13.0]) / (2 * 1.5**2))
    np.testing.assert_allclose(windows[0], [*(raw / raw.sum()), 0.0])
    np.testing.assert_allclose(windows.sum(axis=1), 1.0)


def test_a_constant_truth_is_undefined_and_a_constant_prediction_is_low():
    truth, guess = maps(2, genes=2)
    truth[:, 0], guess[:, 1] = 1.0, truth[:, 1].mean()
    found = ssim_per_gene(truth, guess, ssim_windows(snap_to_lattice(LOCATIONS)))
    assert np.isnan(found[0]) and abs(found[1]) < 0.2


def test_blocks_of_genes_change_nothing(monkeypatch):
    truth, guess = maps(3, genes=5)
    windows = ssim_windows(snap_to_lattice(LOCATIONS))
    whole = ssim_per_gene(truth, guess, windows)
    monkeypatch.setattr(module, "_VALUES_AT_A_TIME", 2 * len(LOCATIONS))
    np.testing.assert_allclose(ssim_per_gene(truth, guess, windows), whole)


def test_other_shapes_are_refused():
    with pytest.raises(ShapeMismatch):
        ssim_per_gene(np.ones((3, 2)), np.ones((3, 1)), np.eye(3))
