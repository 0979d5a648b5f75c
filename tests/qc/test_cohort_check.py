"""All detectors over a cohort, in the library and by command."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmrcnet import check_cohort, read_cohort
from cmrcnet.cli import app
from cmrcnet.datasets.synthetic import write_cohort
from cmrcnet.qc.arrangement import judge_arrangement
from cmrcnet.qc.cohort_check import findings_of, summarize_section
from cmrcnet.qc.identity import sex_of, switched_genes
from cmrcnet.qc.section_summary import SpotMaps
from cmrcnet.slides.section import Cohort


def shuffled(section):
    """The counts of other spots: the locations stay where the array puts them, so that no reader can notice."""
    return replace(section, counts=section.counts[np.random.default_rng(8).permutation(len(section.spots))])


def test_a_sound_cohort_has_no_findings(sections):
    assert check_cohort(Cohort.of(sections)) == ()


def test_problems_come_first(sections, summaries):
    again = replace(summaries[1], name="again")
    found = findings_of([summarize_section(shuffled(sections[0])), *summaries[1:], again])
    assert [finding.kind for finding in found] == ["duplicated counts", "duplicated picture", "shuffled"]
    assert [finding.certain for finding in found] == [True, True, False]
    assert found[0].sections == (summaries[1].name, "again")


def test_inspect_runs_them_and_quick_does_not(sections, tmp_path, capsys):
    twice = Cohort.of([sections[0], replace(shuffled(sections[0]), name="again")])
    csv = str(write_cohort(twice, tmp_path / "cohort", image="png"))
    assert app.main(["inspect", csv, "--quick"]) == 0
    assert "Problems: none" in capsys.readouterr().out
    assert app.main(["inspect", csv]) == app.PROBLEMS_FOUND
    said = capsys.readouterr().out
    notes, problems = said.split("Problems: ")
    assert "look shuffled" in notes and "hold the same counts" in problems and "look shuffled" not in problems


def test_a_scale_given_for_all_reaches_the_detectors(sections, tmp_path):
    csv = write_cohort(Cohort.of(sections[:1]), tmp_path / "cohort")
    head, row = csv.read_text().splitlines()[:2]
    cells = row.split(",")
    cells[head.split(",").index("mpp")] = ""
    csv.write_text("\n".join([head, ",".join(cells), ""]))
    assert app.main(["inspect", str(csv), "--mpp", "1"]) == 0
    assert read_cohort(csv, mpp=1.0).read("P1S1").slide.mpp == 1.0


def test_other_problems_come_before_the_detectors(sections, tmp_path, capsys):
    csv = write_cohort(Cohort.of(sections[:2]), tmp_path / "cohort")
    (tmp_path / "cohort" / "P1S1.jpg").unlink()
    assert app.main(["inspect", str(csv)]) == app.PROBLEMS_FOUND
    assert "correct the problems first" in capsys.readouterr().out


@pytest.mark.shared
def test_a_real_section_and_its_planted_faults(her2st_csv):
    section = read_cohort(her2st_csv).read("C4")
    maps = SpotMaps.of(section.slide, 100.0)
    centres = np.array(section.spots.centre_px)
    assert judge_arrangement(maps, centres, section.counts).outcome == "fits"
    mixed = judge_arrangement(maps, np.random.default_rng(5).permutation(centres), section.counts)
    assert mixed.outcome == "shuffled"
    moved = judge_arrangement(maps, centres + np.array([400 / section.slide.mpp, 0.0]), section.counts)
    assert (moved.outcome, moved.best_is) == ("misaligned", "shifted by -400 um in x and 0 um in y")


@pytest.mark.shared
def test_real_patients(her2st_csv, als_csv):
    def totals(cohort, name):
        section = cohort.read(name)
        return dict(zip(section.genes, np.asarray(section.counts.sum(axis=0)).ravel().tolist(), strict=True))

    breast, mice = read_cohort(her2st_csv), read_cohort(als_csv)
    b4, c2, c3 = (totals(breast, name) for name in ("B4", "C2", "C3"))
    assert switched_genes(c2, c3) <= 5 and switched_genes(b4, c2) > 300
    assert sex_of(totals(mice, "CN62_E2")) == "male" and sex_of(totals(mice, "CN67_E2")) == "female"
