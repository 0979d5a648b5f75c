"""The line under every table names protocol, unit, origin of the genes, and how many there are."""

from __future__ import annotations

import pandas as pd

from cmrcnet.evaluation.protocol.protocol_info import PAPER, ProtocolInfo

PLAIN = ProtocolInfo("patient", 6, 9, 6, True, False, 50, "skip")


def test_it_names_protocol_unit_and_origin():
    said = PLAIN.to_text()
    assert said.startswith("Protocol strict: leave-one-patient-out, 6 folds, 9 sections of 6 patients;")
    assert "HEG, HVG and SVG: 50 genes each, chosen on the training sections of each fold" in said


def test_under_paper_it_says_that_the_truth_chose_the_genes():
    info = ProtocolInfo("section", 2, 5, 5, False, True, 50, "zero", protocol="paper", sets_from=PAPER.sets_from)
    said = info.to_text()
    assert said.startswith("Not patient-disjoint; scored genes chosen by the test truth; gene panel chosen on all")
    assert "protocol paper" in said and "HEG and HVG: 50 genes each, chosen on the test section's own truth" in said
    assert "SVG: on the training sections" in said


def test_it_counts_genes_once_however_many_methods_and_those_without_any_correlation():
    genes = pd.DataFrame(
        {"method": list("aaabbb"), "section": ["1", "1", "2"] * 2, "gene": ["G", "H", "G"] * 2,
         "variance": [0.5, 0.0, 0.2] * 2}
    )  # fmt: skip
    info = PLAIN.counted(genes)
    assert (info.n_genes, info.n_pairs, info.n_undefined) == (2, 3, 1)
    assert "2 genes scored; in 1 of 3 gene-section pairs the truth is constant" in info.to_text()
    assert "genes scored" not in PLAIN.to_text()
