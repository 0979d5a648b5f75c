"""The page of a transfer: one table, and what was shared."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cmrcnet.evaluation.protocol.summary import number
from cmrcnet.evaluation.report.page import page, table, text

if TYPE_CHECKING:
    from cmrcnet.evaluation.sweep.sweep_folder import SweepFolder
    from cmrcnet.evaluation.sweep.transfer import TransferRun


def write_transfer(run: TransferRun, folder: SweepFolder) -> None:
    """Write transfer.csv and transfer.html into the folder.

    Parameters
    ----------
    run : TransferRun
    folder : SweepFolder
    """
    folder.write("transfer.csv", run.table.to_csv(index=False))
    folder.write("transfer.html", _html(run))


def _html(run: TransferRun) -> str:
    train = run.facts["train"]
    heads = ["test", "method", "set", "transfer", "95 % over patients", "inside test", "drop", "95 %"]
    heads += [f"inside {train}", "undefined"]
    rows = []
    for row in run.table[run.table.metric == "pearson"].itertuples():
        rows.append(
            [
                row.test,
                row.method,
                row.gene_set,
                number(row.transfer),
                _between(row.low, row.high),
                number(row.inside_test),
                number(row.drop),
                _between(row.drop_low, row.drop_high),
                number(row.inside_train),
                f"{row.n_undefined:,}/{row.n_genes:,}",
            ]
        )
    notes = "".join(f'<p class="stamp">{text(note)}</p>\n' for note in run.facts["notes"])
    words = (
        f'<p class="kicker">CMRCNet transfer</p>\n<h1>{text(train)} to {text(", ".join(run.facts["tests"]))}</h1>\n'
        f'<p class="lead">Trained on all of {text(train)}, tested on the other cohort. Mean Pearson. The drop is what '
        "is lost against training inside the test cohort, on the same genes of the same sections.</p>\n"
    )
    return page(f"CMRCNet transfer from {train}", words + table(heads, rows) + notes)


def _between(low: float, high: float) -> str:
    return "one patient" if math.isnan(low) else f"{low:.3f} to {high:.3f}"
