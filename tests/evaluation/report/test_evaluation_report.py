"""The report: one page, offline, verdict first, every table stamped, nothing taken for markup."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser

import anndata as ad
import numpy as np
import pytest
from PIL import Image

from cmrcnet.evaluation.methods.trained_cmrcnet import kept_reading
from cmrcnet.evaluation.metrics.intervals import intervals, paired_differences
from cmrcnet.evaluation.metrics.set_metrics import gene_correlation
from cmrcnet.evaluation.protocol.evaluate import EvaluationRun
from cmrcnet.evaluation.report.evaluation_report import write_report
from cmrcnet.evaluation.report.gene_section import (
    _pairs,
    correlated_genes,
    gene_explorer,
    gene_frame,
    gene_means,
    marker_table,
)
from cmrcnet.evaluation.report.map_section import _genes_to_show, map_jpeg, tissue_view
from cmrcnet.evaluation.report.method_section import between, signed, strip
from cmrcnet.evaluation.report.page import table
from cmrcnet.evaluation.report.summary import number, summary
from cmrcnet.evaluation.report.training_section import curve_svg
from cmrcnet.slides.section import Cohort
from cmrcnet.uncertainty.gene_reliability import predictability
from tests.evaluation.made_run import made_cohort, made_run

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


@dataclass(frozen=True)
class Made:
    """A run whose methods are blurred truth, and its cohort."""

    cohort: Cohort
    run: EvaluationRun


@pytest.fixture(scope="module")
def small_run() -> Made:
    cohort = made_cohort()
    return Made(cohort, made_run(cohort))


def rows_of(page: str, identity: str) -> list[list[str]]:
    """Texts of the cells of a table's body."""
    body = re.search(rf'<table id="{identity}".*?<tbody>(.*?)</tbody>', page, re.S).group(1)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", body)]


def embedded(page: str) -> dict:
    """The rows of the gene explorer."""
    return json.loads(re.search(r'<script type="application/json" id="gene-rows">(.*?)</script>', page, re.S).group(1))


@pytest.fixture(scope="module")
def page(small_run, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(small_run.run, path).read_text(encoding="utf-8")


def test_the_page_is_one_well_formed_file_that_opens_offline(page):
    outline = Outline(page)
    assert outline.addresses and all(address.startswith("data:image/") for address in outline.addresses)
    assert not re.search(r"@import|url\(|fetch\(|https?://", re.sub(r'base64,[^"]*', "", page))
    assert len(page) < 12_000_000


def test_the_verdict_comes_first_and_every_section_is_there(page, small_run):
    outline = Outline(page)
    assert outline.headings[0] == small_run.cohort.name
    wanted = ["Methods", "Truth, prediction and error", "Genes", "Correlated genes", "Training", "Folds"]
    assert [h for h in outline.headings if h in (*wanted, "Provenance")] == [*wanted, "Provenance"]
    assert page.index(summary(small_run.run)) < page.index("<h2>")
    assert 'name="viewport"' in page


def test_every_table_of_scores_bears_the_protocol(page, small_run):
    stamp = small_run.run.protocol_info.to_text()
    scores, _, provenance = page.partition("<h2>Provenance</h2>")
    # Methods, four gene sets, genes, collapse meter, heads, folds; and the figure of correlations.
    assert (scores.count("<table"), scores.count(stamp)) == (9, 10)
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
    facts = {**small_run.run.metadata, "cohort": {"name": evil, "sections": [
        {**each, "notes": [evil]} for each in small_run.run.metadata["cohort"]["sections"]
    ]}}  # fmt: skip
    run = dataclasses.replace(
        small_run.run,
        cohort=cohort,
        metadata=facts,
        methods={**small_run.run.methods, "ridge": evil},
        genes=small_run.run.genes.replace({"gene": {small_run.run.genes.gene[0]: "</script><b>"}}),
        predictions={},
    )
    page = write_report(run, tmp_path / "r.html").read_text(encoding="utf-8")
    assert evil not in page and "alert(&#39;x&#39;)" in page
    assert Outline(page).count["script"] == 2 and "</script><b>" not in page
    assert "</script><b>" in [row[0] for row in embedded(page)["rows"]]


def test_methods_show_their_means_intervals_and_paired_differences(page, small_run):
    run = small_run.run
    rows = {row[0]: row[1:] for row in rows_of(page, "methods")}
    assert list(rows) == list(run.methods)
    spans = {name: intervals(run.scores, name).set_index("method") for name in ("HVG", "HEG")}
    gaps = paired_differences(run.scores, "cmrcnet").set_index("other")
    for method, row in rows.items():
        hvg, heg = (spans[name].loc[method] for name in ("HVG", "HEG"))
        assert row[:4] == [
            number(hvg["value"]),
            between(hvg.low, hvg.high),
            number(heg["value"]),
            between(heg.low, heg.high),
        ]
        assert float(row[0]) == pytest.approx(run.mean(method), abs=6e-4)
        assert row[7] == f"{run.mean(method, metric='pearson_share'):.0%}" and row[8].endswith(" s")
    assert rows["cmrcnet"][4:7] == ["", "", ""]
    gap = gaps.loc["ridge"]
    assert rows["ridge"][4:7] == [signed(gap.difference), between(gap.low, gap.high, plus=True), "3/3"]
    assert f"minus ridge: {signed(gap.difference)} (" in page[: page.index("<h2>")]


def test_the_strip_has_room_for_an_interval_that_is_wider_than_the_patients(small_run):
    """With one patient the interval is over its sections, and reaches beyond the one dot."""
    run = dataclasses.replace(small_run.run, scores=small_run.run.scores.assign(patient="P1"))
    ranges = re.findall(r'class="range" style="left:(-?[\d.]+)%;width:([\d.]+)%', strip(run))
    assert len(ranges) >= 2
    for left, width in ranges:
        assert float(left) >= 0 and float(left) + float(width) <= 100


def test_signs_and_intervals_are_spelt_out():
    assert [signed(v) for v in (0.0123, -0.0123, 0.0001, float("nan"))] == ["+0.012", "-0.012", "0.000", "undefined"]
    assert between(0.1, 0.2) == "0.100 to 0.200" and between(-0.1, 0.2, plus=True) == "-0.100 to +0.200"
    assert between(float("nan"), float("nan")) == "undefined"


def test_every_metric_stands_in_the_folded_tables(page, small_run):
    summary = small_run.run.means()
    folded = re.search(r"<summary>All other metrics.*?</details>", page, re.S).group()
    for name in dict.fromkeys(summary.gene_set):
        mine = summary[(summary.gene_set == name) & (summary.method == "ridge")]
        part = folded.partition(f"<h3>{name}</h3>")[2].partition("</table>")[0]
        row = re.findall(r"<td[^>]*>(.*?)</td>", re.search(r"<tr><td>ridge</td>.*?</tr>", part).group())
        assert row[1:-1] == [number(value) for value in mine["value"]]


def test_the_explorer_carries_the_genes_of_the_run(page, small_run):
    run, data = small_run.run, embedded(page)
    genes = run.genes[run.genes.method == "cmrcnet"]
    assert sorted(row[0] for row in data["rows"]) == sorted(set(genes.gene))
    patient_of = {each["section"]: each["patient"] for each in run.metadata["cohort"]["sections"]}
    graded = predictability(run.genes, patient_of, method="cmrcnet", null="permuted-pairs").set_index("gene")
    at = {name: place for place, name in enumerate(data["columns"])}
    for row in data["rows"]:
        mine = graded.loc[row[0]]
        assert row[at["grade"]] == mine.grade and len(row) == len(at)
        for column, value in (("Pearson", mine.pearson), ("low", mine.low), ("share", mine.share)):
            assert row[at[column]] == (pytest.approx(value, abs=6e-4) if np.isfinite(value) else None)
    ridge = run.genes[(run.genes.method == "ridge")].groupby("gene").pearson.mean()
    listed = next(row for row in data["rows"] if row[at["set"]])
    assert listed[at["ridge"]] == pytest.approx(ridge[listed[0]], abs=6e-4)


def test_genes_of_named_sets_come_first_and_a_gene_seen_in_one_spot_last(small_run):
    genes = small_run.run.genes.copy()
    rare = genes[(genes.method == "cmrcnet") & (genes.sets == "")].gene.iloc[0]
    genes.loc[genes.gene == rare, "sets"] = ""
    genes.loc[genes.gene == rare, ["pearson", "detected"]] = [1.0, 0.02]
    run = dataclasses.replace(small_run.run, genes=genes)
    frame = gene_frame(run)
    named = (frame.sets != "").tolist()
    assert named == sorted(named, reverse=True) and 0 < sum(named) < len(named)
    first = frame[frame.sets != ""].pearson.tolist()
    assert first == sorted(first, reverse=True)
    assert frame.index[-1] == rare
    assert rare not in _genes_to_show(run)
    run.genes.loc[run.genes.gene == rare, "detected"] = 0.5
    assert _genes_to_show(run)[rare].startswith("among the best of all genes")


def test_the_explorer_carries_no_more_than_it_says(small_run, monkeypatch):
    monkeypatch.setattr("cmrcnet.evaluation.report.gene_section.MOST_GENES", 7)
    html = gene_explorer(small_run.run)
    assert len(embedded(html)["rows"]) == 7 and "7 of 60 scored genes" in html


def test_signatures_of_the_organ_are_listed_with_their_source(small_run):
    run = small_run.run
    assert marker_table(run) == ""
    names = dict(zip(dict.fromkeys(run.genes.gene), ("ERBB2", "GRB7"), strict=False))
    entries = tuple(dataclasses.replace(each, metadata={"disease": "breast cancer"}) for each in run.cohort.entries)
    breast = dataclasses.replace(run, genes=run.genes.replace({"gene": names}), cohort=Cohort(run.cohort.name, entries))
    html = marker_table(breast)
    assert "Marker signatures, breast" in html and run.protocol_info.to_text() in html
    assert re.search(r"(ERBB2|GRB7) [-0-9]", html)
    assert "MG" in gene_frame(breast).sets["ERBB2"].split()


def test_maps_show_truth_prediction_and_error_of_chosen_genes(page, small_run):
    chosen = _genes_to_show(small_run.run)
    assert re.findall(r'<option value="([^"]+)">[^<]* — ', page) == list(chosen)
    for gene in chosen:
        for section in small_run.cohort.sections:
            for what in ("Measured", "Predicted", "Error of"):
                assert f'alt="{what} {gene} on {section}"' in page
    for image in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)[:3]:
        assert Image.open(io.BytesIO(base64.b64decode(image))).width > 200


def test_the_best_hvg_is_the_first_on_the_maps(page, small_run):
    frame = gene_means(small_run.run, "cmrcnet")
    hvg = frame[frame.sets.str.contains("HVG")]
    assert next(iter(_genes_to_show(small_run.run))) == hvg.pearson.idxmax()
    genes = small_run.run.genes
    value = genes[
        (genes.method == "cmrcnet") & (genes.section == "P1S1") & (genes.gene == hvg.pearson.idxmax())
    ].pearson
    block = page.partition(f'<div data-map-gene="{hvg.pearson.idxmax()}">')[2]
    assert f"Pearson {number(value.iloc[0])}" in block.partition("<b>P1S1</b>")[2].partition("</div>")[0]


def test_an_error_map_is_white_at_zero_and_as_wide_on_both_sides():
    view = tissue_view(picture_table())
    jpeg, low, high = map_jpeg(view, np.array([0.0, -2.0]), "RdBu_r", centred=True)
    assert low == -high == pytest.approx(-1.96)
    drawn = np.asarray(Image.open(io.BytesIO(jpeg)), np.int64)
    scale = drawn.shape[1] / view.pixels.shape[1]
    none, blue = (drawn[round((y + 0.5) * scale), round((x + 0.5) * scale)] for x, y in view.centres)
    assert none.min() > 225 and blue[2] > blue[0] + 40


def test_the_correlation_figure_is_of_hvg_over_all_sections(page, small_run):
    run, genes = small_run.run, correlated_genes(small_run.run)
    assert (
        set(genes) <= {gene for fold in run.metadata["folds"] for gene in fold["gene_sets"]["HVG"]} and len(genes) > 5
    )
    found = gene_correlation(_pairs(run, genes), genes)
    assert found.agreement > 0 and len(genes) == found.truth.shape[0]
    assert 'alt="Gene-gene correlation, measured and predicted"' in page and f"{len(genes)} HVG (those that" in page


def test_what_the_heads_chose_is_shown_fold_by_fold(page, small_run):
    part = page.partition("Choices of the heads")[2].partition("</table>")[0]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>.*?</tr>", part)[1:]]
    assert [row[0] for row in rows] == [fold.name for fold in small_run.run.folds]
    assert rows[0][1:] == ["0.41", "0.25", "0.34", "0.301", "0.302", "0.303", "0.304", "316", "2", "0.1", "3"]


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
    run = dataclasses.replace(small_run.run, predictions={})  # maps of the held-out sections are not looked at here
    page = write_report(run, tmp_path / "r.html", unseen=file).read_text(encoding="utf-8")
    assert "A slide without expression" in page and "predicted from the slide alone" in page
    assert "A slide without expression" not in write_report(run, tmp_path / "r.html").read_text()
    Outline(page)


def test_a_run_without_cmrcnet_has_a_report_too(small_run, tmp_path):
    run = made_run(small_run.cohort, ("ridge", "permuted-pairs"))
    page = write_report(run, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "No maps" in page and "Correlated genes" not in page and "ridge minus it" in page
    assert "Ridge on the same frozen features reaches a mean HVG Pearson of" in page
    Outline(page)


def test_the_verdict_claims_no_more_than_the_run_shows(small_run):
    said = summary(small_run.run)
    assert said.startswith(f"CMRCNet reaches a mean HVG Pearson of {number(small_run.run.mean('cmrcnet'))} on held-out")
    assert f"the permuted-pairs null {number(small_run.run.mean('permuted-pairs'))}" in said
    assert said.endswith("3 patients: too few patients to rank methods.")
    many = dataclasses.replace(
        small_run.run, protocol_info=dataclasses.replace(small_run.run.protocol_info, patients=5)
    )
    assert "too few" not in summary(many)
    leaking = dataclasses.replace(small_run.run.protocol_info, patient_disjoint=False, group_by="section")
    said = summary(dataclasses.replace(small_run.run, protocol_info=leaking))
    assert "on held-out sections" in said and "inflates the scores of every method" in said


def test_among_many_methods_the_verdict_names_the_known_ones_and_the_best_other(small_run):
    import pandas as pd

    run = small_run.run
    ridge = run.scores[run.scores.method == "ridge"]
    more = [ridge.assign(method=f"rival-{i}", value=0.1 * i) for i in range(1, 5)]
    many = dataclasses.replace(
        run, scores=pd.concat([run.scores, *more]), methods=run.methods | {f"rival-{i}": "x" for i in range(1, 5)}
    )
    said = summary(many)
    assert "the best of 4 further methods (rival-4) 0.400" in said and "rival-1" not in said
    assert "ridge on the same frozen features" in said


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
        row = {"phase": phase, "epoch": epoch, "loss_over_ln_batch": 0.9, "validation_pearson": 0.1 * epoch}
        if recall is not None:
            row |= {
                "meter_recall_at_k": recall,
                "meter_chance": 0.1,
                "meter_k": 5,
                "meter_loss_over_ln_batch": 0.9,
                "meter_effective_rank": 7.0,
                "meter_at_chance": recall <= 0.1,
                "meter_where": "validation P2",
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
        for part in small_run.run.metadata["results"]
    ]
    run = dataclasses.replace(small_run.run, metadata={**small_run.run.metadata, "results": parts}, predictions={})
    page = write_report(run, tmp_path / "r.html").read_text()
    assert re.search(r"By the collapse meter, its training stayed at chance in \d of 3 folds \([P1, ]*P2", page)
    training = page.partition("<h2>Training</h2>")[2]
    row = re.search(r"<tr><td>P2</td>.*?</tr>", training).group()
    assert "AT CHANCE" in row and "5.0%" in row
