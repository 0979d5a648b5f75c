"""The command that asks whether what slides predict tells outcomes of patients: outcomes."""

from __future__ import annotations

from pathlib import Path

from cmrcnet.cli.options import DEFAULT_WORKERS, WorkersOptions, split_names
from cmrcnet.errors import BadOption
from cmrcnet.storage.atomic import atomic_folder, refuse_existing
from cmrcnet.storage.hashing import write_sealed
from cmrcnet.storage.names import guard_table

FORMAT = 1


def outcomes_command(
    patients: Path,
    *,
    out: Path,
    time: str | None = None,
    event: str | None = None,
    label: str | None = None,
    clinical: list[str] | None = None,
    features: list[str] | None = None,
    leave_out: list[str] | None = None,
    folds: int = 5,
    repeats: int = 2,
    components: int = 10,
    penalties: list[float] | None = None,
    l1_ratio: float = 0.0,
    permutations: int = 20,
    seed: int = 0,
    workers: WorkersOptions = DEFAULT_WORKERS,
    overwrite: bool = False,
) -> Path:
    """Ask whether predicted expression tells survival or a class of patients, beside clinical variables and nulls.

    Nested cross-validation by patient; everything is fitted inside the fold. A table of patients is enough:
    `cmrcnet outcomes patients.csv --time months --event dead --clinical age sex --out run`. All other columns of
    numbers are then the expression. The answer is the paired difference "clinical + expression minus clinical" with
    its interval; below 50 events it is "too few events to say".

    Parameters
    ----------
    patients : Path
        Table with one row a patient (.csv, .tsv, also gzipped, or .parquet): column patient, the outcome, clinical
        variables, and numbers of the slides if there are any.
    out : Path
        Folder to write: report.html, scores.csv, differences.csv, null.csv, predictions.csv, run.json.
    time : str, optional
        Column of the follow-up; with --event, for survival.
    event : str, optional
        Column of the event: 1 when it was seen, 0 when the patient was censored.
    label : str, optional
        Column of the class (subtype), in place of --time and --event.
    clinical : list of str, optional
        Clinical columns; those of text are categories.
    features : list of str, optional
        Columns of predicted expression; all other columns of numbers when left out.
    leave_out : list of str, optional
        Columns that are neither.
    folds : int
        Folds of the outer cross-validation.
    repeats : int
        Times that the folds are drawn anew.
    components : int
        Most principal components of a block of features; clinical columns stay as they are.
    penalties : list of float, optional
        Penalties to choose from inside the fold; 0.03, 0.3 and 3 when left out.
    l1_ratio : float
        Share of the l1 penalty in the elastic net: 0 is ridge, 1 is lasso (about six times as slow).
    permutations : int
        Times that expression is given to other patients, for the null; the smallest p is 1 / (permutations + 1).
    seed : int
        Of folds, permutations and bootstrap.
    workers : WorkersOptions
        Where folds are fitted in parallel.
    overwrite : bool
        Replace OUT.
    """
    from cmrcnet.outcomes.models import ModelOptions
    from cmrcnet.outcomes.protocol import ProtocolOptions

    if (time is None) != (event is None) or (time is None) == (label is None):
        raise BadOption("outcome", time or event or label or "", "either --time and --event, or --label")
    models = ModelOptions(
        components=components,
        penalties=tuple(penalties) if penalties else ModelOptions.penalties,
        l1_ratio=l1_ratio,
    )
    options = ProtocolOptions(folds=folds, repeats=repeats, permutations=permutations, seed=seed, models=models)
    refuse_existing(out, overwrite, folder=True)

    from cmrcnet.outcomes.cohort import cohort_of_table
    from cmrcnet.outcomes.models import require_lifelines
    from cmrcnet.outcomes.protocol import compare, predictions_table
    from cmrcnet.outcomes.report import report_html, to_text, versions
    from cmrcnet.readers.patient_table import read_patients

    if label is None:
        require_lifelines()
    cohort = cohort_of_table(
        read_patients(patients),
        name=patients.name.split(".")[0],
        time=time,
        event=event,
        label=label,
        clinical=split_names(clinical) or (),
        features=split_names(features),
        leave_out=split_names(leave_out) or (),
    )
    chosen = workers.to_options()
    run = compare(cohort, options, workers=chosen.count(len(cohort)), engine=chosen.engine)
    with atomic_folder(out, overwrite) as folder:
        tables = {
            "scores.csv": run.scores,
            "differences.csv": run.differences,
            "null.csv": run.null,
            "predictions.csv": predictions_table(run),
        }
        for name, found in tables.items():
            guard_table(found).to_csv(folder / name, index=False)
        (folder / "report.html").write_text(report_html(run), encoding="utf-8")
        content = {"format": FORMAT, "cohort": cohort.name, "options": options.to_dict(), "versions": versions()}
        write_sealed(folder / "run.json", content | {"fits": list(run.records)}, [folder / name for name in tables])
    print(to_text(run))
    print(f"Report: {out / 'report.html'}")
    return out
