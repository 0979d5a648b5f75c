"""The report of an evaluation: one HTML file that opens offline, summary first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cmrcnet.evaluation.methods.method import MAIN
from cmrcnet.evaluation.report.calibration_section import calibration_section
from cmrcnet.evaluation.report.gene_section import correlation_section, gene_explorer, marker_table
from cmrcnet.evaluation.report.map_section import held_out_maps, unseen_maps
from cmrcnet.evaluation.report.method_section import comparison, folds_section, methods_section, provenance_section
from cmrcnet.evaluation.report.page import page_of_kind, render
from cmrcnet.evaluation.report.summary import summary
from cmrcnet.evaluation.report.training_section import training_section
from cmrcnet.storage.atomic import atomic_file

if TYPE_CHECKING:
    from anndata import AnnData

    from cmrcnet.evaluation.protocol.evaluate import EvaluationRun


def write_report(run: EvaluationRun, path: Path, *, unseen: AnnData | Path | None = None) -> Path:
    """Write the report of a run.

    Parameters
    ----------
    run : EvaluationRun
    path : Path
        The HTML file to write; an existing one is replaced.
    unseen : AnnData or Path, optional
        Prediction table (or its .h5ad) of a slide without expression, shown as maps.

    Returns
    -------
    Path

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from cmrcnet import TokenCache, evaluate, synthetic_cohort, write_report
    >>> from cmrcnet.config import Config
    >>> config = Config.load("tiny").override({"panel.n_hvg": 10, "evaluation.set_size": 5})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = TokenCache(Path(folder))
    ...     cohort = synthetic_cohort(patients=2, spots=20, genes=40)
    ...     run = evaluate(cohort, config, methods=["gene-mean"], cache=cache)
    ...     page = write_report(run, Path(folder) / "report.html").read_text()
    >>> "<h2>Methods</h2>" in page
    True
    """
    if isinstance(unseen, str | Path):
        from anndata import read_h5ad

        unseen = read_h5ad(unseen)
    info = run.protocol_info
    numbers = {"section": info.sections, "patient": info.patients, "fold": info.folds}
    values = {
        "title": f"CMRCNet evaluation of {run.cohort.name}",
        "run": run,
        "summary": summary(run),
        "comparison": comparison(run),
        "badges": [
            f"leave-one-{info.group_by}-out",
            *(f"{count} {what}{'s' if count != 1 else ''}" for what, count in numbers.items()),
            f"config {run.config.name}",
            *([f"{info.table_kind}: {info.units}"] if info.units else []),
        ],
        "sections": [
            ("Methods", methods_section(run)),
            ("Truth, prediction and error", held_out_maps(run)),
            (
                "A slide without expression",
                unseen_maps(run, unseen) if unseen is not None and MAIN in run.methods else "",
            ),
            ("Genes", gene_explorer(run) + marker_table(run)),
            ("Correlated genes", correlation_section(run) if len(run.predictions) else ""),
            ("Uncertainty", calibration_section(run)),
            ("Training", training_section(run)),
            ("Folds", folds_section(run)),
            ("Provenance", provenance_section(run)),
        ],
    }
    with atomic_file(Path(path)) as tmp:
        tmp.write_text(page_of_kind(render("evaluation.html", values), info.table_kind), encoding="utf-8")
    return Path(path)
