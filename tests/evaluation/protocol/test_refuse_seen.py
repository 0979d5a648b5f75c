"""An artefact that has seen its test is refused."""

from __future__ import annotations

import pytest

from cmrcnet.errors import Leakage
from cmrcnet.evaluation.protocol.folds import refuse_seen

SEEN = {"seen_sections": ("s1", "s2"), "seen_patients": ("p1",)}


def test_a_seen_section_is_refused():
    with pytest.raises(Leakage, match="The bank has seen section s2 in training"):
        refuse_seen("The bank", **SEEN, sections=["s2"])


def test_another_section_of_a_seen_patient_is_refused():
    with pytest.raises(Leakage, match="The model has seen patient p1"):
        refuse_seen("The model", **SEEN, sections=["s9"], patients=["p1"])


def test_a_clean_artefact_passes():
    refuse_seen("The model", **SEEN, sections=["s9"], patients=["p9"])


def test_the_section_protocol_allows_the_patient_but_never_the_section():
    refuse_seen("The model", **SEEN, sections=["s9"])
    with pytest.raises(Leakage, match="section s1"):
        refuse_seen("The model", **SEEN, sections=["s1"])


def test_a_bank_that_holds_the_test_section_is_refused_although_its_model_is_clean(
    small_cohort, small_config, small_cache
):
    from cmrcnet.evaluation.methods.trained_cmrcnet import _refuse_contaminated
    from cmrcnet.evaluation.protocol.folds import folds
    from cmrcnet.retrieval.bank import build_bank
    from cmrcnet.training.fit import fit

    fold = folds(small_cohort)[0]
    quick = small_config.override({"train.epochs": 1, "train.validation": "none", "train.refit": False})
    model = fit(small_cohort.only(fold.train), quick, cache=small_cache)
    _refuse_contaminated(model, build_bank(model, small_cohort.only(fold.train)), fold)
    with pytest.raises(Leakage, match="The bank of fold P1 has seen section P1S1, patient P1 in training"):
        _refuse_contaminated(model, build_bank(model, small_cohort), fold)
