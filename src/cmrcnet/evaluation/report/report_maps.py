"""Maps of the report: truth, prediction and error on the tissue, and predictions where there is no truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.metrics.scoring import truth_of
from cmrcnet.evaluation.protocol.summary import number
from cmrcnet.evaluation.report.page import figure, text
from cmrcnet.evaluation.report.report_figures import TissueView, map_jpeg, tissue_jpeg, tissue_view
from cmrcnet.evaluation.report.report_genes import LEAST_DETECTED, gene_means

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.evaluation.protocol.evaluation_run import EvaluationRun

_SECTIONS = 4
_BEST, _BEST_OTHERS = 4, 2
_UNSEEN_GENES = 7


def held_out_maps(run: EvaluationRun) -> str:
    """Truth, prediction and error of a choice of genes on a few sections, one gene at a time."""
    shown, chosen = _sections_to_show(run), _genes_to_show(run)
    if not shown or not chosen:
        return "<p>No maps: CMRCNet was not among the methods of this run.</p>\n"
    blocks: dict[str, list[str]] = {gene: [] for gene in chosen}
    for name in shown:
        for gene, html in _section_maps(run, name, list(chosen)).items():
            blocks[gene].append(html)
    choices = "".join(f'<option value="{text(g)}">{text(g)} — {role}</option>' for g, role in chosen.items())
    parts = [
        "<p>Genes were picked by their mean score, as illustrations; sections are the best, the worst and some between."
        " Truth and prediction have a colour scale each, in log-expression, from their 2nd to their 98th percentile: "
        "compare patterns, not colours. Error is prediction minus truth: red too high, blue too low.</p>\n",
        f'<p class="tools" id="map-pick" hidden><label>Gene <select id="map-gene">{choices}</select></label></p>\n',
    ]
    for gene, role in chosen.items():
        inside = "".join(blocks[gene]) or "<p>None of the sections shown measured it.</p>\n"
        parts.append(f'<div data-map-gene="{text(gene)}"><h3>{text(gene)}, {role}</h3>\n{inside}</div>\n')
    return "".join(parts)


def unseen_maps(run: EvaluationRun, table: AnnData) -> str:
    """Predicted genes on a slide that has no expression: the most predictable HVG of the evaluation."""
    view = tissue_view(table)
    name = next(iter(table.uns["spatial"]))
    frame = gene_means(run, MAIN)
    known = set(map(str, table.var_names))
    listed = frame[frame.sets.str.contains("HVG") & frame.index.isin(known)]
    genes = list(listed.sort_values("pearson", ascending=False, kind="stable").index[:_UNSEEN_GENES])
    parts = [
        f"<p>{text(name)}: {table.n_obs:,} locations, {table.n_vars:,} genes predicted from the picture "
        f"alone. Shown are "
        f"the HVG that the held-out sections say can be trusted most.</p>\n",
        '<div class="maps">\n',
        figure(tissue_jpeg(view), "jpeg", f"Tissue of {name}", f"<b>{text(name)}</b><br>H&amp;E"),
    ]
    for gene in genes:
        caption = f"<b>{text(gene)}</b>, held-out Pearson {number(float(frame.pearson[gene]))}"
        parts.append(_map(view, _column(table, gene), f"Predicted {gene} on {name}", caption))
    return "".join([*parts, "</div>\n"])


def _sections_to_show(run: EvaluationRun) -> list[str]:
    """Best, worst and evenly between, by HVG Pearson, among those with a table; in the order of the score."""
    scores = run.scores
    picked = scores[(scores.method == MAIN) & (scores.gene_set == "HVG") & (scores.metric == "pearson")]
    picked = picked[picked.section.isin(list(run.predictions))].sort_values("value", ascending=False, kind="stable")
    names = list(picked.section)
    if len(names) <= _SECTIONS:
        return names
    return [names[round(i)] for i in np.linspace(0, len(names) - 1, _SECTIONS)]


def _section_maps(run: EvaluationRun, name: str, genes: list[str]) -> dict[str, str]:
    """Of each gene that the section measured, one row of maps."""
    predicted, section = run.predictions[name], run.cohort.read(name)
    view = tissue_view(predicted)
    scores = run.genes[(run.genes.method == MAIN) & (run.genes.section == name)].set_index("gene").pearson
    measured = [gene for gene in genes if gene in scores.index]
    if not measured:
        return {}
    _, truth = truth_of(section, measured, run.config.panel.target_sum)
    found = {}
    for place, gene in enumerate(measured):
        true = np.asarray(truth[:, place].todense()).ravel()
        said = _column(predicted, gene)
        card = (
            f"<b>{text(name)}</b> patient {text(section.patient)},<br> "
            f"{len(section.spots):,} spots,<br> Pearson {number(float(scores[gene]))}"
        )
        found[gene] = (
            f'<div class="maps row">\n<div class="card">{card}</div>\n'
            + _map(view, true, f"Measured {gene} on {name}", "measured")
            + _map(view, said, f"Predicted {gene} on {name}", "predicted")
            + _map(view, said - true, f"Error of {gene} on {name}", "error", "error")
            + "</div>\n"
        )
    return found


def _genes_to_show(run: EvaluationRun) -> dict[str, str]:
    """Genes by their place in the order of mean Pearson, and what they are: the best, a typical and the worst HVG."""
    if MAIN not in run.methods:
        return {}
    frame = gene_means(run, MAIN)
    frame = frame[(frame.defined * 2 > frame.sections) & frame.pearson.notna()]
    frame = frame.sort_values("pearson", ascending=False, kind="stable")
    listed = frame.index[frame.sets.str.split().map(lambda sets: "HVG" in sets)]
    found: dict[str, str] = {}
    for place, gene in enumerate(listed[:_BEST]):
        found[gene] = f"HVG number {place + 1}"
    if len(listed):
        found.setdefault(listed[len(listed) // 2], "typical HVG (the median)")
        found.setdefault(listed[-1], "worst HVG")
    often = frame.index[frame.detected >= LEAST_DETECTED]
    others = [gene for gene in often if gene not in found][:_BEST_OTHERS]
    return found | dict.fromkeys(others, f"among the best of all genes seen in {LEAST_DETECTED:.0%} of spots or more")


def _map(view: TissueView, values: np.ndarray, alternative: str, caption: str, colours: str = "viridis") -> str:
    """A map with its colour scale under it; `caption` is safe HTML, `colours` one that the page has a bar for."""
    jpeg, low, high = map_jpeg(view, values, "RdBu_r" if colours == "error" else colours, centred=colours == "error")
    scale = f'<span class="scale">{low:.2f}<i class="{colours}"></i>{high:.2f}</span>'
    return figure(jpeg, "jpeg", alternative, caption + scale)


def _column(table: AnnData, gene: str) -> np.ndarray:
    values = table[:, gene].X
    return np.asarray(values.todense() if hasattr(values, "todense") else values, np.float64).ravel()
