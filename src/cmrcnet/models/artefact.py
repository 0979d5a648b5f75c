"""Models and students on disk: one .json and the safetensors files that it names with size and checksum.

They lie in a folder, or in one .zip without compression, which can be mailed and is read as it is: nothing is
extracted. Both are written whole, and everything is checked when it is read. Nothing that is read can execute code.
"""

from __future__ import annotations

import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmrcnet.errors import BadInput, CmrcnetError, Damaged, DownloadFailed, Incompatible, MissingExtra, MissingInput
from cmrcnet.models.encoder_weights import looks_like_pickle, transport_errors
from cmrcnet.storage.atomic import atomic_file, atomic_folder, refuse_existing
from cmrcnet.storage.hashing import LARGEST_JSON, fingerprint, seal, unseal
from cmrcnet.storage.ownership import recover
from cmrcnet.storage.refusals import raise_refusal

HUB = "hf-hub:"
"""Prefix of a repository on the model hub."""
PACKED = ".zip"
"""Ending of an artefact in one file."""
LICENCE_COLUMN = "licence"
"""Column of a cohort file: terms of a slide, carried into models, banks and predictions."""
_DATE = (1980, 1, 1, 0, 0, 0)
_HINT = "train it again or restore it from a copy"


@dataclass(frozen=True, eq=False)
class StoredArtefact:
    """An artefact's folder (or .zip) on disk, its .json checked.

    `facts` is the content of the .json.
    """

    folder: Path
    facts: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read a safetensors file of the folder, once size and checksum are those in the .json.

        Parameters
        ----------
        name : str
            Without ending. A file that the .json does not name has no tensors.

        Raises
        ------
        Damaged, BadInput
        """
        from safetensors.torch import load

        return load(self.content(name)) if name in self.facts else {}

    def content(self, name: str) -> bytes:
        """The bytes of a safetensors file that the .json names, once size and checksum are right; as `tensors`."""
        path = self.folder / f"{name}.safetensors"
        content = read_part(self.folder, path.name)
        if content is None:
            raise self.damaged(f"{path.name} is missing")
        if looks_like_pickle(content[:2]):
            raise BadInput.pickle(path)
        size = self.facts[name]["bytes"]
        if len(content) != size:
            raise Damaged.weights(path, f"{len(content)} bytes where {size} were written")
        if fingerprint(content) != self.facts[name]["checksum"]:
            raise Damaged.weights(path, "the content is not what was written")
        return content

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Raise `damaged` where the content does not fit what is built from it; errors of our own pass."""
        try:
            yield
        except CmrcnetError:
            raise
        except (KeyError, TypeError, RuntimeError) as error:
            raise self.damaged(str(error).splitlines()[0]) from error

    def damaged(self, why: str) -> Damaged:
        """The error for a folder whose content is not what was written."""
        return Damaged(self.folder, why, _HINT)


def write_artefact(
    folder: Path,
    file: str,
    facts: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    overwrite: bool,
) -> None:
    """Write a folder, or a .zip where the name ends so, whole or not at all.

    Parameters
    ----------
    file : str
        Name of the .json.
    facts : mapping
        Its content, besides size and checksum of each safetensors file and its own checksum.
    tensors : mapping of str to mapping of str to tensor
        Content of each safetensors file by its name without ending; no file for an empty one.
    overwrite : bool
        Replace an existing one.

    Raises
    ------
    OutputExists, NoSpace, Unwritable
    """
    from safetensors.torch import save

    contents = {name: save(dict(values)) for name, values in tensors.items() if values}
    sizes = {name: {"bytes": len(content), "checksum": fingerprint(content)} for name, content in contents.items()}
    parts = {f"{name}.safetensors": content for name, content in contents.items()}
    _write_parts(folder, {**parts, file: seal({**facts, **sizes})}, overwrite)


def _write_parts(path: Path, parts: Mapping[str, bytes], overwrite: bool) -> None:
    if path.suffix != PACKED:
        with atomic_folder(path, overwrite) as tmp:
            for name, content in parts.items():
                (tmp / name).write_bytes(content)
        return
    refuse_existing(path, overwrite)
    with atomic_file(path) as tmp, zipfile.ZipFile(tmp, "w", zipfile.ZIP_STORED) as packed:
        for name, content in parts.items():
            packed.writestr(zipfile.ZipInfo(name, _DATE), content)


def read_part(source: Path, name: str) -> bytes | None:
    """The content of a file of an artefact, None where it has no such file; nothing is extracted to disk.

    Raises
    ------
    Damaged
        A .zip that is damaged, or compressed, encrypted or otherwise not as we write it.
    """
    if not source.is_file():
        return (source / name).read_bytes() if (source / name).is_file() else None
    try:
        with zipfile.ZipFile(source) as packed:
            found = [each for each in packed.infolist() if each.filename == name]
            if not found:
                return None
            if len(found) > 1:
                raise Damaged(source, f"it holds {name} {len(found)} times", _HINT)
            part = found[0]
            plain = part.compress_type == zipfile.ZIP_STORED and part.compress_size == part.file_size
            if not plain or part.flag_bits & 1 or part.file_size > source.stat().st_size:
                raise Damaged(source, f"{name} is compressed or encrypted in it, which cmrcnet does not do", _HINT)
            return packed.read(part)  # compared with its CRC-32
    except Damaged:
        raise
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError, EOFError, struct.error) as error:
        raise_refusal(error, source)
        raise Damaged(source, f"it is no sound .zip ({str(error)[:100] or 'cut short'})", _HINT) from error


def pack(
    source: Path, out: Path, kinds: Mapping[str, tuple[str, str, int]], *, overwrite: bool = False
) -> StoredArtefact:
    """Copy an artefact from its folder into one .zip, or back, checked; its encoder need not be at hand.

    Parameters
    ----------
    kinds : mapping of str to (str, str, int)
        By the name of its .json: what it is, the verb that writes it, and its format, as `read_artefact` takes them.

    Raises
    ------
    MissingInput, Damaged, Incompatible, BadInput, OutputExists, NoSpace, Unwritable
    """
    file = next((file for file in kinds if read_part(source, file) is not None), next(iter(kinds)))
    stored = read_artefact(source, file, *kinds[file])
    names = [name for name, value in stored.facts.items() if isinstance(value, dict) and "checksum" in value]
    parts = {f"{name}.safetensors": stored.content(name) for name in names}
    _write_parts(out, {**parts, file: seal(stored.facts)}, overwrite)
    return stored


def read_artefact(
    source: str | Path, file: str, what: str, verb: str, reads: int, revision: str | None = None
) -> StoredArtefact:
    """Open a folder or .zip, or fetch a folder from the model hub, and check its .json.

    Parameters
    ----------
    file : str
        Name of the .json.
    what, verb : str
        What it is, and the verb of the command line that writes it, for messages.
    reads : int
        The format that this version reads.
    revision : str, optional
        Branch, tag or commit of a repository on the hub.

    Raises
    ------
    MissingInput, Damaged, Incompatible, MissingExtra, DownloadFailed
    """
    folder = Path(source)
    if str(source).startswith(HUB):
        folder = fetch_repository(str(source).removeprefix(HUB), revision)
    else:
        recover(folder)
    written = read_part(folder, file)
    if written is None:
        raise MissingInput(folder / file, what, f"give a folder that `cmrcnet {verb}` wrote")
    try:
        if len(written) > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON} bytes")
        facts, intact = unseal(written)
        number = int(facts["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoredArtefact(folder, {}).damaged(f"{file} cannot be read") from error
    if number != reads:
        hint = "upgrade cmrcnet" if number > reads else f"make it again: cmrcnet {verb}"
        raise Incompatible.format(folder, number, reads, hint)
    artefact = StoredArtefact(folder, facts)
    if not intact:
        raise artefact.damaged(f"{file} was changed")
    return artefact


def fetch_repository(repository: str, revision: str | None = None) -> Path:
    """Fetch the folder of a model or student from the model hub, or find it in the hub's cache.

    Parameters
    ----------
    repository : str
        ORG/NAME.
    revision : str, optional
        Branch, tag or commit; the default branch when left out.

    Raises
    ------
    MissingExtra, DownloadFailed
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtra("huggingface_hub", f"Fetching {repository}", "'cmrcnet[fetch]'") from error
    errors, patterns = huggingface_hub.errors, ["*.json", "*.safetensors"]
    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise DownloadFailed.access(repository, f"https://huggingface.co/{repository}") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        why = f"the hub has no such repository{'' if revision is None else f' or revision {revision}'}"
        raise DownloadFailed(repository, why) from error
    except (OSError, errors.HfHubHTTPError, *transport_errors()) as error:
        raise DownloadFailed(repository, "the model hub cannot be reached and it is not in its cache") from error


def module_tensors(prefix: str, module: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of a module by name, in order, on the CPU.

    Parameters
    ----------
    prefix : str
        Before each name, with a dot.
    """
    state = sorted(module.state_dict().items())
    return {f"{prefix}.{name}": value.detach().cpu().contiguous() for name, value in state}


def arrays_to_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as tensors of their own, by name in order."""
    return {name: torch.from_numpy(np.array(arrays[name], order="C")) for name in sorted(arrays)}


def tensors_to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays that share their memory."""
    return {name: value.numpy() for name, value in tensors.items()}


def join_licences(stated: Iterable[str]) -> str:
    """Licences of sections and how many have each, those of most sections first.

    Only what is stated is carried. Whether and how these terms bind a prediction is a question for a lawyer.

    Examples
    --------
    >>> join_licences(["CC BY 4.0", "", "CC BY 4.0"])
    'CC BY 4.0 (2 sections), not stated (1 section)'
    """
    counts = Counter(each.strip() or "not stated" for each in stated)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} ({count} section{'s' * (count > 1)})" for name, count in ordered)
