"""The tasks on HEST's data: which samples, of which patients. They are the `task` section of the presets hest-*.yaml.

A config of your own may carry such a section as well, and `cmrcnet fetch hest --task MINE.yaml` fetches what it names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmrcnet.config import Config, shipped_presets
from cmrcnet.errors import BadInput, BadOption, UnknownName

FORMAT = 1
PREFIX = "hest-"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_WANTED = ("format", "name", "repository", "licence", "technology", "disease", "organ", "samples")
_OPTIONAL = ("metadata", "notes")


@dataclass(frozen=True)
class HestSample:
    """One section of a task.

    Parameters
    ----------
    id : str
        In HEST.
    patient : str
        Unique across tasks: the task's name before the number that HEST's metadata give, or before the sample's id
        where HEST names nobody, so that such a section is never taken for another patient's.
    note : str
    """

    id: str
    patient: str
    note: str = ""


@dataclass(frozen=True)
class HestTask:
    """A set of HEST samples that is evaluated together.

    Parameters
    ----------
    name, config : str
        Such as COAD, and the config that goes with it.
    repository : str
        A dataset repository of the Hugging Face Hub.
    licence, technology, disease, organ : str
    samples : tuple of HestSample
    metadata : str
        Version of HEST's metadata that the patients are from.
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
        """Where the data and their terms are shown."""
        return f"https://huggingface.co/datasets/{self.repository}"

    def files(self, *, slides: bool = False) -> tuple[str, ...]:
        """Paths in the repository: of every sample its counts, patches and metadata, and its slide if asked for.

        Parameters
        ----------
        slides : bool
            The whole slides too; without them the patches of 112 um serve as the slide.
        """
        parts = ("metadata/{}.json", "st/{}.h5ad", "patches/{}.h5", *(("wsis/{}.tif",) if slides else ()))
        return tuple(part.format(sample.id) for sample in self.samples for part in parts)


def hest_tasks() -> tuple[str, ...]:
    """Names of the tasks that ship, sorted: COAD, IDC, LYMPH_IDC, ..."""
    return tuple(sorted(_name_of(config) for config in shipped_presets() if config.startswith(PREFIX)))


def hest_task(name: str | Path) -> HestTask:
    """A task that ships, or the one in a config of your own.

    Parameters
    ----------
    name : str or path
        COAD, lymph-idc, hest-coad; or a file that ends in .yaml and has a section `task`.

    Raises
    ------
    UnknownName, MissingInput, BadOption, BadInput
    """
    text = str(name)
    if text.endswith((".yaml", ".yml")):
        return _task(text, Config.parts_beside_settings(text).get("task"))
    wanted = text.strip().upper().replace("-", "_").removeprefix("HEST_")
    if wanted not in hest_tasks():
        raise UnknownName("HEST task", text, hest_tasks(), "A task of your own is given as a path that ends in .yaml.")
    config = PREFIX + wanted.lower().replace("_", "-")
    return _task(config, Config.parts_beside_settings(config).get("task"))


def _name_of(config: str) -> str:
    return config.removeprefix(PREFIX).upper().replace("-", "_")


def _task(config: str, values: Any) -> HestTask:
    if not isinstance(values, Mapping):
        raise BadOption("task", values, f"a section in {config} that names the samples (see the config hest-coad)")
    missing = [key for key in _WANTED if key not in values]
    if missing:
        raise BadInput.columns(f"The section task of {config}", missing, list(values))
    unknown = [key for key in values if key not in (*_WANTED, *_OPTIONAL)]
    if unknown:
        raise UnknownName.option(f"task.{unknown[0]}", (*_WANTED, *_OPTIONAL), config)
    if values["format"] != FORMAT:
        raise BadOption("task.format", values["format"], f"{FORMAT}, the one that this version reads")
    samples, notes = values["samples"], values.get("notes") or {}
    if not isinstance(samples, Mapping) or not samples:
        raise BadOption("task.samples", samples, "sample ids, each with its patient (null where nobody knows)")
    unfit = [key for key in samples if not _ID.fullmatch(str(key))]
    if unfit:
        raise BadOption("task.samples", unfit[0], "ids of letters, digits, _ and -, because they become file names")
    strangers = [name for name in notes if name not in samples]
    if strangers:
        raise BadOption("task.notes", strangers[0], "notes on samples of the task only")
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
