"""Predict many slides, one after the other: finished ones are skipped, and a broken slide does not stop the others.

Several processes, on several machines that share the disk, may work on one folder: a slide that another process is
writing is skipped.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from cmrcnet.errors import BadOption, CmrcnetError, InUse, MissingInput, NoSpace, OutputExists, Unwritable
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.slides.slide import open_slide
from cmrcnet.storage.atomic import atomic_file, refuse_existing

if TYPE_CHECKING:
    from cmrcnet.inference.predictor import Predictor
    from cmrcnet.slides.slide import FileSlide, Slide
    from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")

ENDINGS = (
    ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide", ".dcm", ".tif", ".tiff", ".btf",
    ".jpg", ".jpeg", ".png",
)  # fmt: skip
"""Endings of slides in a folder; a pattern takes every file that it names."""

PREDICTED, DONE_BEFORE, ELSEWHERE, BROKEN = "predicted", "done before", "under way elsewhere", "broken"


@dataclass(frozen=True)
class SlideOutcome:
    """Outcome of one slide: a row of summary.csv."""

    slide: str
    table: str
    status: Literal["predicted", "done before", "under way elsewhere", "broken"]
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
        kinds = (PREDICTED, DONE_BEFORE, ELSEWHERE, BROKEN)
        count = {status: sum(o.status == status for o in self.outcomes) for status in kinds}
        if not count[ELSEWHERE]:
            del count[ELSEWHERE]
        lines = [
            f"{len(self.outcomes)} slides: {', '.join(f'{number} {status}' for status, number in count.items())}.",
            *(f"Broken: {outcome.slide}: {outcome.problem}" for outcome in self.broken),
            f"Summary: {self.summary}",
        ]
        return "\n".join(lines)


def slides_of(source: Path) -> list[Path] | None:
    """List the slides of a folder or pattern, sorted; None where `source` is one file.

    Raises
    ------
    MissingInput
        A folder or pattern without any slide.
    """
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if path.suffix.lower() in ENDINGS and path.is_file())
        what = f"Slides ({' '.join(ENDINGS)}) in"
    elif has_magic(str(source)) and not source.exists():
        named = Path(source.anchor or ".").glob(str(source.relative_to(source.anchor)))
        found, what = sorted(path for path in named if path.is_file()), "A slide like"
    else:
        return None
    if not found:
        raise MissingInput(source, what)
    return found


def predict_slides(
    predictor: Predictor,
    slides: Sequence[Path],
    folder: Path,
    *,
    batch: int | Literal["auto"] = "auto",
    mpp: float | None = None,
    cache: TokenCache | None = None,
    overwrite: bool = False,
) -> BatchOutcome:
    """Predict each slide into a table of its name.

    Parameters
    ----------
    predictor : Predictor
        From `make_predictor`, without spots and mask.
    folder : Path
        Made when it is not there. ``summary.csv`` is written after every slide; with several processes it shows what
        the last writer has seen, so run the command once more when all are done.
    batch, mpp, cache
        As `predict_to_file` and `open_slide`.
    overwrite : bool
        Predict again what is done.

    Raises
    ------
    BadOption
        Two slides of one name.
    NoSpace, Unwritable, OutputExists
        What would go wrong with every later slide.
    """
    from cmrcnet.inference.predict import predict_to_file

    if folder.exists() and not folder.is_dir():
        raise OutputExists(folder, "it is a file, and many slides need a folder")
    stems = [slide.stem for slide in slides]
    names = [stem if stems.count(stem) == 1 else slide.name for slide, stem in zip(slides, stems, strict=True)]
    for name in names:
        if names.count(name) > 1:
            want = "slides of different names; those of several folders one folder at a time"
            raise BadOption("slide", name, want=want)
    summary = folder / "summary.csv"
    refuse_existing(summary, overwrite=True)
    outcomes: list[SlideOutcome] = []
    for number, (slide, name) in enumerate(zip(slides, names, strict=True), start=1):
        table = folder / f"{name}.h5ad"
        log.info("Slide %d of %d: %s", number, len(slides), slide.name)
        start = time.monotonic()
        try:
            with cast("FileSlide", open_slide(slide, mpp=mpp)) as picture:
                size = None if overwrite else _size_if_done(table, predictor, picture)
                status = PREDICTED if size is None else DONE_BEFORE
                if size is None:
                    size = predict_to_file(predictor, picture, table, cache=cache, batch=batch)
            outcome = SlideOutcome(str(slide), table.name, status, *size)
        except (NoSpace, Unwritable):
            raise
        except InUse:
            outcome = SlideOutcome(str(slide), table.name, ELSEWHERE)
        except CmrcnetError as error:
            outcome = SlideOutcome(str(slide), table.name, BROKEN, problem=str(error))
            log.warning("warning: %s is skipped: %s", slide.name, error)
        outcomes.append(dataclasses.replace(outcome, seconds=round(time.monotonic() - start, 1)))
        with atomic_file(summary) as tmp, tmp.open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, [field.name for field in dataclasses.fields(SlideOutcome)])
            rows.writeheader()
            rows.writerows(dataclasses.asdict(outcome) for outcome in outcomes)
    return BatchOutcome(tuple(outcomes), summary)


def _size_if_done(table: Path, predictor: Predictor, slide: Slide) -> tuple[int, int] | None:
    """Locations and genes of a table that is there, if it is what would be predicted now; else `OutputExists`."""
    if not table.exists():
        return None
    wanted = predictor.identity() | {
        "slide_fingerprint": slide.fingerprint(),
        "spot_diameter_um": predictor.options.grid_um,
    }
    with StoredPrediction(table) as found:
        other = [name for name, value in wanted.items() if found.facts.get(name) != value]
        if found.genes != predictor.genes:
            other.append("genes")
        if other:
            why = f"it differs in {', '.join(other)}; choose another folder or pass --overwrite"
            raise OutputExists(table, why)
        return len(found), len(found.genes)
