"""Commands on cohorts: inspect, fetch, and demo (the whole journey on one cohort)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cmrcnet.cli.bank_commands import index_command
from cmrcnet.cli.evaluate_commands import evaluate_into
from cmrcnet.cli.model_commands import train_command
from cmrcnet.cli.options import DEFAULT_SECTION, ConfigOptions, RunOptions, SectionOptions
from cmrcnet.cli.predict_commands import predict_command
from cmrcnet.errors import BadOption
from cmrcnet.storage.atomic import atomic_folder

if TYPE_CHECKING:
    from cmrcnet.readers.inspection import Inspection

DEMO_METHODS = ["cmrcnet", "ridge", "colour-ridge", "gene-mean", "random-k", "permuted-pairs"]
"""The strongest baselines and those that predict at chance. `cmrcnet evaluate` compares all methods."""

DEMO_SPOTS = 100
"""Spots of each synthetic section: the default preset then takes about four minutes on two cores."""


def inspect_command(
    source: Path,
    *,
    mpp: float | None = None,
    section: SectionOptions = DEFAULT_SECTION,
    quick: bool = False,
    pictures: Path | None = None,
    overwrite: bool = False,
) -> bool:
    """Describe a cohort, section or slide, and list every problem with it.

    Parameters
    ----------
    source : Path
        A cohort.csv, a section (folder or counts file), or a slide.
    mpp : float, optional
        Micrometres per level-0 pixel, for slides that do not state it.
    section
        Of one section; a cohort.csv states them in its columns.
    quick : bool
        Skip the checks that read pixels and compare sections: spots off the tissue, duplicates, wrong patients,
        outliers of stain and scale, misplaced spots.
    pictures : Path, optional
        Folder to write: a PNG of each section with its spots on the reduced image: blue rings on tissue, orange
        crosses beside it.
    overwrite : bool
        Replace the folder of the pictures.

    Returns
    -------
    bool
        Whether no problem was found; the exit code is 1 otherwise.
    """
    from cmrcnet.readers.inspection import inspect

    stated = asdict(section)
    if pictures is None:
        found = inspect(source, mpp=mpp, pixels=not quick, **stated)
    else:
        with atomic_folder(pictures, overwrite) as folder:
            found = inspect(source, mpp=mpp, pictures=folder, **stated)
    if found.kind == "cohort" and not quick:
        found = _with_cohort_checks(found, source, mpp)
    print(found.to_text())
    return not found.problems


def _with_cohort_checks(found: Inspection, source: Path, mpp: float | None) -> Inspection:
    """Add the findings of the quality checks: certain ones as problems, the others as notes."""
    from dataclasses import replace

    from cmrcnet.qc.cohort_check import check_cohort
    from cmrcnet.readers.cohort import read_cohort

    if found.problems:
        note = "Sections were not compared (duplicates, patients, stain, spot positions): correct the problems first."
        return replace(found, notes=(*found.notes, note))
    seen = check_cohort(read_cohort(source, mpp=mpp))
    return replace(
        found,
        notes=(*found.notes, *(each.sentence for each in seen if not each.certain)),
        problems=tuple(each.sentence for each in seen if each.certain),
    )


def fetch_command(
    source: Literal["hest"],
    *,
    task: str,
    out: Path,
    slides: bool = False,
    revision: str | None = None,
    accept_licence: bool = False,
) -> Path:
    """Download a public cohort, check every file, and write its cohort.csv.

    Parameters
    ----------
    source : {"hest"}
        HEST-1k on the Hugging Face Hub. Its repository is gated: ask for access there and log in first.
    task : str
        COAD, IDC, LYMPH_IDC, READ, SKCM or PSC; or your own .yaml with a section `task`.
    out : Path
        Folder to write: cohort.csv, the files, their checksums. Give the same folder to continue an interrupted
        download.
    slides : bool
        Also download the whole slides (several GiB); otherwise the patches of 112 um serve as the slide.
    revision : str, optional
        Commit or tag of the repository; the newest when left out.
    accept_licence : bool
        Confirm that you have read the licence of the data (CC BY-NC-SA 4.0) and accept it.
    """
    from cmrcnet.datasets.hest import fetch_hest, hest_task

    table = fetch_hest(task, out, accept_licence=accept_licence, slides=slides, revision=revision)
    print(f"Cohort written to {table}. Next: cmrcnet evaluate {table} --config {hest_task(task).config} --out RUN")
    return table


def demo_command(
    *, out: Path = Path("demo"), data: Path | None = None, config: str = "default", overwrite: bool = False
) -> Path:
    """Run all steps once and write a report.

    Evaluates with one patient left out at a time, then trains on all slides but one and predicts that slide from its
    image alone. Without --data it runs on synthetic tissue whose true expression is known.

    Parameters
    ----------
    out : Path
        Folder to write: report.html, evaluation/, model/, bank/, unseen.h5ad.
    data : Path, optional
        A cohort.csv of real sections in place of the synthetic ones; its last section is the unseen slide.
    config : str
        Preset or .yaml to run; `tiny` takes a minute and predicts worse.
    overwrite : bool
        Replace OUT.
    """
    from cmrcnet.datasets.synthetic import synthetic_cohort, synthetic_slide, write_cohort, write_slide
    from cmrcnet.evaluation.report.evaluation_report import write_report
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.slides.slide import FileSlide

    wanted = ConfigOptions(config=config)
    with atomic_folder(out, overwrite) as folder:
        (folder / "demo.json").write_text(json.dumps({"format": 1, "config": config, "data": str(data or "synthetic")}))
        if data is None:
            table, hidden = write_cohort(synthetic_cohort(spots=DEMO_SPOTS), folder / "cohort"), []
            unseen, scale = write_slide(synthetic_slide(spots=DEMO_SPOTS), folder / "unseen.png")
        else:
            cohort = read_cohort(data)
            table, hidden = data, [cohort.sections[-1]]
            image = cohort.read(hidden[0]).slide
            if not isinstance(image, FileSlide):
                raise BadOption("data", data, want=f"a cohort whose last section ({hidden[0]}) has its slide in a file")
            unseen, scale = image.path, image.mpp
        run = evaluate_into(folder / "evaluation", table, config=wanted, options=RunOptions(methods=DEMO_METHODS))
        train_command(table, out=folder / "model", config=wanted, without=hidden)
        index_command(folder / "model", table, out=folder / "bank", without=hidden)
        predict_command(folder / "model", unseen, bank=folder / "bank", out=folder / "unseen.h5ad", mpp=scale)
        write_report(run, folder / "report.html", unseen=folder / "unseen.h5ad")
    print(f"Open {out / 'report.html'}")
    return out
