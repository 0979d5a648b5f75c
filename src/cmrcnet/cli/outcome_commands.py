"""The command that asks whether what slides predict tells outcomes of patients: outcomes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cmrcnet.cli.options import DEFAULT_CONFIG, DEFAULT_WORKERS, ConfigOptions, WorkersOptions, split_names
from cmrcnet.errors import BadInput, BadOption
from cmrcnet.slides.slide import open_slide
from cmrcnet.storage.atomic import atomic_folder, refuse_existing
from cmrcnet.storage.hashing import file_checksum, write_sealed
from cmrcnet.storage.names import guard_table

if TYPE_CHECKING:
    from cmrcnet.outcomes.cohort import OutcomeCohort

FORMAT = 1


def outcomes_command(
    patients: Path,
    *,
    out: Path,
    slides: Path | None = None,
    organ: str | None = None,
    model: Path | None = None,
    paired: Path | None = None,
    config: ConfigOptions = DEFAULT_CONFIG,
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
    slides : Path, optional
        Table with one row a slide: columns slide, patient and table (a prediction table of `cmrcnet predict`, relative
        to this file); optional case, image (the slide, for ImageNet features), mpp, and shuffled (a table by a model
        that was trained on shuffled pairs). A patient may have several slides. The model may have seen no patient of
        PATIENTS.
    organ : str, optional
        Marker list whose signatures give spatial statistics: breast, colorectal, liver, skin, spinal cord.
    model : Path, optional
        The expression model, to compare its image embedding too; needs the column image.
    paired : Path, optional
        In place of --slides: cohort file of sections of these patients, with measured expression. In every fold an
        expression model is trained on sections of training patients, and another on shuffled pairs; (folds x repeats x
        8) trainings. Sections of other patients are trained on in every fold. A column case tells cases of a patient
        apart.
    config : ConfigOptions
        How the expression models of --paired are trained.
    time : str, optional
        Column of the follow-up; with --event, for survival.
    event : str, optional
        Column of the event: 1 when it was seen, 0 when the patient was censored.
    label : str, optional
        Column of the class (subtype), in place of --time and --event.
    clinical : list of str, optional
        Clinical columns; those of text are categories.
    features : list of str, optional
        Columns of predicted expression, without --slides and --paired; all other columns of numbers when left out.
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
    if paired is not None and (slides or organ or model) is not None:
        raise BadOption("paired", str(paired), "no --slides, --organ or --model: they belong to predicted slides")
    if paired is None and config != DEFAULT_CONFIG:
        raise BadOption("config", config.config, "nothing without --paired: no expression model is trained")
    models = ModelOptions(
        components=components,
        penalties=tuple(penalties) if penalties else ModelOptions.penalties,
        l1_ratio=l1_ratio,
    )
    options = ProtocolOptions(folds=folds, repeats=repeats, permutations=permutations, seed=seed, models=models)
    refuse_existing(out, overwrite, folder=True)

    from cmrcnet.outcomes.cohort import cohort_of_table
    from cmrcnet.outcomes.models import require_lifelines
    from cmrcnet.outcomes.paired import with_paired
    from cmrcnet.outcomes.protocol import compare, predictions_table
    from cmrcnet.outcomes.report import report_html, to_text, versions
    from cmrcnet.outcomes.risk_maps import risk_maps
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.readers.patient_table import read_patients
    from cmrcnet.storage.cache import TokenCache

    if label is None:
        require_lifelines()
    cohort = cohort_of_table(
        read_patients(patients),
        name=patients.name.split(".")[0],
        time=time,
        event=event,
        label=label,
        clinical=split_names(clinical) or (),
        features=[] if (slides or paired) is not None and features is None else split_names(features),
        leave_out=split_names(leave_out) or (),
    )
    cohort = replace(cohort, facts={**cohort.facts, "table": patients.name, "checksum": file_checksum(patients)})
    if paired is not None:
        cohort = with_paired(cohort, read_cohort(paired), config.load(), TokenCache.default())
    elif slides is not None:
        cohort = _with_slides(cohort, slides, organ, model)
    elif organ is not None or model is not None:
        raise BadOption("organ" if organ else "model", organ or str(model), "nothing without --slides")
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
        (folder / "report.html").write_text(report_html(run, maps=risk_maps(run)), encoding="utf-8")
        content = {"format": FORMAT, "cohort": cohort.name, "data": dict(cohort.facts)}
        content |= {"options": options.to_dict(), "versions": versions()}
        write_sealed(folder / "run.json", content | {"fits": list(run.records)}, [folder / name for name in tables])
    print(to_text(run))
    print(f"Report: {out / 'report.html'}")
    return out


def _with_slides(cohort: OutcomeCohort, path: Path, organ: str | None, model: Path | None) -> OutcomeCohort:
    """Read the slides' prediction tables, and what else their columns name, and pool them by case."""
    from cmrcnet.export.stored_prediction import StoredPrediction
    from cmrcnet.genes.markers import markers
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.outcomes.pooling import SlideStack, slide_values, with_slides
    from cmrcnet.outcomes.slide_features import SlideFeatures
    from cmrcnet.progress import tracked
    from cmrcnet.readers.patient_table import read_patients
    from cmrcnet.storage.cache import TokenCache

    listed = read_patients(path)
    if missing := [name for name in ("slide", "table") if name not in listed]:
        raise BadInput.columns(path, missing, list(listed.columns))
    if model is not None and "image" not in listed:
        raise BadOption("model", str(model), "a column image in the table of slides beside it")
    made = SlideFeatures(
        TokenCache.default(), cohort.patients, None if model is None else TrainedModel.from_pretrained(model)
    )
    found, patient_of = [], dict(zip(cohort.cases, cohort.patients, strict=True))
    for row in tracked(list(listed.to_dict("records")), "slides", unit="slides"):
        given = {key: value for key, value in row.items() if isinstance(value, str) or value == value}
        if not given.get("table"):
            raise BadInput(path, "a table of slides", f"slide {row['slide']} names no prediction table")
        patient = str(given["patient"])
        case = str(given.get("case") or patient)
        if patient != (owner := patient_of.get(case, patient)):
            why = f"slide {row['slide']} is of patient {patient}, and its case {case} of {owner}"
            raise BadInput(path, "slides of the patients", why)
        with StoredPrediction(path.parent / str(given["table"])) as table, ExitStack() as more:
            pooled = {}
            if given.get("image"):
                mpp = float(table.facts["mpp"]) if "mpp" not in given else float(given["mpp"])
                pooled = made.of(open_slide(path.parent / str(given["image"]), mpp=mpp), table)
            shuffled = None
            if given.get("shuffled"):
                shuffled = more.enter_context(StoredPrediction(path.parent / str(given["shuffled"])))
            slide = slide_values(
                table,
                slide=str(given["slide"]),
                case=case,
                cohort_patients=cohort.patients,
                shuffled=shuffled,
                pooled=pooled,
            )
        found.append(slide)
    stack = SlideStack.of(found, cohort.cases)
    signatures = {} if organ is None else markers(organ).measured(stack.gene_names)
    return with_slides(cohort, stack, signatures)
