"""Tables of every kind and pairs of every size through training, bank, prediction and evaluation."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import cmrcnet
from cmrcnet import Cohort, Spots, synthetic_cohort
from cmrcnet.datasets.synthetic_tables import planted_cohort, planted_slides
from cmrcnet.errors import BadOption, SectionError
from cmrcnet.evaluation.methods.attention_pooling import ATTENTION_POOLING, AttentionTowers, Bags
from cmrcnet.evaluation.methods.baseline_training import Schedule
from cmrcnet.evaluation.report.evaluation_report import write_report
from cmrcnet.genes.table import scaling_of
from cmrcnet.testing import assert_prediction_table, quick_config

pytestmark = pytest.mark.filterwarnings("ignore:This training found no signal")
CONFIG = quick_config().override({"evaluation.set_size": 4})
SCALES = CONFIG.override({"features.scales_um": [112]})


@pytest.fixture(scope="module")
def base():
    return synthetic_cohort(patients=2, spots=16, genes=24)


@pytest.mark.parametrize(
    ("kind", "least", "units"),
    [("continuous", -0.1, "standard deviations"), ("proportions", -0.1, "log-ratio"), ("binary", 0.0, "share of")],
)
def test_each_kind_is_learnt_stored_and_predicted_in_its_units(base, tmp_path, kind, least, units):
    cohort = planted_cohort(base, kind, features=6)
    model = cmrcnet.fit(cohort, CONFIG)
    model.save_pretrained(tmp_path / "model")
    model = cmrcnet.TrainedModel.from_pretrained(tmp_path / "model")
    cmrcnet.build_bank(model, cohort).save(tmp_path / "bank")
    bank = cmrcnet.ReferenceBank.load(tmp_path / "bank")
    section = cohort.read("P1S1")
    table = cmrcnet.predict(model, section.slide, bank=bank, spots=section.spots)
    assert_prediction_table(table)
    assert units in table.uns["cmrcnet"]["units"]
    assert table.uns["cmrcnet"]["table_kind"] == kind
    assert (table.X.min() >= least) == (kind == "binary")  # the others lie on both sides of 0
    if kind == "proportions":
        np.testing.assert_allclose(scaling_of(table).inverse(table.X, list(table.var_names)).sum(axis=1), 1)
    with pytest.raises(SectionError, match=f"of kind counts, and the model or cohort holds {kind}"):
        cmrcnet.build_bank(model, base)


def test_the_report_of_another_table_speaks_of_features_and_has_no_ceiling(base, tmp_path):
    run = cmrcnet.evaluate(planted_cohort(base, "proportions", features=6), CONFIG, methods=["ridge", "depth-null"])
    assert run.scores[run.scores.metric == "ceiling"].value.isna().all()
    sentence = run.protocol_info.to_text()
    assert "6 features scored; in 0 of 12 feature-section pairs" in sentence
    assert (run.genes.detected == 1).all()  # a log-ratio below 0 is measured like any other
    assert "in centred log-ratio of proportions, with shares of 0.01 or more; there is no noise ceiling" in sentence
    page = write_report(run, tmp_path / "report.html").read_text()
    text = page.split("<script")[0].split("</style>")[1]
    assert "Features" in text
    assert not any(word in text for word in (">Genes<", " genes ", "Find a gene", "gene-section", "gene-gene"))
    assert '"columns":["feature",' in page


def test_a_region_of_one_location_is_that_location_and_a_larger_one_its_mean(base):
    cohort = planted_cohort(base, "continuous", features=6)

    def as_regions(section, members):
        spots = section.spots
        return replace(section, spots=Spots(spots.barcodes, spots.centre_px, spots.diameter_um, members))

    single = Cohort.of([as_regions(each, tuple(each.spots.centre_px[:, None])) for each in cohort])
    plain, alike = cmrcnet.fit(cohort, SCALES), cmrcnet.fit(single, SCALES)
    assert plain.fingerprint == alike.fingerprint
    bank, section = cmrcnet.build_bank(plain, cohort), single.read("P1S1")
    one, two = (
        cmrcnet.predict(plain, section.slide, bank=bank, spots=spots)
        for spots in (cohort.read("P1S1").spots, section.spots)
    )
    np.testing.assert_allclose(one.X, two.X, atol=1e-5)
    wide = as_regions(cohort.read("P1S1"), tuple(np.array([each, each + 30]) for each in section.spots.centre_px))
    assert cmrcnet.predict(plain, wide.slide, bank=bank, spots=wide.spots).shape == (16, 6)
    with pytest.raises(BadOption, match="one scale or more"):
        cmrcnet.fit(single, CONFIG)


def test_retrieval_of_a_table_with_one_row_a_slide_finds_patients():
    cohort, _ = planted_slides(slides=6, groups=3, spots=6, features=4)
    short = replace(ATTENTION_POOLING, schedule=Schedule(most_epochs=1, evaluate_every=1))
    run = cmrcnet.evaluate(cohort, SCALES, methods=["cmrcnet", short])
    guess = run.genes[run.genes.method == "attention-pooling"]
    assert np.isfinite(guess.pearson).all()
    table = run.predictions["G1"]
    assert list(table.obs_names) == ["P1S1", "P2S1"]
    found = table.uns["cmrcnet"]["neighbour_spots"]
    assert set(found["barcode"]) <= {f"P{number}S1" for number in range(3, 7)}
    assert run.protocol_info.patient_disjoint


def test_attention_starts_as_the_mean_and_learns_which_locations_count():
    random = np.random.default_rng(0)
    counts = random.integers(3, 7, 40)
    first = np.concatenate([[0], np.cumsum(counts)])
    values = random.normal(size=(first[-1], 4)).astype(np.float32)
    values[:, 0] = random.uniform(size=len(values)) < 0.4  # marks the locations that count
    values[first[:-1], 0] = 1
    shares = [values[a:b, 0] / values[a:b, 0].sum() for a, b in pairwise(first)]
    level = np.array([s @ values[a:b, 1] for s, (a, b) in zip(shares, pairwise(first), strict=True)], np.float32)
    none = torch.empty(40, 0)
    bags = Bags(none, np.zeros((40, 2)), np.zeros(40), torch.from_numpy(values), first)
    torch.manual_seed(0)
    towers = AttentionTowers(4, 1)
    towers.image_head = torch.nn.Identity()
    rows, mean = torch.arange(40), np.add.reduceat(values, first[:-1], axis=0) / counts[:, None]
    np.testing.assert_allclose(towers.image(bags, rows).detach(), mean, atol=1e-6)
    optimiser = torch.optim.Adam(towers.parameters(), lr=0.03)
    for _ in range(60):
        optimiser.zero_grad()
        ((towers.image(bags, rows)[:, 1] - torch.from_numpy(level)) ** 2).mean().backward()
        optimiser.step()
    learnt = towers.image(bags, rows)[:, 1].detach().numpy()
    assert np.corrcoef(learnt, level)[0, 1] > 0.98 > 0.9 > np.corrcoef(mean[:, 1], level)[0, 1]
