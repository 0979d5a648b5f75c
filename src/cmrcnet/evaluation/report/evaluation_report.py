"""The report of an evaluation: one HTML file that opens offline, verdict first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.protocol.summary import verdict
from cmrcnet.evaluation.report.page import page, text
from cmrcnet.evaluation.report.report_correlation import correlation_figure
from cmrcnet.evaluation.report.report_genes import gene_explorer, marker_table
from cmrcnet.evaluation.report.report_maps import held_out_maps, unseen_maps
from cmrcnet.evaluation.report.report_methods import lead, methods_table, metrics_tables
from cmrcnet.evaluation.report.report_tables import folds_table, provenance, strip
from cmrcnet.evaluation.report.report_training import heads_table, training_curves
from cmrcnet.evaluation.report.report_trust import trust_report
from cmrcnet.storage.atomic import atomic_file

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.evaluation.protocol.evaluation_run import EvaluationRun


def write_report(run: EvaluationRun, path: Path, *, unseen: AnnData | Path | None = None) -> Path:
    """Write the report of a run.

    Parameters
    ----------
    run : EvaluationRun
    path : Path
        The HTML file to write; one that is there is replaced.
    unseen : AnnData or Path, optional
        Prediction table (or its .h5ad) of a slide without expression, shown as maps.

    Returns
    -------
    Path
    """
    with atomic_file(Path(path)) as tmp:
        tmp.write_text(_html(run, _read(unseen)), encoding="utf-8")
    return Path(path)


def _read(table: AnnData | Path | None) -> AnnData | None:
    if not isinstance(table, str | Path):
        return table
    from anndata import read_h5ad

    return read_h5ad(table)


def _html(run: EvaluationRun, unseen: AnnData | None) -> str:
    stamp = run.stamp
    facts = [
        f"leave-one-{stamp.unit}-out",
        f"{stamp.sections} section{'s' if stamp.sections != 1 else ''}",
        f"{stamp.patients} patient{'s' if stamp.patients != 1 else ''}",
        f"{stamp.folds} fold{'s' if stamp.folds != 1 else ''}",
        f"config {run.config.name}",
    ]
    badges = [f"<li>{text(fact)}</li>" for fact in facts]
    badges += [f'<li class="warn">{text(warning)}</li>' for warning in stamp.warnings]
    sections = [
        f'<p class="kicker">CMRCNet evaluation</p>\n<h1>{text(run.cohort.name)}</h1>\n',
        f'<p class="lead">{text(verdict(run))}</p>\n{lead(run)}<ul class="badges">{"".join(badges)}</ul>\n',
        f"<h2>Methods</h2>\n{strip(run)}{methods_table(run)}{metrics_tables(run)}",
        f"<h2>Truth, prediction and error</h2>\n{held_out_maps(run)}",
    ]
    if unseen is not None and MAIN in run.methods:
        sections.append(f"<h2>A slide without expression</h2>\n{unseen_maps(run, unseen)}")
    sections.append(f"<h2>Genes</h2>\n{gene_explorer(run)}{marker_table(run)}")
    if len(run.predictions) and (together := correlation_figure(run)):
        sections.append(f"<h2>Genes that go together</h2>\n{together}")
    if trust := trust_report(run):
        sections.append(f"<h2>How far to believe it</h2>\n{trust}")
    sections += [
        f"<h2>Training</h2>\n{training_curves(run)}{heads_table(run)}",
        f"<h2>Folds</h2>\n{folds_table(run)}",
        f"<h2>Provenance</h2>\n{provenance(run)}",
        f"<footer>Made by cmrcnet {text(run.facts['versions']['cmrcnet'])}. For research; not for diagnosis.</footer>",
    ]
    return page(f"CMRCNet evaluation of {run.cohort.name}", "\n".join(sections))
