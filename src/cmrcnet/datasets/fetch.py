"""Fetch a public cohort: the licence is shown first, every file is checked, and an interrupted fetch goes on.

The folder that is written holds ``cohort.csv`` beside the files in HEST's own layout, ``fetch.json`` (repository,
commit, checksums) and ``checksums.sha256`` (for ``sha256sum -c``).
"""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

from cmrcnet.datasets.hest_tasks import HestTask, hest_task
from cmrcnet.datasets.hub import Hub, HuggingFaceHub, RemoteFile, sha256_of
from cmrcnet.errors import BadInput, BadOption, DownloadFailed, OutputExists
from cmrcnet.storage.atomic import atomic_file

log = logging.getLogger("cmrcnet")

FORMAT = 1
RECORD = "fetch.json"
CHECKSUMS = "checksums.sha256"
LICENCES = {
    "CC BY-NC-SA 4.0": "https://creativecommons.org/licenses/by-nc-sa/4.0: name the authors, no commercial use, share "
    "what you make of it alike",
}
COLUMNS = (
    "section", "patient", "format", "counts", "image", "mpp", "spot_diameter_um", "disease", "organ",
    "technology", "task", "note",
)  # fmt: skip


def fetch_hest(
    task: str | Path,
    out: Path | str,
    *,
    accept_licence: bool = False,
    slides: bool = False,
    revision: str | None = None,
    hub: Hub | None = None,
) -> Path:
    """Fetch the sections of a HEST task and write their cohort file.

    Parameters
    ----------
    task : str or path
        Such as COAD, or a config of your own with a section `task`.
    out : path
        Folder to write, or one in which a fetch of the same task was interrupted.
    accept_licence : bool
        Without it nothing is fetched, and the licence is named.
    slides : bool
        The whole slides too. Without them each section's patches of 112 um serve as its slide, so that views wider
        than a patch see white where no neighbouring patch lies.
    revision : str, optional
        Commit, tag or branch of the repository; the newest when left out. It is written down, and kept when resuming.
    hub : Hub, optional
        Where the files come from; the Hugging Face Hub when left out.

    Returns
    -------
    Path
        ``out/cohort.csv``, which `read_cohort` reads.

    Raises
    ------
    UnknownName, DownloadFailed, OutputExists, BadOption, BadInput, MissingExtra,
    MissingInput
    """
    chosen, out = hest_task(task), Path(out)
    terms = LICENCES.get(chosen.licence, chosen.page)
    if not accept_licence:
        raise DownloadFailed.from_sentence(
            f"HEST's {chosen.name} ({chosen.page}) is under {chosen.licence} ({terms}); read it, and pass "
            "--accept-licence if you keep to it. Nothing was fetched."
        )
    before = _record_in(out, chosen)
    log.info("%s of %s: licence %s, accepted (%s).", chosen.name, chosen.repository, chosen.licence, terms)
    hub = HuggingFaceHub(chosen.repository) if hub is None else hub
    if before is not None and revision is not None and revision not in (before["revision"], before["commit"]):
        raise BadOption("revision", revision, f"{before['revision'] or before['commit']}, with which {out} was begun")
    commit = before["commit"] if before is not None else hub.commit(revision)
    revision = before["revision"] if before is not None else revision
    files = hub.describe(commit, chosen.files(slides=slides))
    _write_record(out, chosen, revision, commit, files)
    total = sum(file.size for file in files)
    log.info("%d files, %.2f GiB, commit %s.", len(files), total / 2**30, commit[:12])
    for number, file in enumerate(files, 1):
        _fetch(hub, commit, file, out, f"{number} of {len(files)}")
    _write_checksums(out, files)
    return _write_cohort(out, chosen)


def _record_in(out: Path, task: HestTask) -> dict[str, Any] | None:
    """What an earlier fetch into this folder wrote down; None for a folder that is new or empty."""
    path = out / RECORD
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputExists(out, "it was not fetched by cmrcnet, so choose another name")
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = (record["format"], record["repository"], record["task"], record["commit"], record["revision"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(path, "the record of a fetch", f"it is damaged ({error}); choose another folder") from error
    if known[:3] != (FORMAT, task.repository, task.name):
        raise OutputExists(out, f"it holds {known[2]} of {known[1]}, so choose another name")
    return record


def _write_record(out: Path, task: HestTask, revision: str | None, commit: str, files: list[RemoteFile]) -> None:
    record = {
        "format": FORMAT,
        "task": task.name,
        "repository": task.repository,
        "page": task.page,
        "licence": task.licence,
        "patients_from": f"HEST metadata {task.metadata}".strip(),
        "revision": revision,
        "commit": commit,
        "files": [{"path": f.path, "size": f.size, f.kind: f.checksum} for f in files],
    }
    with atomic_file(out / RECORD) as tmp:
        tmp.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _fetch(hub: Hub, commit: str, file: RemoteFile, out: Path, place: str) -> None:
    """One file, unless it is there and whole; what arrives damaged does not stay."""
    target = out / file.path
    if file.matches(target):
        log.info("%s: %s is here already.", place, file.path)
        return
    target.unlink(missing_ok=True)  # of another commit, or damaged
    log.info("%s: %s (%.1f MiB)", place, file.path, file.size / 2**20)
    hub.download(commit, file.path, out)
    if not file.matches(target):
        target.unlink(missing_ok=True)
        raise DownloadFailed(file.path, "what arrived does not have the size and checksum that the hub states")


def _write_checksums(out: Path, files: list[RemoteFile]) -> None:
    lines = [f"{sha256_of(out / file.path)}  {file.path}" for file in files]
    with atomic_file(out / CHECKSUMS) as tmp:
        tmp.write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")


def _write_cohort(out: Path, task: HestTask) -> Path:
    path = out / "cohort.csv"
    with atomic_file(path) as tmp, tmp.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for sample in task.samples:
            facts = {"disease": task.disease, "organ": task.organ, "technology": task.technology, "task": task.name}
            row = {"section": sample.id, "patient": sample.patient, "format": "hest", "counts": f"st/{sample.id}.h5ad"}
            writer.writerow(row | facts | {"note": sample.note})
    return path
