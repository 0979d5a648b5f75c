"""All scores of a section and a fold, each against its own function on arrays worked out here."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.errors import SectionError
from cmrcnet.evaluation.methods.method import Prediction
from cmrcnet.evaluation.metrics import scoring
from cmrcnet.evaluation.metrics.gene_metrics import METRICS, over_genes, spearman_per_gene, ssim_per_gene, ssim_windows
from cmrcnet.evaluation.metrics.noise_ceiling import noise_ceiling
from cmrcnet.evaluation.metrics.scoring import GENE_COLUMNS, SET_METRICS, Scorer, truth_of
from cmrcnet.evaluation.metrics.set_metrics import gene_gene_correlation, recall_of_highest
from cmrcnet.evaluation.protocol.protocol_info import PAPER
from cmrcnet.genes.gene_sets import gene_sets
from cmrcnet.genes.scaling import normalize
from cmrcnet.genes.spatial_stats import morans_i, pearson_per_gene, snap_to_lattice, spot_graph
from tests.genes.sections import section_of


@pytest.fixture(scope="module")
def cohort():
    return synthetic_cohort(patients=2, sections_per_patient=2, spots=80, genes=60, seed=3)


@pytest.fixture(scope="module")
def sets(cohort):
    return gene_sets(cohort.only(cohort.sections[:2]), size=8, lists={"MG": gene_sets(cohort, size=4)["HEG"]})


def predicted(section, genes, seed: int = 0) -> Prediction:
    """Half the truth, half noise, in another order of genes; the first gene is flat."""
    random = np.random.default_rng(seed)
    truth = truth_of(section, genes)[1].toarray()
    mean = 0.5 * truth + random.normal(0, 0.3, truth.shape)
    mean[:, 0] = 1.0
    return Prediction(tuple(genes[::-1]), mean[:, ::-1].astype(np.float32))


def scored(section, sets, **options) -> pd.DataFrame:
    scores = Scorer(set_size=8, **options).begin(sets)
    scores.add(section, predicted(section, sets["all"]))
    return pd.DataFrame(scores.rows()).set_index(["gene_set", "metric"])


def test_each_score_is_what_its_function_gives_on_the_set(cohort, sets):
    section, genes = cohort.read(cohort.sections[2]), list(sets["all"])
    rows = scored(section, sets)
    locations = [genes.index(gene) for gene in sets["HVG"]]
    truth = normalize(section.counts, 1e4).toarray()[:, [section.genes.index(gene) for gene in genes]].astype(float)
    guess = predicted(section, genes).take(tuple(genes)).astype(float)
    centres = section.spots.centre_px
    graph, windows = spot_graph(centres), ssim_windows(snap_to_lattice(centres))
    ceiling = noise_ceiling(section.counts, seed=0)[[section.genes.index(gene) for gene in genes]]
    pearson, moran, said = pearson_per_gene(truth, guess), morans_i(truth, graph), morans_i(guess, graph)
    kept = [place for place in locations if ceiling[place] > 0 and np.isfinite(pearson[place])]
    error, agreement, _ = gene_gene_correlation(truth[:, locations], guess[:, locations])
    expected = {
        "pearson": over_genes(pearson[locations])[0],
        "mse": ((truth - guess) ** 2)[:, locations].mean(),
        "mae": np.abs(truth - guess)[:, locations].mean(),
        "spearman": over_genes(spearman_per_gene(truth, guess)[locations])[0],
        "ssim": np.nanmean(ssim_per_gene(truth, guess, windows)[locations]),
        "moran_error": np.nanmean(np.abs(moran - said)[locations]),
        "variance_ratio": (guess.var(axis=0) / truth.var(axis=0))[locations].mean(),
        "r2": (1 - ((truth - guess) ** 2).mean(axis=0) / truth.var(axis=0))[locations].mean(),
        "ceiling": np.nanmean(ceiling[locations]),
        "pearson_share": pearson[kept].mean() / ceiling[kept].mean(),
        "gene_gene_error": error,
        "gene_gene_agreement": agreement,
        "pooled_pearson": over_genes(pearson[locations])[0],  # one section: the pool is the section
    }
    for metric, value in expected.items():
        assert rows.loc[("HVG", metric), "value"] == pytest.approx(value, abs=1e-5), metric
    common = (truth > 0).mean(axis=0) >= 0.1
    assert rows.loc[("all", "svg_recall"), "value"] == recall_of_highest(moran[common], said[common], 8)[0]


def test_every_set_has_every_metric_but_the_costly_ones_for_all_genes(cohort, sets):
    rows = scored(cohort.read(cohort.sections[2]), sets)
    every = {*METRICS, *SET_METRICS} - {"svg_recall"}
    for name in ("HEG", "HVG", "SVG", "MG"):
        assert set(rows.loc[name].index) == every
    costly = {"spearman", "ssim", "gene_gene_error", "gene_gene_agreement"}
    assert set(rows.loc["all"].index) == (every - costly) | {"svg_recall"}


def test_a_flat_prediction_is_counted_as_undefined_and_left_out_of_the_share(cohort, sets):
    section = cohort.read(cohort.sections[2])
    flat = {"one": sets["all"][:1], "all": sets["all"]}
    rows = scored(section, flat).loc["one"]
    for metric in ("pearson", "spearman", "moran_error", "pearson_share", "pooled_pearson"):
        assert np.isnan(rows.loc[metric, "value"]) and rows.loc[metric, "n_undefined"] == 1, metric
    assert rows.loc["variance_ratio", "value"] == pytest.approx(0.0) and rows.loc["variance_ratio", "n_undefined"] == 0
    zero = scored(section, flat, undefined="zero").loc["one"]
    assert zero.loc[["pearson", "spearman", "pearson_share", "pooled_pearson"], "value"].eq(0).all()
    assert np.isnan(zero.loc["moran_error", "value"])  # an error of 0 would be praise


def test_the_gene_table_holds_what_genes_csv_keeps(cohort, sets):
    section = cohort.read(cohort.sections[2])
    table = Scorer(set_size=8).begin(sets).add(section, predicted(section, sets["all"]))
    assert tuple(table.columns) == GENE_COLUMNS and list(table.gene) == list(sets["all"])
    listed = table.set_index("gene")["sets"]
    assert listed[sets["HEG"][0]].split() == [n for n in ("HEG", "HVG", "SVG", "MG") if sets["HEG"][0] in sets[n]]
    assert table["ceiling"].between(0, 1).sum() == table["ceiling"].notna().sum() > 0


def test_the_pool_is_over_all_sections_of_the_fold(cohort, sets):
    scores, parts = Scorer(set_size=8).begin(sets), []
    for section in cohort.only(cohort.sections[2:]):
        prediction = predicted(section, sets["all"])
        scores.add(section, prediction)
        parts.append((truth_of(section, sets["all"])[1].toarray(), prediction.take(sets["all"])))
    row = pd.DataFrame(scores.rows()).query("metric == 'pooled_pearson' and gene_set == 'all'").iloc[0]
    stacked = pearson_per_gene(*(np.vstack(each) for each in zip(*parts, strict=True)))
    assert row.value == pytest.approx(np.nanmean(stacked), abs=1e-6)
    assert row.section == " + ".join(cohort.sections[2:]) and row.patient == cohort.patients[1]


def test_under_paper_the_truth_names_heg_and_hvg(cohort, sets):
    section = cohort.read(cohort.sections[2])
    table = Scorer(set_size=8, protocol=PAPER).begin(sets).add(section, predicted(section, sets["all"]))
    marked = table[table["sets"].str.contains("HEG")]
    assert set(marked.gene) == set(table.sort_values("mean", ascending=False, kind="stable").gene[:8])


def test_the_truth_of_a_section_is_worked_out_once_for_all_methods_of_a_fold(cohort, sets, monkeypatch):
    calls = []
    monkeypatch.setattr(scoring, "truth_of", lambda *given: calls.append(1) or truth_of(*given))
    scorer, section = Scorer(set_size=8), cohort.read(cohort.sections[2])
    for seed in range(3):
        scorer.begin(sets).add(section, predicted(section, sets["all"], seed))
    assert len(calls) == 1
    fewer = {"HVG": sets["all"][:5], "all": sets["all"][:30]}
    scorer.begin(fewer).add(section, predicted(section, fewer["all"]))
    assert len(calls) == 2


def test_a_section_of_other_genes_is_refused():
    with pytest.raises(SectionError):
        truth_of(section_of([[1, 2], [2, 1]], "AB"), ("C", "D"))
