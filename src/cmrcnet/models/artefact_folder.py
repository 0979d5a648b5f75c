"""A folder of one .json and of safetensors files that it names with size and checksum: written whole, read and checked.

What models and students have in common on disk. Nothing that is read here can execute code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmrcnet.errors import Damaged, Incompatible, MissingInput, WeightsError
from cmrcnet.models.encoder_weights import looks_like_pickle
from cmrcnet.storage.atomic import atomic_folder
from cmrcnet.storage.hashing import fingerprint


def tensors_of(prefix: str, module: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of a module by name, in order, on the CPU.

    Parameters
    ----------
    prefix : str
        Before each name, with a dot.
    module : torch.nn.Module
    """
    state = sorted(module.state_dict().items())
    return {f"{prefix}.{name}": value.detach().cpu().contiguous() for name, value in state}


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as tensors of their own, by name in order."""
    return {name: torch.from_numpy(np.array(arrays[name], order="C")) for name in sorted(arrays)}


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with a prefix and a dot, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def sealed(content: bytes) -> dict[str, Any]:
    """What the .json says of a file: its size and checksum."""
    return {"bytes": len(content), "checksum": fingerprint(content)}


def write_artefact(
    folder: Path, file: str, facts: Mapping[str, Any], contents: Mapping[str, bytes | None], overwrite: bool
) -> None:
    """Write a folder, whole or not at all.

    Parameters
    ----------
    folder : Path
    file : str
        Name of the .json.
    facts : mapping
        What it says, besides size and checksum of each content and its own check.
    contents : mapping of str to bytes or None
        What the safetensors files hold, by their names without ending; None: no such file.
    overwrite : bool

    Raises
    ------
    OutputExists, NoSpace, Unwritable
    """
    there = {name: content for name, content in contents.items() if content is not None}
    said = {**facts, **{name: sealed(content) for name, content in there.items()}}
    said["check"] = fingerprint(said)
    with atomic_folder(folder, overwrite) as tmp:
        for name, content in there.items():
            (tmp / f"{name}.safetensors").write_bytes(content)
        (tmp / file).write_text(json.dumps(said, indent=1), encoding="utf-8")


def read_facts(path: Path, what: str, verb: str, newest: int) -> dict[str, Any]:
    """The .json of a folder.

    Parameters
    ----------
    path : Path
    what : str
        The model, the student.
    verb : str
        Of the command line, that writes it.
    newest : int
        Format that this version writes.

    Raises
    ------
    MissingInput, Damaged, Incompatible
    """
    if not path.is_file():
        raise MissingInput(path, what, f"give a folder that `cmrcnet {verb}` wrote")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        number = int(facts["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise changed(path.parent, f"{path.name} cannot be read") from error
    if number > newest:
        raise Incompatible.format(path.parent, number, f"up to {newest}", "upgrade cmrcnet")
    return facts


def read_tensors(path: Path, facts: Mapping[str, Any], what: str, said_in: str) -> dict[str, Tensor]:
    """A safetensors file of the folder, once size and checksum are those that the .json names.

    Parameters
    ----------
    path : Path
    facts : mapping
        From `read_facts`.
    what : str
        Its key in there.
    said_in : str
        Name of the .json.

    Raises
    ------
    Damaged, WeightsError
    """
    from safetensors.torch import load

    if not path.is_file():
        raise changed(path.parent, f"{path.name} is missing")
    content = path.read_bytes()
    if looks_like_pickle(content[:2]):
        raise WeightsError.pickle(path)
    try:
        size, checksum = facts[what]["bytes"], facts[what]["checksum"]
    except (KeyError, TypeError) as error:
        raise changed(path.parent, f"{said_in} names no {what}") from error
    if len(content) != size:
        raise WeightsError.damaged(path, f"{len(content)} bytes where {size} were written")
    if fingerprint(content) != checksum:
        raise WeightsError.damaged(path, "the content is not what was written")
    return load(content)


def changed(folder: Path, why: str) -> Damaged:
    """The error for a folder that is not what was written."""
    return Damaged(folder, why, "train it again or restore it from a copy")
