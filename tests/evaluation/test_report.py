"""The report: one page, offline, verdict first, every table stamped, nothing taken for markup."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import anndata as ad
import numpy as np
import pytest
from PIL import Image

from cmrcnet.evaluation.protocol import evaluate
from cmrcnet.evaluation.report import write_report
from cmrcnet.evaluation.report_figures import curve_svg, map_jpeg, tissue_view
from cmrcnet.evaluation.report_maps import _genes_to_show
from cmrcnet.evaluation.report_page import table
from cmrcnet.evaluation.report_tables import LEAST_DETECTED, gene_means
from cmrcnet.evaluation.retrieval import kept_reading
from cmrcnet.evaluation.verdict import number, verdict
from cmrcnet.tissue.section import Cohort

# A hundred spots and a few epochs: the collapse meter rightly doubts what these networks have learnt.
pytestmark = pytest.mark.filterwarnings("ignore::cmrcnet.errors.CmrcnetWarning")

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Outline(HTMLParser):
    """Checks that every tag is closed, and keeps headings, links and the table count."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.count: dict[str, int] = {}
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def page(small_run, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(small_run.run, path).read_text(encoding="utf-8")


def test_the_page_is_one_well_formed_file_that_opens_offline(page):
    outline = Outline(page)
    assert outline.addresses and all(address.startswith("data:image/") for address in outline.addresses)
    assert not re.search(r"@import|url\(|fetch\(|https?://", re.sub(r'base64,[^"]*', "", page))
    assert len(page) < 8_000_000


def test_the_verdict_comes_first_and_every_section_is_there(page, small_run):
    outline = Outline(page)
    assert outline.headings[0] == small_run.cohort.name
    assert [
        h for h in outline.headings if h in ("Methods", "Truth beside prediction", "Training", "Genes", "Provenance")
    ]
    assert page.index(verdict(small_run.run)) < page.index("<h2>")
    assert 'name="viewport"' in page


def test_every_table_of_scores_bears_the_protocol(page, small_run):
    stamp = small_run.run.stamp.to_text()
    scores, _, provenance = page.partition("<h2>Provenance</h2>")
    assert scores.count("<table") == scores.count(stamp) == 4
    assert provenance.count("<table") == 1
    for words in (
        "leave-one-patient-out",
        "12 genes each, chosen on the training sections",
        "too few patients to rank",
    ):
        assert words in stamp.lower()


def test_what_a_cohort_says_cannot_become_markup(small_run, tmp_path):
    evil = "<script>alert('x')</script>&"
    cohort = Cohort(evil, small_run.run.cohort.entries)
    facts = {**small_run.run.facts, "cohort": {"name": evil, "sections": [
        {**each, "notes": [evil]} for each in small_run.run.facts["cohort"]["sections"]
    ]}}  # fmt: skip
    run = dataclasses.replace(
        small_run.run, cohort=cohort, facts=facts, methods={**small_run.run.methods, "ridge": evil}
    )
    page = write_report(run, tmp_path / "r.html").read_text(encoding="utf-8")
    assert evil not in page and "alert(&#x27;x&#x27;)" in page
    assert Outline(page).count["script"] == 1


def test_maps_show_truth_prediction_and_spread_of_chosen_genes(page, small_run):
    for section in small_run.cohort.sections:
        for what in ("Measured", "Predicted", "Spread of"):
            assert re.search(f'alt="{what} .* on {section}"', page)
    for image in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)[:3]:
        assert Image.open(io.BytesIO(base64.b64decode(image))).width > 200


def test_the_best_gene_of_a_section_is_the_one_on_its_map(page, small_run):
    genes = small_run.run.genes.query("method == 'cmrcnet' and section == 'P1S1'")
    hvg = genes[genes.sets.str.contains("HVG")]
    best = hvg.loc[hvg.pearson.idxmax()]
    assert f"<b>{best.gene}</b> best HVG<br> Pearson {number(best.pearson)}" in page


def test_a_gene_seen_in_one_spot_is_not_shown_off(small_run):
    genes = small_run.run.genes.query("method == 'cmrcnet' and section == 'P1S1'").copy()
    often = genes[genes.detected >= LEAST_DETECTED].pearson.idxmax()
    assert _genes_to_show(genes).get(genes.gene[often]) is not None
    rare = genes.index[genes.sets == ""][0]
    genes.loc[rare, ["pearson", "detected"]] = [1.0, 0.02]
    assert genes.gene[rare] not in _genes_to_show(genes)
    genes.loc[rare, "detected"] = 0.5
    assert _genes_to_show(genes)[genes.gene[rare]].startswith("best of all genes")


def test_the_gene_table_holds_every_heg_and_hvg(page, small_run):
    rows = re.search(r'<table id="genes".*?</table>', page, re.S).group()
    listed = set(small_run.run.genes[small_run.run.genes.sets != ""].gene)
    assert listed <= set(re.findall(r"<tr><td>([^<]+)</td>", rows))


def test_gene_means_are_over_the_sections_where_the_gene_is_defined(small_run):
    frame = gene_means(small_run.run, "cmrcnet")
    gene = frame.index[5]
    values = small_run.run.genes.query("method == 'cmrcnet' and gene == @gene").pearson
    assert frame.pearson[gene] == pytest.approx(values.mean(), nan_ok=True)
    assert (frame.defined[gene], frame.sections[gene]) == (values.notna().sum(), 3)


def test_a_slide_without_expression_is_shown_when_given(small_run, tmp_path):
    unseen = small_run.run.predictions["P1S1"]
    file = tmp_path / "unseen.h5ad"
    unseen.write_h5ad(file)
    page = write_report(small_run.run, tmp_path / "r.html", unseen=file).read_text(encoding="utf-8")
    assert "A slide without expression" in page and "predicted from the picture alone" in page
    assert "A slide without expression" not in write_report(small_run.run, tmp_path / "r.html").read_text()
    Outline(page)


def test_a_run_without_cmrcnet_has_a_report_too(small_run, tmp_path, small_cohort, small_recipe, small_cache):
    run = evaluate(small_cohort, small_recipe, methods=["ridge", "random-k"], cache=small_cache)
    page = write_report(run, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Ridge on the same frozen features reaches a mean HVG Pearson of" in page
    Outline(page)


def test_the_verdict_claims_no_more_than_the_run_shows(small_run):
    said = verdict(small_run.run)
    assert said.startswith(f"CMRCNet reaches a mean HVG Pearson of {number(small_run.run.mean('cmrcnet'))} on held-out")
    assert f"the permuted-pairs null {number(small_run.run.mean('permuted-pairs'))}" in said
    assert said.endswith("3 patients: too few patients to rank methods.")
    many = dataclasses.replace(small_run.run, stamp=dataclasses.replace(small_run.run.stamp, patients=5))
    assert "too few" not in verdict(many)
    leaking = dataclasses.replace(small_run.run.stamp, patient_disjoint=False, unit="section")
    said = verdict(dataclasses.replace(small_run.run, stamp=leaking))
    assert "on held-out sections" in said and "flatters every method" in said


def test_numbers_are_plain():
    assert [number(v) for v in (0.1234, -0.0001, float("nan"))] == ["0.123", "0.000", "undefined"]


def test_a_table_marks_its_main_row_and_escapes_its_cells():
    said = table(["<a>", "b"], [["x", 1], ["<y>", 2]], main_row=1)
    assert '<tr class="main"><td>&lt;y&gt;</td>' in said and said.count('class="main"') == 1
    assert "<a>" not in said


def picture_table() -> ad.AnnData:
    """A white 100 x 80 px picture at a tenth of full size, two spots on it."""
    made = ad.AnnData(np.zeros((2, 1), np.float32), obsm={"spatial": np.array([[300.0, 400.0], [700.0, 400.0]])})
    picture = np.full((80, 100, 3), 255, np.uint8)
    picture[40, 30] = 0  # the first spot's centre
    made.uns["spatial"] = {
        "s": {
            "images": {"hires": picture},
            "scalefactors": {"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 80.0},
        }
    }
    return made


def test_the_view_is_cut_to_the_spots_and_centres_move_with_it():
    view = tissue_view(picture_table())
    assert view.radius == 4.0
    x, y = view.centres[0].astype(int)
    np.testing.assert_array_equal(view.pixels[y, x], 0)
    assert view.pixels.shape[0] < 80 and view.pixels.shape[1] < 100


def test_a_map_colours_each_spot_by_its_value_where_it_lies():
    view = tissue_view(picture_table())
    jpeg, low, high = map_jpeg(view, np.array([0.0, 1.0]))
    assert (low, high) == (pytest.approx(0.02), pytest.approx(0.98))
    drawn = np.asarray(Image.open(io.BytesIO(jpeg)), np.int64)
    scale = drawn.shape[1] / view.pixels.shape[1]
    first, second = (drawn[round((y + 0.5) * scale), round((x + 0.5) * scale)] for x, y in view.centres)
    assert np.abs(first - (68, 1, 84)).max() < 25 and np.abs(second - (253, 231, 37)).max() < 25  # viridis' ends


def test_a_map_of_one_level_is_drawn_too():
    jpeg, low, high = map_jpeg(tissue_view(picture_table()), np.array([0.5, 0.5]))
    assert low == high == 0.5 and Image.open(io.BytesIO(jpeg)).width > 200


def test_curves_are_drawn_with_their_limit():
    svg = curve_svg([("main", [1, 2], [1.0, 0.5])], title="loss", limit=(1.0, "guessing")).decode()
    assert svg.rstrip().endswith("</svg>") and "guessing" in svg and "loss" in svg
    assert svg == curve_svg([("main", [1, 2], [1.0, 0.5])], title="loss", limit=(1.0, "guessing")).decode()


def history(*rows: tuple[str, int, float | None]) -> list[dict]:
    """Rows (phase, epoch, recall or None) as training leaves them."""
    found = []
    for phase, epoch, recall in rows:
        row = {"phase": phase, "epoch": epoch, "loss_over_ln_batch": 0.9, "held_in_pearson": 0.1 * epoch}
        if recall is not None:
            row |= {
                "meter_recall_at_k": recall,
                "meter_chance": 0.1,
                "meter_k": 5,
                "meter_loss_over_ln_batch": 0.9,
                "meter_effective_rank": 7.0,
                "meter_guessing": recall <= 0.1,
                "meter_where": "held-in P2",
            }
        found.append(row)
    return found


def test_the_meter_is_read_at_the_epoch_that_was_kept():
    rows = [("search", 1, 0.1), ("search", 2, 0.4), ("search", 3, None), ("search", 4, 0.9), ("refit", 1, 0.8)]
    record = {"chosen_epoch": 3, "history": history(*rows)}
    assert kept_reading(record)["epoch"] == 2
    assert kept_reading({"history": []}) is None


def test_a_training_that_only_guesses_is_named_on_the_page(small_run, tmp_path):
    parts = [
        {**part, "record": {**part["record"], "chosen_epoch": 1, "history": history(("search", 1, 0.05))}}
        if part["method"] == "cmrcnet" and part["fold"] == "P2"
        else part
        for part in small_run.run.facts["parts"]
    ]
    run = dataclasses.replace(small_run.run, facts={**small_run.run.facts, "parts": parts})
    page = write_report(run, tmp_path / "r.html").read_text()
    assert re.search(r"Its training only guessed, says the collapse meter, in \d of 3 folds \([P1, ]*P2", page)
    training = page.partition("<h2>Training</h2>")[2]
    row = re.search(r"<tr><td>P2</td>.*?</tr>", training).group()
    assert "ONLY GUESSES" in row and "5.0%" in row
