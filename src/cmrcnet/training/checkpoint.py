"""The state of a training on disk: one file, replaced whole, read back exactly, no pickle.

``state.safetensors`` holds every tensor (weights, AdamW's moments, moving average, best weights) and, as its metadata,
the JSON of everything else (phase, epoch, history, what the run was started with) and the checksums of both.
Random generators need no place in it: every epoch seeds its own from the config's seed, the phase and the epoch's
number. `log.csv` beside it has one row an epoch.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmrcnet.errors import Incompatible
from cmrcnet.storage.atomic import atomic_file, make_partial, partial_folder, remove_partial
from cmrcnet.storage.hashing import crc_of, fingerprint
from cmrcnet.storage.ownership import remove_abandoned

FORMAT = 4
_FILES = _STATE, _LOG = "state.safetensors", "log.csv"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A training at the end of an epoch.

    Parameters
    ----------
    phase : str
        "search" or "refit".
    epoch : int
        Epochs of the phase that are finished.
    facts : dict
        Plain values that JSON can write.
    """

    phase: str
    epoch: int
    facts: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass(eq=False)
class Checkpoints:
    """A folder that holds the last state of one training.

    Parameters
    ----------
    folder : Path
        Made when the first state is written.
    most_share : float
        Share of the time that writing may take. A state is due at the end of an epoch, but a large network's is
        written less often: not before the last write's duration over this share has passed. The result is the same,
        since a resumed run repeats the epochs behind the last state exactly.
    """

    folder: Path
    most_share: float = field(default=0.05, kw_only=True)
    due: float = field(default=0.0, init=False, repr=False)

    @classmethod
    def beside(cls, out: Path, *, resume: bool = False, overwrite: bool = False) -> Checkpoints:
        """The folder ``OUT.partial`` of an output that is being made.

        Raises
        ------
        OutputExists
            An interrupted run lies there, and neither `resume` nor `overwrite` says what to do with it.
        """
        return cls(partial_folder(out, resume=resume, overwrite=overwrite))

    def is_due(self) -> bool:
        """Whether the next state should be written now."""
        return time.monotonic() >= self.due

    def save(self, state: TrainingState, identity: Mapping[str, str]) -> None:
        """Replace the state on disk.

        Parameters
        ----------
        identity : mapping of str to str
            What the run was started with, each by its fingerprint: config, panel, pairs, encoder.

        Raises
        ------
        NoSpace, Unwritable
        """
        from safetensors.torch import save

        start = time.monotonic()
        tensors = _unshared(state.tensors)
        head = {
            "format": FORMAT,
            "phase": state.phase,
            "epoch": state.epoch,
            "facts": state.facts,
            "identity": dict(identity),
            "crc": _crc(tensors),
        }
        head = json.loads(json.dumps(head))
        head["check"] = fingerprint(head)
        path = self.folder / _STATE
        make_partial(self.folder, _FILES)
        with atomic_file(path) as tmp:
            # not `save_file`, which writes a file of its own beside it, and leaves that when it is killed
            tmp.write_bytes(save(tensors, metadata={"state": json.dumps(head)}))
        remove_abandoned(self.folder)
        took = time.monotonic() - start
        self.due = time.monotonic() + took / self.most_share - took

    def load(self, identity: Mapping[str, str]) -> TrainingState | None:
        """The last state, or None when there is none yet.

        Raises
        ------
        Incompatible
            The state is damaged, or belongs to a run that was started with something else.
        """
        from safetensors import SafetensorError, safe_open

        path = self.folder / _STATE
        if not path.exists():
            return None
        if not path.is_file():
            raise Incompatible.run(self.folder, f"its state is no plain file ({_STATE})")
        try:
            with safe_open(path, framework="pt") as file:
                head = json.loads((file.metadata() or {})["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if head["format"] != FORMAT:
                why = f"its state has format {head['format']}, this version reads {FORMAT}"
                raise Incompatible.run(self.folder, why)
            check = head.pop("check", None)
            if fingerprint(head) != check or _crc(tensors) != head["crc"]:
                raise Incompatible.run(self.folder, "its state is damaged: the content is not what was written")
            before, state = head["identity"], TrainingState(head["phase"], head["epoch"], head["facts"], tensors)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, Incompatible):
                raise
            raise Incompatible.run(self.folder, f"its state is damaged ({str(error).splitlines()[0]})") from error
        changed = [name for name, value in identity.items() if before.get(name) != value]
        if changed:
            raise Incompatible.run(self.folder, f"the {' and the '.join(changed)} changed since it was started")
        return state

    def write_log(self, history: list[dict[str, Any]]) -> None:
        """Write `log.csv`: one row an epoch, a column for each name in any row."""
        columns = list(dict.fromkeys(name for row in history for name in row))
        make_partial(self.folder, _FILES)
        with atomic_file(self.folder / _LOG) as tmp, tmp.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(history)

    def discard(self) -> None:
        """Forget the state: the training is finished, or starts afresh."""
        remove_partial(self.folder)


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, no two of which share memory (one fusion block under two names)."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value
        seen.add(place)
    return found


def _crc(tensors: Mapping[str, Tensor]) -> int:
    return crc_of({name: value.reshape(-1).view(torch.uint8).numpy() for name, value in tensors.items()})
