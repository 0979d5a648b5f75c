"""strict and paper: what each fixes, and where its genes come from."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cmrcnet.config import Config
from cmrcnet.errors import UnknownName
from cmrcnet.evaluation.protocol.protocol_info import PAPER, STRICT, protocol_named

GENES = ("low", "high", "varies", "noisy")
TRUTH = sparse.csr_matrix(np.array([[0.1, 5.0, 0.0, 1.0], [0.0, 5.1, 4.0, 1.5]]))
SETS = {"HEG": ("low",), "HVG": ("low",), "SVG": ("noisy",), "MG": ("low", "noisy"), "all": GENES}


def test_strict_scores_by_the_sets_of_the_training_sections():
    assert STRICT.scored_sets(SETS, GENES, TRUTH, size=1) == SETS
    config = Config.load("tiny")
    assert STRICT.apply(config) == config


def test_paper_scores_by_heg_and_hvg_of_the_test_truth_and_by_nothing_else_of_it():
    found = PAPER.scored_sets(SETS, GENES, TRUTH, size=1)
    assert found == SETS | {"HEG": ("high",), "HVG": ("varies",)}
    of_panel = PAPER.scored_sets(SETS, GENES, TRUTH, size=1, among={"varies", "elsewhere"})  # as in the released code
    assert of_panel == SETS | {"HEG": ("varies",), "HVG": ("varies",)}


def test_paper_leaves_out_sections_and_chooses_its_panel_on_all():
    config = PAPER.apply(Config.load("tiny").override({"evaluation.group_by": "patient", "panel.sections": "training"}))
    assert (config.evaluation.group_by, config.panel.sections) == ("section", "all")


def test_protocols_go_by_name():
    assert protocol_named("strict") is STRICT and protocol_named("paper") is PAPER
    with pytest.raises(UnknownName, match="There is no protocol 'lenient'; known: strict, paper"):
        protocol_named("lenient")
