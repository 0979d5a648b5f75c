"""Maps of the report: truth beside prediction and spread on the tissue, and predictions where there is no truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.evaluation.methods import MAIN
from cmrcnet.evaluation.report_figures import TissueView, map_jpeg, tissue_jpeg, tissue_view
from cmrcnet.evaluation.report_page import figure, text
from cmrcnet.evaluation.report_tables import LEAST_DETECTED, gene_means
from cmrcnet.evaluation.scoring import truth_of
from cmrcnet.evaluation.verdict import number

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from cmrcnet.evaluation.evaluation_run import EvaluationRun

_SECTIONS = 4
_UNSEEN_GENES = 7


def held_out_maps(run: EvaluationRun) -> str:
    """The best, the typical and the worst-predicted genes of a few sections."""
    shown = _sections_to_show(run)
    if not shown:
        return "<p>No maps: CMRCNet was not among the methods of this run.</p>"
    parts = [
        "<p>Of each section its best HVG, its typical HVG (the median) and the best of all genes, picked by their "
        "score as illustrations. Each map has a colour scale of its own in log-expression, from its 2nd to its 98th "
        "percentile: compare patterns, not colours. Spread is the deviation among the retrieved spots.</p>\n"
    ]
    return "".join([*parts, *(_section_maps(run, name) for name in shown)])


def unseen_maps(run: EvaluationRun, table: AnnData) -> str:
    """Predicted genes on a slide that has no expression: the most predictable HVG of the evaluation."""
    view = tissue_view(table)
    name = next(iter(table.uns["spatial"]))
    frame = gene_means(run, MAIN)
    known = set(map(str, table.var_names))
    listed = frame[frame.sets.str.contains("HVG") & frame.index.isin(known)]
    genes = list(listed.sort_values("pearson", ascending=False, kind="stable").index[:_UNSEEN_GENES])
    parts = [
        f"<p>{text(name)}: {table.n_obs:,} places, {table.n_vars:,} genes predicted from the picture alone. Shown are "
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


def _section_maps(run: EvaluationRun, name: str) -> str:
    table = run.predictions[name]
    view = tissue_view(table)
    genes = run.genes[(run.genes.method == MAIN) & (run.genes.section == name)]
    section = run.cohort.read(name)
    chosen = _genes_to_show(genes)
    measured, truth = truth_of(section, list(chosen), run.recipe.panel.target_sum)
    parts = [
        f"<h3>{text(name)}, patient {text(section.patient)}</h3>\n",
        f'<div class="sheet">{figure(tissue_jpeg(view), "jpeg", f"Tissue of {name}", "H&amp;E")}',
        f"<div>{_section_facts(run, name, len(section.spots))}</div></div>\n",
    ]
    for gene, role in chosen.items():
        pearson = number(float(genes[genes.gene == gene].pearson.iloc[0]))
        true = np.asarray(truth[:, measured.index(gene)].todense()).ravel()
        spread = np.asarray(table[:, gene].layers["spread"], np.float64).ravel()
        parts += [
            f'<div class="maps row">\n<div class="card"><b>{text(gene)}</b> {role}<br> Pearson {pearson}</div>\n',
            _map(view, true, f"Measured {gene} on {name}", "measured"),
            _map(view, _column(table, gene), f"Predicted {gene} on {name}", "predicted"),
            _map(view, spread, f"Spread of {gene} on {name}", "spread", "magma"),
            "</div>\n",
        ]
    return "".join(parts)


def _section_facts(run: EvaluationRun, name: str, spots: int) -> str:
    """Spots, and the mean HVG Pearson of every method on this section."""
    mine = run.scores[run.scores.section == name]
    mine = mine[(mine.gene_set == "HVG") & (mine.metric == "pearson")].set_index("method")["value"]
    said = ", ".join(f"{text(method)} {number(float(mine[method]))}" for method in run.methods)
    return f'<p>{spots:,} spots</p><p class="soft">Mean HVG Pearson here: {said}.</p>'


def _genes_to_show(genes: pd.DataFrame) -> dict[str, str]:
    """The section's best and typical HVG and its best gene of all that is often enough detected, and what they are."""
    defined = genes[genes.pearson.notna()].sort_values("pearson", ascending=False, kind="stable")
    listed = defined[defined.sets.str.contains("HVG")]
    found: dict[str, str] = {}
    if len(listed):
        found[listed.gene.iloc[0]] = "best HVG"
        found.setdefault(listed.gene.iloc[len(listed) // 2], "typical HVG")
    often = defined[defined.detected >= LEAST_DETECTED]
    if len(often):
        found.setdefault(often.gene.iloc[0], f"best of all genes detected in {LEAST_DETECTED:.0%} of spots or more")
    return found


def _map(view: TissueView, values: np.ndarray, alternative: str, caption: str, colours: str = "viridis") -> str:
    """A map with its colour scale under it; `caption` is safe HTML, `colours` one that the page has a bar for."""
    jpeg, low, high = map_jpeg(view, values, colours)
    scale = f'<span class="scale">{low:.2f}<i class="{colours}"></i>{high:.2f}</span>'
    return figure(jpeg, "jpeg", alternative, caption + scale)


def _column(table: AnnData, gene: str) -> np.ndarray:
    values = table[:, gene].X
    return np.asarray(values.todense() if hasattr(values, "todense") else values, np.float64).ravel()
