"""Expression models that are trained in the fold: whom they know, whom they predict, and the command."""

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml

from cmrcnet.cli.app import main
from cmrcnet.datasets.synthetic import synthetic_cohort, write_cohort
from cmrcnet.errors import BadInput, BadOption, Leakage
from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
from cmrcnet.outcomes import paired
from cmrcnet.outcomes.cohort import cohort_of_table
from cmrcnet.outcomes.paired import PairedExpression, with_paired
from cmrcnet.outcomes.protocol import ProtocolOptions, compare
from cmrcnet.testing import quick_config

PATIENTS = [f"P{number}" for number in range(1, 8)]


@pytest.fixture(scope="module")
def sections():
    return synthetic_cohort(patients=7, spots=6, genes=24)


@pytest.fixture
def trainings(monkeypatch):
    """Replace training and prediction: a model is the patients that it knows, and predicts how many these are."""
    done = []

    def fit(cohort, config, *, cache, calibrate):
        return SimpleNamespace(provenance=SimpleNamespace(patients=cohort.patients), name=cohort.name)

    def predict(model, slide, *, bank, spots, cache):
        done.append((model.provenance.patients, slide.name.split()[-1], model.name))
        return anndata.AnnData(np.full((len(spots), 2), float(len(bank.patients))), var=pd.DataFrame(index=["A", "B"]))

    monkeypatch.setattr("cmrcnet.training.fit.fit", fit)
    monkeypatch.setattr("cmrcnet.retrieval.bank.build_bank", lambda model, cohort, *, cache: cohort)
    monkeypatch.setattr("cmrcnet.inference.predict.predict", predict)
    monkeypatch.setattr(PooledFeatures, "of", lambda self, slide, spots, kind: np.eye(len(spots), 3))
    return done


def table(patients=PATIENTS[:6]) -> pd.DataFrame:
    return pd.DataFrame({"patient": patients, "kind": ["a", "b"] * (len(patients) // 2)})


def test_no_model_of_a_fold_knows_whom_it_predicts_nor_a_test_patient(trainings, sections):
    block = PairedExpression(sections, tuple((f"{p}S1",) for p in PATIENTS[:6]), tuple(PATIENTS[:6]), quick_config())
    found = block.features(np.arange(4))
    by_slide = {slide: set(known) for known, slide, _ in trainings}
    assert len(trainings) == len(by_slide) == 6
    for number, patient in enumerate(PATIENTS[:6]):
        known = next(known for slide, known in by_slide.items() if patient in slide)
        assert patient not in known and not {"P5", "P6"} & known
        assert "P7" in known  # without an outcome, so never tested
        assert found.loc[number].tolist() == [len(known)] * 2
    assert next(known for slide, known in by_slide.items() if "P6" in slide) == {"P1", "P2", "P3", "P4", "P7"}


def test_a_model_that_saw_a_test_patient_is_refused(trainings, sections, monkeypatch):
    def leaky(cohort, config, *, cache, calibrate):
        return SimpleNamespace(provenance=SimpleNamespace(patients=(*cohort.patients, "P6")), name="")

    monkeypatch.setattr("cmrcnet.training.fit.fit", leaky)
    cohort = cohort_of_table(table(), name="six", label="kind", features=[])
    cohort = with_paired(cohort, sections, quick_config())
    with pytest.raises(Leakage, match="The model of a fold has seen patient P6"):
        compare(cohort, ProtocolOptions(folds=2, repeats=1, permutations=0, bootstrap=0))


def test_models_of_a_fold_are_trained_once_and_the_shuffled_ones_on_permuted_pairs(trainings, sections):
    plain = cohort_of_table(table(), name="six", label="kind", features=[])
    cohort = with_paired(plain, sections, quick_config())
    assert list(cohort.blocks) == ["expression", "shuffled", "colour", "imagenet"]
    run = compare(cohort, ProtocolOptions(folds=3, repeats=1, permutations=2, bootstrap=0))
    assert len(trainings) == 3 * 2 * 6  # every case once in each fold by each of the two kinds of model
    assert sum("pairs permuted" in name for *_, name in trainings) == len(trainings) // 2
    assert ("expression", "shuffled") in zip(run.differences.method, run.differences.other, strict=True)
    with pytest.raises(BadInput, match="P6 has no section"):
        with_paired(plain, sections.without(["P6S1"]), quick_config())
    with pytest.raises(BadOption, match="none beside slides or paired sections"):
        with_paired(cohort, sections, quick_config())


def test_the_command_trains_in_the_fold(sections, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(paired, "PARTS", 2)
    write_cohort(sections.only(["P1S1", "P2S1", "P3S1", "P4S1"]), tmp_path / "cohort")
    table(PATIENTS[:4]).to_csv(tmp_path / "patients.csv", index=False)
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(quick_config().to_dict()))
    words = ["outcomes", str(tmp_path / "patients.csv"), "--label", "kind", "--out", str(tmp_path / "run")]
    words += ["--paired", str(tmp_path / "cohort" / "cohort.csv"), "--folds", "2", "--repeats", "1", "--workers", "1"]
    assert main([*words, "--config", str(tmp_path / "quick.yaml"), "--permutations", "1"]) == 0
    assert "expression minus shuffled" in capsys.readouterr().out
    assert "trained in the fold" in (tmp_path / "run" / "report.html").read_text()
    assert main([*words[:5], str(tmp_path / "other"), "--config", "fast"]) == 2
    assert "nothing without --paired" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--organ", "breast"]) == 2
    assert "no --slides, --organ or --model" in capsys.readouterr().err
