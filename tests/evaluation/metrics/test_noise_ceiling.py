"""The noise ceiling finds the known answer on counts made with known rates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from cmrcnet.errors import BadOption, SectionError
from cmrcnet.evaluation.metrics import scoring
from cmrcnet.evaluation.metrics.noise_ceiling import noise_ceiling, spearman_brown
from cmrcnet.genes.scaling import normalize
from cmrcnet.genes.spatial_stats import pearson_per_gene
from tests.genes.sections import section_of


def made_counts(
    seed: int,
    *,
    spots: int = 600,
    genes: int = 120,
    reads: float = 3000.0,
    evenness: float = 20.0,
    overdispersion: float = 0.0,
):
    """Counts, and the log of what the same pipeline would measure without counting noise."""
    random = np.random.default_rng(seed)
    level = random.lognormal(0.0, 1.2, genes)
    pattern = np.exp(random.normal(0, random.uniform(0.1, 0.8, genes), (spots, genes)))
    share = level * pattern
    share /= share.sum(axis=1, keepdims=True)
    depth = random.gamma(evenness, reads / evenness, (spots, 1))
    means = share * depth
    if overdispersion:
        means = means * random.gamma(1 / overdispersion, overdispersion, means.shape)
    return sparse.csr_matrix(random.poisson(means)), np.log1p(share * 1e4)


def test_it_is_the_correlation_of_the_measurement_with_the_true_rates():
    counts, log_rates = made_counts(0)
    known = pearson_per_gene(normalize(counts, 1e4), log_rates)
    found = noise_ceiling(counts, 1e4, seed=0)
    assert known.min() < 0.3 and known.max() > 0.9  # the test spans noise to signal
    assert np.abs(found - known).mean() < 0.05
    assert abs(found.mean() - known.mean()) < 0.03
    assert np.corrcoef(found, known)[0, 1] > 0.97


def test_no_depth_and_no_signal_lower_it_and_depth_raises_it():
    shallow, deep = (noise_ceiling(made_counts(1, reads=n)[0], seed=0).mean() for n in (400.0, 20_000.0))
    assert shallow < 0.5 < 0.85 < deep
    flat = sparse.csr_matrix(np.random.default_rng(2).poisson(5.0, (400, 60)))
    found = noise_ceiling(flat, seed=0)
    # Nothing differs between spots: halves disagree half of the time, and what is left is chance.
    assert (found == 0).mean() > 0.3 and found.mean() < 0.2


@pytest.mark.parametrize(("reads", "evenness", "within"), [(500.0, 4.0, 0.03), (300.0, 2.0, 0.05), (3000.0, 4.0, 0.03)])
def test_uneven_depth_is_no_signal(reads, evenness, within):
    """Both halves share that a shallow spot has lower logs; halves alone would give .52, .53 and .71."""
    counts, log_rates = made_counts(0, reads=reads, evenness=evenness)
    known = pearson_per_gene(normalize(counts, 1e4), log_rates).mean()
    assert np.nanmean(noise_ceiling(counts, seed=0)) == pytest.approx(known, abs=within)


@pytest.mark.parametrize(("reads", "evenness"), [(3000.0, 20.0), (500.0, 4.0)])
def test_overdispersed_counts_need_to_be_named_so(reads, evenness):
    counts, log_rates = made_counts(0, reads=reads, evenness=evenness, overdispersion=0.2)
    known = pearson_per_gene(normalize(counts, 1e4), log_rates).mean()
    assert np.nanmean(noise_ceiling(counts, seed=0, overdispersion=0.2)) == pytest.approx(known, abs=0.04)
    assert np.nanmean(noise_ceiling(counts, seed=0)) > known + 0.2  # an upper bound, as the report says


def test_one_split_against_the_obvious_way():
    """The fast path (sums over stored counts, few depths) against dense arrays and sums over the distribution."""
    counts, _ = made_counts(3, spots=40, genes=30, evenness=4.0)
    dense = counts.toarray()
    one = counts.copy()
    one.data = np.random.default_rng(7).binomial(counts.data.astype(int), 0.5)
    depth, share, k = dense.sum(axis=1, keepdims=True), dense.sum(axis=0) / dense.sum(), np.arange(3000)[:, None, None]

    def less(values, depth):
        """Log-normalised values less what their depth alone gives."""
        mean = stats.poisson.pmf(k, share * depth) * np.log1p(k * 1e4 / depth)
        return np.log1p(values / values.sum(axis=1, keepdims=True) * 1e4) - mean.sum(axis=0)

    r = np.maximum(pearson_per_gene(less(one.toarray(), depth / 2), less(dense - one.toarray(), depth / 2)), 0)
    whole = less(dense, depth).std(axis=0) / normalize(counts, 1e4).toarray().std(axis=0)
    expected = np.minimum(np.sqrt(2 * r / (1 + r)) * whole, 1)
    np.testing.assert_allclose(noise_ceiling(counts, 1e4, seed=7, repeats=1), expected, atol=0.01)


def test_what_differs_only_in_depth_has_no_signal():
    """Library size is divided out: spots of one composition at very different depths agree in nothing."""
    random = np.random.default_rng(4)
    share = random.dirichlet(np.full(40, 5.0))
    counts = random.poisson(share * random.uniform(2_000, 20_000, (500, 1)))
    assert noise_ceiling(sparse.csr_matrix(counts), seed=0).mean() < 0.3


def test_undefined_is_nan_and_disagreement_is_zero():
    counts = np.zeros((8, 4), dtype=int)
    counts[:, 0] = [90, 300] * 4
    counts[2, 1] = 1  # a single molecule: one half never holds it
    counts[[1, 5], 3] = 1  # two molecules: where both halves hold one, they never agree
    found = noise_ceiling(sparse.csr_matrix(counts), seed=0)
    assert np.isnan(found[[1, 2]]).all() and found[3] == 0


def test_the_seed_decides_and_a_median_library_size_is_understood():
    counts, _ = made_counts(5, spots=60, genes=30)
    np.testing.assert_array_equal(noise_ceiling(counts, seed=1), noise_ceiling(counts, seed=1))
    assert not np.array_equal(noise_ceiling(counts, seed=1), noise_ceiling(counts, seed=2))
    assert np.isfinite(noise_ceiling(counts, "median", seed=1)).all()


def test_spearman_brown_by_hand():
    assert spearman_brown(0.5) == pytest.approx(2 / 3) and spearman_brown(1.0) == 1.0 and spearman_brown(0.0) == 0.0


def test_expression_in_place_of_counts_and_no_split_are_refused():
    with pytest.raises(SectionError):
        noise_ceiling(sparse.csr_matrix([[0.5, 1.0]]), seed=0)
    with pytest.raises(BadOption, match="repeats is 0"):
        noise_ceiling(sparse.csr_matrix([[1, 2]]), seed=0, repeats=0)
    with pytest.raises(BadOption, match="overdispersion is -1"):
        noise_ceiling(sparse.csr_matrix([[1, 2]]), seed=0, overdispersion=-1)


def test_a_section_is_split_once_whatever_the_fold(monkeypatch):
    calls = []
    monkeypatch.setattr(scoring, "noise_ceiling", lambda *a, **k: calls.append(1) or np.full(3, 0.5))
    scorer, section = scoring.Scorer(), section_of([[1, 2, 3], [3, 2, 1], [2, 2, 5], [1, 4, 1]], "ABC")
    for genes in ("ABC", "AB", "ABC"):
        assert scorer.truth(section, genes).ceiling.tolist() == [0.5] * len(genes)
    assert len(calls) == 1
