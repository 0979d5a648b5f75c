"""Training: it learns, it chooses honestly, and it says when it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from cmrcnet.errors import CmrcnetWarning, TooFew
from cmrcnet.features.extract import FeatureSpec, extract
from cmrcnet.genes.gene_sets import GenePanel, choose_panel, gene_sets
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.inference.predict import predict
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.retrieval.bank import build_bank
from cmrcnet.search.aggregate import average
from cmrcnet.search.exact import ExactSearch
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.cache import TokenCache
from cmrcnet.training.checkpoint import Checkpoints
from cmrcnet.training.data import TrainingData
from cmrcnet.training.fit import fit, new_encoder
from cmrcnet.training.module import augment_patches
from tests.training.conftest import TRAINED_ENCODER, changed, with_counts


def weights(model: TrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def rows(model: TrainedModel, phase: str) -> list[dict]:
    return [row for row in model.provenance.history if row["phase"] == phase]


def shuffled(cohort: Cohort) -> Cohort:
    """Every section's expression dealt out to its spots anew: no pair is true."""
    rng = np.random.default_rng(5)
    for name in cohort.sections:
        cohort = changed(cohort, name, lambda s: with_counts(s, s.counts[rng.permutation(len(s.spots))]))
    sections = [cohort.read(name) for name in cohort.sections]
    return Cohort.of(sections)


def test_it_learns_what_tissue_shows(cohort, cache, config):
    model = fit(cohort, config.override({"train.epochs": 10}), cache=cache)
    history = rows(model, "search")
    assert history[-1]["loss"] < history[0]["loss"]
    assert max(row["validation_pearson"] for row in history) > 0.25
    assert history[-1]["meter_recall_at_k"] > history[-1]["meter_chance"]
    assert model.provenance.notes == ()


@pytest.mark.filterwarnings("ignore::cmrcnet.errors.CmrcnetWarning")
def test_shuffled_pairs_predict_nothing(cohort, cache, config):
    longer = config.override({"train.epochs": 6})
    true = fit(cohort, longer, cache=cache).provenance.facts["validation_score"]
    null = fit(shuffled(cohort), longer, cache=cache).provenance.facts["validation_score"]
    assert null < 0.15 < true


def test_a_run_at_chance_says_so_loudly_and_once(cohort, cache, config, caplog):
    idle = config.override({"train.learning_rate": 1e-12, "train.final_learning_rate": 1e-12, "train.epochs": 1})
    with pytest.warns(CmrcnetWarning, match="found no signal.* the network is at chance") as warned:
        model = fit(cohort, idle, cache=cache)
    assert [str(each.message) for each in warned if "at chance" in str(each.message)] == [str(warned[0].message)]
    assert "at chance" not in caplog.text  # the command line prints warnings and the log: it would stand there twice
    assert "at chance" in model.provenance.notes[0]
    assert rows(model, "search")[0]["meter_at_chance"]


def test_the_same_seed_gives_the_same_model_and_another_another(cohort, cache, config):
    first, again = (fit(cohort, config, cache=cache) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    assert first.provenance == again.provenance
    other = fit(cohort, config.override({"train.seed": 1}), cache=cache)
    assert other.fingerprint != first.fingerprint


def test_the_order_of_the_sections_changes_no_weight(cohort, cache, config):
    turned = Cohort(cohort.name, (*cohort.entries[2:], *cohort.entries[1::-1]))
    assert turned.sections != cohort.sections
    one, other = fit(cohort, config, cache=cache), fit(turned, config, cache=cache)
    assert same(weights(one), weights(other))
    assert one.panel == other.panel and one.provenance.history == other.provenance.history
    assert one.provenance.sections == cohort.sections and other.provenance.sections == turned.sections  # for display


def test_training_leaves_the_callers_generators_alone(cohort, cache, config):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fit(cohort, config.override({"train.epochs": 1}), cache=cache)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_second_run_encodes_nothing(cohort, cache, config, monkeypatch):
    fit(cohort, config, cache=cache)
    from cmrcnet.models.image_encoder import ImageEncoder

    def refuse(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(ImageEncoder, "forward", refuse)
    fit(cohort, config, cache=cache)


def test_without_a_cache_the_result_is_the_same_and_nothing_is_left(cohort, cache, config, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert fit(cohort, config).fingerprint == fit(cohort, config, cache=cache).fingerprint
    assert list(tmp_path.iterdir()) == []


def test_the_chosen_epochs_weights_are_kept(cohort, cache, config):
    """Training for only the chosen number of epochs under the same schedule would have ended with them."""
    model = fit(cohort, config.override({"train.epochs": 6}), cache=cache)
    scores = [row["validation_pearson"] for row in rows(model, "search")]
    assert model.provenance.chosen_epoch == int(np.argmax(scores)) + 1
    assert model.provenance.facts["validation_score"] == max(scores)
    assert score_by_hand(model, cohort, cache) == pytest.approx(max(scores), abs=1e-4)


def score_by_hand(model: TrainedModel, cohort: Cohort, cache: TokenCache) -> float:
    """Retrieve the validation patient from the others, with the public pieces."""
    from cmrcnet.features.extract import extract
    from cmrcnet.features.spec import FeatureSpec

    patient = model.provenance.facts["validation"].removeprefix("patient ")
    inside = [name for name in cohort.sections if cohort.patient_of(name) == patient]
    genes = gene_sets(cohort, model.panel.scaling, model.config.evaluation.set_size)["HVG"]
    scored = GenePanel(genes, model.panel.scaling)
    bank = [cohort.read(name) for name in cohort.sections if name not in inside]
    search = ExactSearch(np.concatenate([model.embed_expression(model.panel.select(s)) for s in bank]))
    values = sparse.vstack([scored.select(s) for s in bank]).tocsc()
    means = []
    for name in inside:
        section = cohort.read(name)
        tokens = extract(
            model.encoder, section.slide, section.spots.centre_px, FeatureSpec(patch=model.config.patch), cache=cache
        )
        head = model.config.head
        found = search.nearest(model.embed_tokens(tokens), head.k)
        guess, _ = average(found, values, weighting=head.weighting, temperature=head.temperature)
        means.append(np.nanmean(pearson_per_gene(scored.select(section), guess)))
    return float(np.mean(means))


def test_looks_may_be_rare_and_the_last_epoch_is_always_looked_at(cohort, cache, config):
    rare = config.override({"train.validate_every": 3, "train.epochs": 5})
    model = fit(cohort, rare, cache=cache)
    assert [row["epoch"] for row in rows(model, "search") if "validation_pearson" in row] == [3, 5]
    assert model.provenance.chosen_epoch in (3, 5)


def test_a_refit_trains_on_everything_for_the_chosen_epochs(cohort, cache, config):
    model = fit(cohort, config.override({"train.refit": True, "train.epochs": 4}), cache=cache)
    search, refit = rows(model, "search"), rows(model, "refit")
    assert [row["pairs"] for row in search] == [48] * 4
    assert [row["pairs"] for row in refit] == [72] * model.provenance.chosen_epoch
    assert refit[0]["learning_rate"] == pytest.approx(search[0]["learning_rate"], rel=0.1)


def test_k_is_cut_to_the_bank(cohort, cache, config):
    model = fit(cohort, config.override({"head.k": 5000, "train.epochs": 1}), cache=cache)
    assert model.config.head.k == 5000


def test_validation_expression_changes_no_weight(cohort, cache, config):
    """With one epoch there is nothing to choose: whatever was counted on the validation patient must not matter."""
    one = config.override({"train.epochs": 1})
    panel = choose_panel(cohort, config.panel)
    model = fit(cohort, one, panel=panel, cache=cache)
    (name,) = (n for n in cohort.sections if f"patient {cohort.patient_of(n)}" == model.provenance.facts["validation"])
    scrambled = changed(cohort, name, lambda s: with_counts(s, sparse.csr_matrix(s.counts[::-1])))
    assert same(weights(fit(scrambled, one, panel=panel, cache=cache)), weights(model))
    other = next(n for n in cohort.sections if n != name)
    learnt_from = changed(cohort, other, lambda s: with_counts(s, sparse.csr_matrix(s.counts[::-1])))
    assert not same(weights(fit(learnt_from, one, panel=panel, cache=cache)), weights(model))


def test_sections_outside_the_cohort_are_never_read(cohort, cache, config):
    def refuse():
        raise AssertionError("a section that was left out was read")

    trap = type(cohort.entries[0])("P3S1", "P3", refuse)
    trapped = Cohort(cohort.name, (*cohort.entries[:2], trap))
    model = fit(trapped.without(["P3S1"]), config.override({"train.epochs": 6}), cache=cache)
    assert model.provenance.sections == ("P1S1", "P2S1")
    assert model.provenance.patients == ("P1", "P2")


def test_a_panel_that_others_chose_is_noted(cohort, cache, config):
    panel = choose_panel(cohort, config.panel)
    model = fit(cohort.without(["P3S1"]), config.override({"train.epochs": 1}), panel=panel, cache=cache)
    assert model.provenance.sections == ("P1S1", "P2S1")
    assert "took part in choosing its genes: P3S1" in model.provenance.notes[-1]


def test_one_section_trains_to_the_last_epoch_with_a_warning(cohort, cache, config):
    with pytest.warns(CmrcnetWarning, match="one training section only"):
        model = fit(cohort.only(["P1S1"]), config.override({"train.refit": True, "train.epochs": 6}), cache=cache)
    assert model.provenance.chosen_epoch == 6
    assert rows(model, "refit") == []
    assert rows(model, "search")[-1]["meter_where"] == "training spots"


def test_no_sections_are_refused(cohort, config):
    with pytest.raises(TooFew, match="0 training sections"):
        fit(Cohort("nobody", ()), config)


def test_the_released_switches(cohort, cache, config):
    """Random spots choose the epoch by the objective; the moving average follows and is never used."""
    released = config.override({"train.validation": "spots", "train.select_by": "objective", "train.epochs": 4})
    model = fit(cohort, released, cache=cache)
    losses = [row["validation_loss"] for row in rows(model, "search")]
    assert model.provenance.chosen_epoch == int(np.argmin(losses)) + 1
    assert model.provenance.facts["validation"] == "14 random spots"
    unused = fit(cohort, released.override({"train.ema_decay": 0.9, "train.ema_used": False}), cache=cache)
    assert same(weights(unused), weights(model))
    used = fit(cohort, released.override({"train.ema_decay": 0.9}), cache=cache)
    assert not same(weights(used), weights(model))


def test_the_moving_average_is_what_its_formula_says(cohort, cache, config, monkeypatch):
    from cmrcnet.training import loop

    seen = []
    follow = loop.TrainingWeights.average

    def watched(self):
        follow(self)
        seen.append(self.module.network.gene_head.project.weight.detach().clone())

    monkeypatch.setattr(loop.TrainingWeights, "average", watched)
    plan = config.override({"train.validation": "none", "train.ema_decay": 0.7, "train.epochs": 2})
    model = fit(cohort, plan, cache=cache)
    mean = seen[0]
    for value in seen[1:]:
        mean = 0.7 * mean + 0.3 * value
    torch.testing.assert_close(model.network.gene_head.project.weight.detach(), mean)


def test_tokens_are_standardised_over_the_spots_that_are_trained_on(cohort, cache, config):
    from cmrcnet.features.extract import extract
    from cmrcnet.features.spec import FeatureSpec

    model = fit(cohort, config.override({"train.epochs": 1}), cache=cache)
    rest = [n for n in cohort.sections if f"patient {cohort.patient_of(n)}" != model.provenance.facts["validation"]]
    tokens = np.concatenate(
        [
            extract(model.encoder, s.slide, s.spots.centre_px, FeatureSpec(patch=config.patch), cache=cache)
            for s in map(cohort.read, rest)
        ]
    ).astype(np.float64)
    np.testing.assert_allclose(model.network.token_mean, tokens.mean(axis=(0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.network.token_deviation, tokens.std(axis=(0, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::cmrcnet.errors.CmrcnetWarning")
def test_an_encoder_can_be_trained_too(cohort, cache, config):
    plan = config.override(TRAINED_ENCODER | {"train.epochs": 2, "train.refit": True})
    two = cohort.only(["P1S1", "P2S1"])
    model = fit(two, plan, cache=cache)
    untrained = new_encoder(plan)
    assert model.encoder.fingerprint() != untrained.fingerprint()
    assert fit(two, plan, cache=cache).fingerprint == model.fingerprint
    assert not hasattr(model.network, "token_mean")


@pytest.mark.filterwarnings("ignore::cmrcnet.errors.CmrcnetWarning")
def test_the_last_blocks_can_be_trained_alone(cohort, config, tmp_path):
    """What is below them is encoded once; a model carries its blocks; features of other weights are never its own."""
    plan = config.override(TRAINED_ENCODER | {"train.epochs": 2, "train.refit": True, "model.trained_blocks": 1})
    two, cache = cohort.only(["P1S1", "P2S1"]), TokenCache(tmp_path / "cache")
    model = fit(two, plan, cache=cache)
    untrained = new_encoder(plan)
    moved = {
        name
        for (name, value), old in zip(
            model.encoder.backbone.state_dict().items(), untrained.backbone.state_dict().values(), strict=True
        )
        if not torch.equal(value, old)
    }
    assert moved and all(name.startswith(("blocks.5.", "norm.")) for name in moved)
    assert not (tmp_path / "cache" / "patches").exists()
    assert fit(two, plan, cache=cache).fingerprint == model.fingerprint  # from the cache, to the last bit

    model.save_pretrained(tmp_path / "model")
    again = TrainedModel.from_pretrained(tmp_path / "model")
    assert again.encoder.fingerprint() == model.encoder.fingerprint() != untrained.fingerprint()
    section = cohort.read("P3S1")
    spec, bank = FeatureSpec(patch=plan.patch), build_bank(again, two)
    extract(untrained, section.slide, section.spots.centre_px, spec, cache=cache)
    table = predict(again, section.slide, bank=bank, spots=section.spots, cache=cache)
    alone = predict(model, section.slide, bank=bank, spots=section.spots, cache=None)
    np.testing.assert_allclose(np.asarray(table.X), np.asarray(alone.X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("augment", [True, False])
def test_what_is_below_is_encoded_for_each_symmetry_that_is_drawn(cohort, cache, config, augment):
    plan = config.override(TRAINED_ENCODER | {"model.trained_blocks": 1, "train.augment": augment})
    encoder = new_encoder(plan)
    data = TrainingData.collect(cohort.only(["P1S1"]), plan, encoder, cache)
    section = cohort.read("P1S1")
    assert data.symmetries == (8 if augment else 1)
    ways = np.array([0, 6, 3])
    found = data.gather(np.array([4, 1, 4]), ways)[0]
    below = encoder.below(1, 160)
    patches = next(crop_patches(section.slide, section.spots.centre_px[[4, 1, 4]], plan.patch))
    turned = augment_patches(torch.from_numpy(patches), ways if augment else ways * 0)
    with torch.inference_mode():
        wanted = below(below.prepare(turned)).half().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-2)


def test_mixed_precision_trains_as_well(cohort, cache, config):
    config = config.override({"train.epochs": 1})  # without its instructions a processor takes long over bfloat16
    model = fit(cohort, config.override({"train.precision": "bf16"}), cache=cache)
    exact = fit(cohort, config, cache=cache)
    assert model.provenance.facts["precision"] == "bf16"
    ours, theirs = (rows(m, "search")[-1]["loss"] for m in (model, exact))
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.1)
    assert model.network.gene_head.project.weight.dtype == torch.float32


def test_the_log_is_written_and_loggers_hear_of_it(cohort, cache, config, tmp_path):
    import csv

    from lightning_fabric.loggers import CSVLogger

    checkpoints = Checkpoints(tmp_path / "state")
    logger = CSVLogger(tmp_path / "logs", flush_logs_every_n_steps=1)
    model = fit(cohort, config, cache=cache, checkpoints=checkpoints, logger=logger)
    with (checkpoints.folder / "log.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in written] == [1, 2, 3]
    assert float(written[1]["loss"]) == model.provenance.history[1]["loss"]
    assert "search/validation_pearson" in next((tmp_path / "logs").rglob("metrics.csv")).read_text()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["auto", "fp16", "float32"])
def test_a_gpu_trains_to_about_the_same(cohort, cache, config, precision):
    here = fit(cohort, config.override({"train.device": "cpu"}), cache=cache)
    there = fit(cohort, config.override({"train.device": "cuda", "train.precision": precision}), cache=cache)
    assert rows(there, "search")[-1]["loss"] == pytest.approx(rows(here, "search")[-1]["loss"], rel=0.1)
