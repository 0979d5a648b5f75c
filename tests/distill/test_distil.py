"""A student beside its teacher: close, the same again, and honest about what it was told."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.distill import distillation_set, fit_student, student_report
from cmrcnet.distill.distil import StudentConfig, distil
from cmrcnet.distill.student_report import sections_to_leave_out
from cmrcnet.errors import BadOption, Incompatible, Leakage, UnknownName
from cmrcnet.inference.predict import predict
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.retrieval.bank import ReferenceBank, build_bank
from cmrcnet.slides.section import Cohort
from cmrcnet.testing import assert_prediction_table
from tests.distill.small_teacher import COMPONENTS, averaging, cohort, on_components
from tests.inference.small_model import noise_slide, small_cohort, small_model

GRID_UM = 200.0


pytestmark = pytest.mark.filterwarnings("ignore:Features of .* are standardised within")  # grids of 4 or 9 locations


@pytest.fixture(autouse=True)
def _one_section_in_the_report(monkeypatch):
    monkeypatch.setattr(student_report, "LEFT_OUT", 1)
    monkeypatch.setattr(student_report, "TIMED", 8)
    monkeypatch.setattr(student_report, "TIMED_ENCODED", 4)


def student_of(taught, **options):
    model, bank = taught
    return distil(model, bank, options.pop("cohort", cohort()), **({"grid_um": GRID_UM} | options))


@pytest.fixture(scope="module")
def student():
    patch = pytest.MonkeyPatch()
    patch.setattr(student_report, "LEFT_OUT", 2)
    patch.setattr(student_report, "TIMED", 8)
    patch.setattr(student_report, "TIMED_ENCODED", 4)
    found = student_of(on_components())
    patch.undo()
    return found


def alike(student, model, bank, section) -> float:
    """Mean correlation, over genes that vary, of student and teacher at the spots of a section."""
    said = predict(model, section.slide, bank=bank, spots=section.spots, genes=student.genes).X
    learnt = predict(student, section.slide, spots=section.spots).X
    varies = (said.std(axis=0) > 1e-3) & (learnt.std(axis=0) > 1e-3)
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(said.T[varies], learnt.T[varies], strict=True)]))


def test_a_student_of_a_linear_teacher_says_what_its_teacher_says():
    """Ridge asks no neighbours, so the whole bank may answer."""
    model, bank = on_components("ridge")
    student = student_of((model, bank))
    assert alike(student, model, bank, cohort().read(cohort().sections[0])) > 0.999
    assert student.report["left_out"]["mean"]["student_with_teacher"] > 0.8


def test_a_student_of_an_averaging_teacher_knows_all_its_genes():
    """How close it comes is asked of a trained teacher, in `tests/cli/test_students.py`."""
    taught = averaging()
    student = student_of(taught)
    assert student.genes == taught[1].genes and student.basis.directions.shape == (student.report["head"]["rank"], 80)


def test_the_same_seed_gives_the_same_student_whatever_the_order_of_the_cohort(student):
    turned = Cohort("turned", tuple(reversed(cohort().entries)))
    assert student_of(on_components(), cohort=turned).fingerprint == student.fingerprint
    assert student_of(on_components(), seed=1).fingerprint != student.fingerprint


def test_no_section_answers_for_itself(monkeypatch):
    """Every search that teaches, or judges, is made in a bank without the section that is asked about."""
    asked, found = [], distillation_set._Teacher.__init__

    def noting(self, model, bank, given, genes):
        asked.append((given.sections, bank.sections))
        found(self, model, bank, given, genes)

    monkeypatch.setattr(distillation_set._Teacher, "__init__", noting)
    student_of(averaging(), grid_um=GRID_UM)
    assert len(asked) >= 2 * len(cohort())
    assert all(not set(mine) & set(answering) for mine, answering in asked)
    assert all(len(mine) == 1 for mine, _ in asked)


def test_what_a_section_measured_does_not_reach_its_own_lesson():
    """The obvious path: scramble a section's expression, and the answers to its own spots stay."""
    model, bank = averaging()
    first = bank.entries[0]
    noise = first.expression.copy()
    noise.data = np.random.default_rng(0).uniform(1, 5, len(noise.data)).astype(np.float32)
    other = type(first)(
        first.section, first.patient, first.spots, first.vectors[::-1].copy(), noise, first.genes, first.measures_all
    )
    changed = ReferenceBank((other, *bank.entries[1:]), bank.model_fingerprint, bank.scaling)
    own = _set_of(first.section)
    answers = [distillation_set._Teacher(model, distillation_set.bank_without(b, own.sections), own, bank.genes)
               for b in (bank, changed)]  # fmt: skip
    np.testing.assert_array_equal(*(each.expression(slice(0, 80)) for each in answers))
    tempted = distillation_set._Teacher(model, changed, own, bank.genes).expression(slice(0, 80))
    assert not np.array_equal(tempted, answers[0].expression(slice(0, 80)))


def _set_of(name: str):
    from cmrcnet.distill.distillation_set import make_distillation_sets
    from cmrcnet.inference.location_features import LocationEncoder

    model, bank = averaging()
    encoder = LocationEncoder.of_student(model.encoder, model.config)
    sets, _ = make_distillation_sets(model, bank, cohort(), (), encoder, grid_um=0, seed=0, cache=None)
    return next(each for each in sets if each.sections == (name,))


def test_a_head_that_is_judged_on_a_section_has_learnt_nothing_of_it(monkeypatch):
    model, bank = averaging()
    groups, fit = [], fit_student.fit_student_head

    def noting(data, seed):
        groups.append({each.group for each in data})
        return fit(data, seed)

    monkeypatch.setattr(fit_student, "fit_student_head", noting)
    student = student_of((model, bank))
    (row,) = student.report["left_out"]["sections"]
    assert groups[0] == set(cohort().sections) and groups[1] == set(cohort().sections) - {row["section"]}


def test_the_report_holds_what_was_measured(student):
    report = student.report
    rows = report["left_out"]["sections"]
    assert len(rows) == 2 and len({row["patient"] for row in rows}) == 2
    for row in rows:
        assert row["loss"] == pytest.approx(row["teacher"] - row["student"])
        assert row["genes"] <= report["set_size"] == 10 and row["spots"] == 20
    assert report["left_out"]["mean"]["loss"] == pytest.approx(np.mean([row["loss"] for row in rows]))
    assert report["test"] is None and "trained on these sections" in report["left_out"]["sentence"]
    speed = report["speed"]
    assert speed["student_seconds"] > 0 and speed["teacher_passes"] == speed["student_passes"] == 4
    assert speed["bank_spots"] == 80 and speed["locations"] == 8 and speed["locations_encoded"] == 4
    assert report["head"]["locations"] > 80  # the grid counts too


def test_the_numbers_of_the_report_are_those_of_the_obvious_path():
    """Teacher: predict with the bank without the section. Pearson: NumPy's."""
    taught = on_components("ridge")
    model, bank = taught
    (row,) = student_of(taught).report["left_out"]["sections"]
    section = cohort().read(row["section"])
    without = distillation_set.bank_without(bank, (section.name,))
    genes = student_report.scored_genes(model, without, cohort())
    said = predict(model, section.slide, bank=without, spots=section.spots, genes=genes).X
    counts = np.asarray(section.counts.todense(), float)
    truth = np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 10_000)
    truth = truth[:, [section.genes.index(gene) for gene in genes]]
    pearson = [np.corrcoef(t, s)[0, 1] for t, s in zip(truth.T, said.T, strict=True) if t.std() > 0 and s.std() > 1e-6]
    assert row["teacher"] == pytest.approx(np.mean(pearson), abs=1e-5)


def test_sections_that_nobody_has_seen_are_judged_and_others_refused(student):
    model, bank = on_components()
    unseen = synthetic_cohort(patients=1, spots=15, genes=80, seed=5)
    entry = unseen.entries[0]
    renamed = Cohort.of([_renamed(entry.load(), "NEW", "NOBODY")], "unseen")
    taught = distil(model, bank, cohort(), grid_um=0, test=renamed)
    (row,) = taught.report["test"]["sections"]
    assert row["section"] == "NEW" and row["spots"] == 15 and "has seen these" in taught.report["test"]["sentence"]
    for test in (cohort(), Cohort.of([_renamed(entry.load(), "NEW", cohort().patients[0])])):
        with pytest.raises(Leakage):
            distil(model, bank, cohort(), test=test)
    again = cohort().read(cohort().sections[0])
    with pytest.raises(Leakage, match="slide of section NEW"):
        distil(model, bank, cohort(), grid_um=0, test=Cohort.of([_renamed(again, "NEW", "NOBODY")]))


def _renamed(section, name, patient):
    return dataclasses.replace(section, name=name, patient=patient)


def test_a_student_may_look_with_less_and_learn_on_further_slides():
    model, bank = on_components()
    config = StudentConfig(augmentations=1, scales_um=[80.0])
    tissue = noise_slide(9, side=500, name="further")
    student = distil(model, bank, cohort(), slides=[tissue], config=config, grid_um=80)
    assert student.report["speed"]["student_passes"] == 1 and student.report["speed"]["teacher_passes"] == 4
    assert tissue.fingerprint() in student.lineage.slides and len(student.lineage.slides) == 5
    assert student.config.features.scales_um == (80.0,)
    own = distil(model, bank, cohort(), config=StudentConfig(encoder="timm:test_vit2", weights="random"), grid_um=0)
    assert own.encoder.origin.name == "timm:test_vit2" and own.fingerprint != student.fingerprint


def test_a_student_turns_a_scale_as_often_as_its_teacher_does():
    model, _ = on_components()
    sides = [80.0, 112.0]
    config = model.config.override({"features.scales_um": sides, "features.augmentations": [2, 4]})
    teacher = dataclasses.replace(model, config=config)
    for scales, wanted in (([112.0], (4,)), ([80.0], (2,)), ([112.0, 80.0, 60.0], (4, 2, 4)), (None, (2, 4))):
        assert StudentConfig(scales_um=scales).apply_to(teacher)[1].features.augmentations == wanted
    assert StudentConfig(augmentations=1, scales_um=[80.0]).apply_to(teacher)[1].features.augmentations == 1


def test_windows_that_a_students_encoder_or_scales_do_not_allow_are_left_out_with_a_word(caplog):
    settings = {"model.encoder": "timm:test_resnet", "features.scales_um": [112.0, 350.0], "features.window_um": 28.0}
    settings |= COMPONENTS | {"patch.size_px": 224, "features.method": "dense"}
    config = averaging()[0].config.override(settings)
    resnet = create_image_encoder("timm:test_resnet", weights="random")
    teacher: Any = SimpleNamespace(encoder=resnet, config=config)
    caplog.set_level("INFO", "cmrcnet")
    for config in (StudentConfig(), StudentConfig(scales_um=[56.0])):
        assert config.apply_to(teacher)[1].features.window_um == 28.0
    assert not caplog.messages
    for config in (StudentConfig(encoder="timm:test_vit", weights="random"), StudentConfig(scales_um=[100.0])):
        assert config.apply_to(teacher)[1].features.window_um == 0.0
        assert "no windows of 28 um as its teacher has: " in caplog.messages[-1]
    with pytest.raises(BadOption, match="sides above 0"):
        StudentConfig(scales_um=[-1.0]).apply_to(teacher)


def test_two_sections_on_one_slide_get_one_grid_that_neither_answers():
    from cmrcnet.distill.distillation_set import make_distillation_sets
    from cmrcnet.inference.location_features import LocationEncoder

    model, _ = averaging()
    first = cohort().read(cohort().sections[0])
    halves = [
        _renamed(first.take(np.arange(10)), "left", "P1"),
        _renamed(first.take(np.arange(10, 20)), "right", "P2"),
        cohort().read(cohort().sections[1]),
    ]
    both = Cohort.of(halves)
    bank = build_bank(model, both)
    encoder = LocationEncoder.of_student(model.encoder, model.config)
    sets, _ = make_distillation_sets(model, bank, both, (), encoder, grid_um=GRID_UM, seed=0, cache=None)
    grids = [each.sections for each in sets if not each.measured]
    assert sorted(grids, key=len) == [(halves[2].name,), ("left", "right")]
    assert [each.sections for each in sets if each.measured].count(("left",)) == 1
    assert len({each.group for each in sets}) == 2


def test_a_bank_of_one_section_is_used_whole_and_says_so():
    model, _ = averaging()
    only = cohort().only(cohort().sections[:1])
    student = distil(model, build_bank(model, only), only, grid_um=0)
    assert student.report["left_out"] is None
    assert "one section only" in student.report["notes"][0] and student.report["head"]["validation_folds"] == 0


def test_genes_that_some_sections_measured_are_predicted_everywhere():
    """B1 did not look for three genes: a teacher is silent where only B1 answers; the student is not."""
    model = small_model()
    bank = build_bank(model, small_cohort())
    student = distil(model, bank, small_cohort(), grid_um=0)
    assert any(note.startswith("3 genes were measured in some sections only") for note in student.report["notes"])
    section = small_cohort().read("B1")
    said = predict(student, section.slide, spots=section.spots)
    assert list(said.var_names) == list(bank.genes) and np.isfinite(said.X).all()


def test_the_report_is_measured_on_a_section_of_each_patient_first():
    bank = build_bank(small_model(), small_cohort())  # A1 and A2 of patient A, B1 of patient B
    assert sections_to_leave_out(bank, 2) == ["A1", "B1"]
    assert sections_to_leave_out(bank, 5) == ["A1", "B1", "A2"]


def test_patients_that_were_dropped_from_the_bank_are_remembered():
    model, bank = averaging()
    gone = cohort().patients[0]
    smaller = distillation_set.bank_without(bank, [p.section for p in bank.entries if p.patient == gone])
    student = distil(model, smaller, cohort(), grid_um=0)
    assert gone in student.lineage.patients and gone not in student.lineage.bank_patients


def test_what_cannot_be_distilled_is_refused():
    model, bank = averaging()
    with pytest.raises(Incompatible):
        distil(small_model(seed=3), bank, cohort())
    with pytest.raises(BadOption, match="has no section"):
        distil(model, bank, cohort().without(cohort().sections[:1]))
    moved = Cohort.of([_moved(each) for each in cohort()])
    with pytest.raises(BadOption, match="other spots"):
        distil(model, bank, moved)
    with pytest.raises(BadOption, match="grid_um"):
        distil(model, bank, cohort(), grid_um=-1.0)
    with pytest.raises(BadOption, match="grid_um"):
        distil(model, bank, cohort(), grid_um=0, slides=[noise_slide(9, side=500)])
    with pytest.raises(BadOption, match="augmentations"):
        distil(model, bank, cohort(), config=StudentConfig(augmentations=4))  # a plain patch is not turned
    with pytest.raises(UnknownName):
        distil(model, bank, cohort(), config=StudentConfig(encoder="nobody"))


def _moved(section):
    spots = dataclasses.replace(section.spots, centre_px=section.spots.centre_px + 3)
    return dataclasses.replace(section, spots=spots)


def test_a_table_of_a_student_keeps_the_contract(student):
    section = cohort().read(cohort().sections[0])
    table = predict(student, section.slide, grid_um=150)
    assert_prediction_table(table)
    assert "neighbour_std" not in table.layers and set(table.obsm) == {"spatial"}
    told = table.uns["cmrcnet"]
    assert told["student_fingerprint"] == student.fingerprint
    assert told["model_fingerprint"] == on_components()[0].fingerprint
    assert "patients_seen" in told and np.isnan(table.obs["similarity"]).all()
