"""Public cohorts of HEST: the tasks (samples, patients, licence), and fetching them from the Hugging Face Hub.

Tasks are the `task` section of the presets hest-*.yaml; a config of your own may have one too (``cmrcnet fetch hest
--task MINE.yaml``). The licence is shown before anything is fetched, every file is verified, and an interrupted fetch
can be resumed. The folder holds ``cohort.csv`` beside the files in HEST's layout, ``fetch.json`` (repository, commit,
checksums) and ``checksums.sha256`` (for ``sha256sum -c``).
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmrcnet.config import Config, shipped_presets
from cmrcnet.datasets.hub import HuggingFaceHub, RemoteFile
from cmrcnet.errors import BadInput, BadOption, DownloadFailed, OutputExists, UnknownName
from cmrcnet.storage.atomic import atomic_file
from cmrcnet.storage.hashing import file_checksum

TASK_FORMAT = 1
PREFIX = "hest-"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_WANTED = ("format", "name", "repository", "licence", "technology", "disease", "organ", "samples")
_OPTIONAL = ("metadata", "notes")


@dataclass(frozen=True)
class HestSample:
    """One section of a task: its id in HEST and its patient.

    Patients are unique across tasks: the task's name before the patient number of HEST's metadata, or before the
    sample's id when HEST names no patient.
    """

    id: str
    patient: str
    note: str = ""


@dataclass(frozen=True)
class HestTask:
    """HEST samples that are evaluated together: a name such as COAD, and its config.

    `repository` is a dataset repository of the Hugging Face Hub; `metadata` is the version of HEST's metadata with the
    patients.
    """

    name: str
    config: str
    repository: str
    licence: str
    technology: str
    disease: str
    organ: str
    samples: tuple[HestSample, ...] = field(default_factory=tuple)
    metadata: str = ""

    @property
    def page(self) -> str:
        """Web page of the data and their terms."""
        return f"https://huggingface.co/datasets/{self.repository}"

    def files(self, *, slides: bool = False) -> tuple[str, ...]:
        """Paths in the repository: of every sample its counts, patches and metadata, and its slide if asked for."""
        parts = ("metadata/{}.json", "st/{}.h5ad", "patches/{}.h5", *(("wsis/{}.tif",) if slides else ()))
        return tuple(part.format(sample.id) for sample in self.samples for part in parts)


def hest_tasks() -> tuple[str, ...]:
    """Names of the tasks that ship, sorted: COAD, IDC, LYMPH_IDC, ..."""
    named = [config.removeprefix(PREFIX) for config in shipped_presets() if config.startswith(PREFIX)]
    return tuple(sorted(name.upper().replace("-", "_") for name in named))


def hest_task(name: str | Path) -> HestTask:
    """A task that ships (COAD, lymph-idc, hest-coad), or the section `task` of a config of your own (.yaml)."""
    text = str(name)
    if text.endswith((".yaml", ".yml")):
        return _task(text, Config.parts_beside_settings(text).get("task"))
    wanted = text.strip().upper().replace("-", "_").removeprefix("HEST_")
    if wanted not in hest_tasks():
        raise UnknownName("HEST task", text, hest_tasks(), "A task of your own is given as a path that ends in .yaml.")
    config = PREFIX + wanted.lower().replace("_", "-")
    return _task(config, Config.parts_beside_settings(config).get("task"))


def _task(config: str, values: Any) -> HestTask:
    if not isinstance(values, Mapping):
        raise BadOption("task", values, f"a section in {config} that names the samples (see the config hest-coad)")
    missing = [key for key in _WANTED if key not in values]
    if missing:
        raise BadInput.columns(f"The section task of {config}", missing, list(values))
    unknown = [key for key in values if key not in (*_WANTED, *_OPTIONAL)]
    if unknown:
        raise UnknownName.option(f"task.{unknown[0]}", (*_WANTED, *_OPTIONAL), config)
    if values["format"] != TASK_FORMAT:
        raise BadOption("task.format", values["format"], f"{TASK_FORMAT}, the one that this version reads")
    samples, notes = values["samples"], values.get("notes") or {}
    if not isinstance(samples, Mapping) or not samples:
        raise BadOption("task.samples", samples, "sample ids, each with its patient (null when unknown)")
    unfit = [key for key in samples if not _ID.fullmatch(str(key))]
    if unfit:
        raise BadOption("task.samples", unfit[0], "ids of letters, digits, _ and -, because they become file names")
    foreign = [name for name in notes if name not in samples]
    if foreign:
        raise BadOption("task.notes", foreign[0], "notes on samples of the task only")
    name = str(values["name"])
    return HestTask(
        name=name,
        config=config,
        samples=tuple(
            HestSample(str(key), f"{name}-{key if patient is None else patient}", str(notes.get(key, "")))
            for key, patient in samples.items()
        ),
        metadata=str(values.get("metadata", "")),
        **{key: str(values[key]) for key in ("repository", "licence", "technology", "disease", "organ")},
    )


log = logging.getLogger("cmrcnet")

RECORD_FORMAT = 1
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
) -> Path:
    """Fetch the sections of a HEST task and write their cohort file.

    Parameters
    ----------
    task : str or path
        Such as COAD, or a config of your own with a section `task`.
    out : path
        New folder, or one in which a fetch of the same task was interrupted.
    accept_licence : bool
        Without it nothing is fetched and the error names the licence.
    slides : bool
        The whole slides too. Without them each section's patches of 112 um serve as its slide, so that views wider
        than a patch see white where no neighbouring patch lies.
    revision : str, optional
        Commit, tag or branch of the repository; the newest when left out. It is written down, and kept when resuming.

    Returns
    -------
    Path
        ``out/cohort.csv``, which `read_cohort` reads.
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
    hub = HuggingFaceHub(chosen.repository)
    if before is not None and revision is not None and revision not in (before["revision"], before["commit"]):
        raise BadOption("revision", revision, f"{before['revision'] or before['commit']}, with which {out} was begun")
    commit = before["commit"] if before is not None else hub.commit(revision)
    revision = before["revision"] if before is not None else revision
    files = hub.describe(commit, chosen.files(slides=slides))
    _write_record(out, chosen, revision, commit, files)
    missing = [file for file in files if not file.matches(out / file.path)]
    total, here = sum(file.size for file in missing), len(files) - len(missing)
    log.info(
        "%d files, %d of them are here; %.2f GiB to fetch, commit %s.", len(files), here, total / 2**30, commit[:12]
    )
    if missing:
        _fetch(hub, commit, missing, out)
    with atomic_file(out / CHECKSUMS) as tmp:
        lines = [f"{file_checksum(out / file.path)}  {file.path}" for file in files]
        tmp.write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")
    return _write_cohort(out, chosen)


def _record_in(out: Path, task: HestTask) -> dict[str, Any] | None:
    """Record of an earlier fetch into this folder; None for a new or empty folder."""
    path = out / RECORD
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputExists(out, "it was not fetched by cmrcnet, so choose another name")
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = (record["format"], record["repository"], record["task"], record["commit"], record["revision"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(path, "the record of a fetch", f"it is damaged ({error}); choose another folder") from error
    if known[:3] != (RECORD_FORMAT, task.repository, task.name):
        raise OutputExists(out, f"it holds {known[2]} of {known[1]}, so choose another name")
    return record


def _write_record(out: Path, task: HestTask, revision: str | None, commit: str, files: list[RemoteFile]) -> None:
    record = {
        "format": RECORD_FORMAT,
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


def _fetch(hub: HuggingFaceHub, commit: str, files: list[RemoteFile], out: Path) -> None:
    """Fetch files anew; the first one that is damaged or did not arrive is an error, and does not stay."""
    for file in files:
        (out / file.path).unlink(missing_ok=True)  # of another commit, or damaged
    hub.download(commit, [file.path for file in files], out)
    for file in files:
        target = out / file.path
        if not file.matches(target):
            damaged = "what arrived does not have the size and checksum that the hub states"
            why = damaged if target.is_file() else "the hub was not reached"
            target.unlink(missing_ok=True)
            raise DownloadFailed(file.path, why)


def _write_cohort(out: Path, task: HestTask) -> Path:
    path = out / "cohort.csv"
    with atomic_file(path) as tmp, tmp.open("w", newline="", encoding="utf-8") as text:
        writer: Any = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for sample in task.samples:
            facts = {"disease": task.disease, "organ": task.organ, "technology": task.technology, "task": task.name}
            row = {"section": sample.id, "patient": sample.patient, "format": "hest", "counts": f"st/{sample.id}.h5ad"}
            writer.writerow(row | facts | {"note": sample.note})
    return path
