"""Predict many slides: finished ones are skipped, and a broken slide does not stop the others.

Each slide is tried in a child process first (`slides.decoders`), which may die of it. Files that begin with a dot are
no slides (macOS leaves `._NAME` beside every file), and the files of one DICOM series are one slide.

The slides may be predicted in this process, or by workers of this machine or of a Ray cluster (`workers`): each loads
the model once, and every slide is a task of its own.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from cmrcnet.errors import (
    BadInput,
    BadOption,
    CmrcnetError,
    Damaged,
    MissingInput,
    NoSpace,
    OutputExists,
    Unwritable,
    WorkerDied,
)
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.progress import metered
from cmrcnet.readers.patch_files import FeatureSlide
from cmrcnet.slides.decoders import slides_probed_first
from cmrcnet.slides.slide import GIVEN_FEATURES, given_features, known_scale, open_slide
from cmrcnet.slides.slide_files import one_file_a_slide
from cmrcnet.storage.atomic import atomic_file, refuse_existing
from cmrcnet.storage.names import guard_cell
from cmrcnet.workers import WorkerOptions, run_in_workers

if TYPE_CHECKING:
    from cmrcnet.inference.predictor import Predictor
    from cmrcnet.slides.slide import FileSlide, Slide
    from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")

ENDINGS = (
    ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".tif", ".tiff", ".btf",
    ".jpg", ".jpeg", ".png", ".jp2",
)  # fmt: skip
"""Endings of slides in a folder; a pattern takes every file that it names."""

PREDICTED, DONE_BEFORE, BROKEN = "predicted", "done before", "broken"


@dataclass(frozen=True)
class SlideOutcome:
    """Outcome of one slide: a row of summary.csv."""

    slide: str
    table: str
    status: Literal["predicted", "done before", "broken"]
    locations: int | None = None
    genes: int | None = None
    seconds: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class BatchOutcome:
    """Outcomes of all slides, and where their summary is."""

    outcomes: tuple[SlideOutcome, ...]
    summary: Path

    @property
    def broken(self) -> tuple[SlideOutcome, ...]:
        """The slides that could not be predicted."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == BROKEN)

    def to_text(self) -> str:
        """Summarise the outcomes for the terminal."""
        kinds = (PREDICTED, DONE_BEFORE, BROKEN)
        count = {status: sum(o.status == status for o in self.outcomes) for status in kinds}
        lines = [
            f"{len(self.outcomes)} slides: {', '.join(f'{number} {status}' for status, number in count.items())}.",
            *(f"Broken: {outcome.slide}: {outcome.problem}" for outcome in self.broken),
            f"Summary: {self.summary}",
        ]
        return "\n".join(lines)


def slides_of(source: Path) -> list[Path] | None:
    """List the slides of a folder or pattern, sorted; None where `source` is one file.

    What cannot be opened (a dangling link, a pipe, a file without permission) is listed: `predict_slides` names it.

    Raises
    ------
    MissingInput
        A folder or pattern without any slide.
    BadInput
        The folder cannot be listed.
    """
    try:
        if source.is_dir():
            named = [path for path in source.iterdir() if path.suffix.lower() in ENDINGS]
            what = f"Slides ({' '.join(ENDINGS)}) in"
        elif has_magic(str(source)) and not source.exists():
            named = list(Path(source.anchor or ".").glob(str(source.relative_to(source.anchor))))
            what = "A slide like"
        else:
            return None
    except OSError as error:
        raise BadInput(source, "a folder of slides", error.strerror or str(error)) from error
    files = sorted(path for path in named if not path.name.startswith(".") and not _is_folder(path))
    found = one_file_a_slide(files)
    if not found:
        raise MissingInput(source, what)
    return found


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:  # said when it is opened
        return False


@dataclass(frozen=True)
class SlidePredictor:
    """Predicts slides into tables of a folder; what a worker sets up by calling it.

    Parameters
    ----------
    load : callable
        Gives a predictor without spots and mask; called once in each worker.
    folder : Path
        Of the tables.
    batch, mpp, cache
        As `predict_to_file` and `open_slide`.
    overwrite : bool
        Predict again what is done.
    features : Path, optional
        Folder with features of each slide, in a file of the slide's name (`PatchFile`).
    """

    load: Callable[[], Predictor]
    folder: Path
    batch: int | Literal["auto"] = "auto"
    mpp: float | None = None
    cache: TokenCache | None = None
    overwrite: bool = False
    features: Path | None = None

    def __call__(self) -> Callable[[tuple[Path, str]], SlideOutcome]:
        """Load the predictor, and return what predicts a slide into the table of a name."""
        predictor = self.load()
        return lambda task: self._predict(predictor, *task)

    def _predict(self, predictor: Predictor, slide: Path, name: str) -> SlideOutcome:
        from cmrcnet.inference.predict import predict_to_file

        table, start = self.folder / f"{name}.h5ad", time.monotonic()
        try:
            with slides_probed_first(), cast("FileSlide", open_slide(slide, mpp=self.mpp)) as opened:
                picture = opened if self.features is None else FeatureSlide(opened, self.features / f"{slide.stem}.h5")
                size = None if self.overwrite else _size_if_done(table, predictor, picture)
                status = PREDICTED if size is None else DONE_BEFORE
                if size is None:
                    size = predict_to_file(predictor, picture, table, cache=self.cache, batch=self.batch)
            outcome = SlideOutcome(str(slide), table.name, status, *size)
        except (NoSpace, Unwritable):
            raise
        except Exception as error:  # whatever it is, the slides behind this one are predicted
            outcome = _broken(slide, table.name, error)
        return dataclasses.replace(outcome, seconds=round(time.monotonic() - start, 1))


def predict_slides(predictor: SlidePredictor, slides: Sequence[Path], workers: WorkerOptions) -> BatchOutcome:
    """Predict each slide into a table of its name.

    The folder is made when it is not there; ``summary.csv`` is written after every slide.

    Raises
    ------
    BadOption
        Two slides of one name.
    NoSpace, Unwritable, OutputExists
        What would go wrong with every later slide.
    """
    folder = predictor.folder
    if folder.exists() and not folder.is_dir():
        raise OutputExists(folder, "it is a file, and many slides need a folder")
    stems = [slide.stem for slide in slides]
    names = [stem if stems.count(stem) == 1 else slide.name for slide, stem in zip(slides, stems, strict=True)]
    for name in names:
        if names.count(name) > 1:
            want = "slides of different names; those of several folders one folder at a time"
            raise BadOption("slide", name, want=want)
    tasks, count = list(zip(slides, names, strict=True)), workers.count(len(slides))
    if count == 1 and workers.engine == "local":
        run = predictor()
        found: Any = ((task, run(task)) for task in tasks)
    else:
        how = {"count": count, "engine": workers.engine, "name_of": lambda task: task[0].name}
        found = run_in_workers(tasks, predictor, **how)
    summary = folder / "summary.csv"
    refuse_existing(summary, overwrite=True)
    outcomes: dict[Path, SlideOutcome] = {}
    with metered("predict", len(tasks), "slides") as meter, closing(found):
        for (slide, name), outcome in found:
            if isinstance(outcome, WorkerDied):
                outcome = _broken(slide, f"{name}.h5ad", outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            if outcome.status == BROKEN:
                log.warning("warning: %s is skipped: %s", slide.name, outcome.problem)
            outcomes[slide] = outcome
            _write_summary(summary, [outcomes[each] for each in slides if each in outcomes])
            meter.advance(note=slide.name)
    return BatchOutcome(tuple(outcomes[slide] for slide in slides), summary)


def _broken(slide: Path, table: str, error: Exception) -> SlideOutcome:
    known = isinstance(error, CmrcnetError)
    log.debug("", exc_info=not known)
    problem = str(error) if known else f"{type(error).__name__}: {error}"
    return SlideOutcome(str(slide), table, BROKEN, problem=problem)


def _write_summary(path: Path, outcomes: Sequence[SlideOutcome]) -> None:
    with atomic_file(path) as tmp, tmp.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = csv.DictWriter(file, [field.name for field in dataclasses.fields(SlideOutcome)])
        rows.writeheader()
        rows.writerows(
            {name: guard_cell(cell) if isinstance(cell, str) else cell for name, cell in vars(outcome).items()}
            for outcome in outcomes
        )


def _size_if_done(table: Path, predictor: Predictor, slide: Slide) -> tuple[int, int] | None:
    """Locations and genes of a table that is there, if it is what would be predicted now; else `OutputExists`."""
    if not table.exists():
        return None
    pitch = slide.patches.side_px * known_scale(slide) if isinstance(slide, FeatureSlide) else predictor.options.grid_um
    wanted = dict.fromkeys(GIVEN_FEATURES) | predictor.identity() | given_features(slide)
    wanted |= {"slide_fingerprint": slide.fingerprint(), "mpp": known_scale(slide), "spot_diameter_um": pitch}
    try:
        stored = StoredPrediction(table)
    except Damaged as error:
        raise OutputExists(table, "it is not what was written; move it elsewhere or pass --overwrite") from error
    with stored as found:
        other = [name for name, value in wanted.items() if found.facts.get(name) != value]
        if found.genes != predictor.genes:
            other.append("genes")
        if other:
            why = f"it differs in {', '.join(other)}; choose another folder or pass --overwrite"
            raise OutputExists(table, why)
        found.require_unchanged()
        return len(found), len(found.genes)
