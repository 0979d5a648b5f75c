"""Run cases, each in a process of its own with bounded memory and time, and count how they end."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.fuzz.damage import damage
from tests.fuzz.targets import TARGETS, Target

SECONDS = 20.0
"""A case that computes longer than this counts as hung, ..."""
WAITED = 120.0
"""... and one that has not ended after this time (a loaded machine lets a sound one wait)."""
BYTES = 2 << 30
"""A case that takes more memory than this, above what the imports take, counts as a blow-up."""
FAULTS = ("traceback", "crash", "hang", "memory", "silent")


@dataclass(frozen=True)
class Outcome:
    """How one case ended.

    Parameters
    ----------
    seed : int
        -1: the sound files.
    kind : str
        "refused" (one sentence), "same", "changed" (other content of a file of the user, which has no seal), or a
        fault: "traceback", "crash" (a signal), "hang", "memory", "silent" (other content of a file that we wrote).
    """

    target: str
    seed: int
    damage: str
    kind: str
    detail: str
    seconds: float
    """Of computing, in the child."""


def make_inputs(folder: Path) -> None:
    """Write the sound inputs in a fork, unless they are there."""
    from tests.fuzz.inputs import write_inputs

    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        child = os.fork()
        if child == 0:
            try:
                write_inputs(Path(scratch) / "inputs")
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("the sound inputs cannot be made")
        (Path(scratch) / "inputs").rename(folder)


def run_case(name: str, target: Target, inputs: Path, seed: int | None, expected: str) -> Outcome:
    """Damage a copy of the inputs (seed None: leave it sound) and load it in a child process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "case"
        shutil.copytree(inputs / target.folder, folder, symlinks=True)
        done = "" if seed is None else damage(np.random.default_rng([seed, *name.encode()]), folder, target.sealed)
        kind, detail, seconds = _load_in_child(target, folder)
    if kind == "loaded":
        kind = "same" if detail == expected else "silent" if target.sealed else "changed"
    return Outcome(name, -1 if seed is None else seed, done, kind, detail, seconds)


def _load_in_child(target: Target, folder: Path) -> tuple[str, str, float]:
    """Fork, load, and report through a pipe: a kind; the digest, the sentence or the traceback; and seconds."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        os.write(write_end, json.dumps(_load(target, folder)).encode())
        os._exit(0)
    os.close(write_end)
    answer, deadline = b"", time.monotonic() + WAITED
    while time.monotonic() < deadline:
        ready, _, _ = select.select([read_end], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(read_end, 1 << 16) if ready else b""
        if not piece:
            break
        answer += piece
    hung = time.monotonic() >= deadline
    if hung:
        os.kill(child, signal.SIGKILL)
    os.close(read_end)
    _, status = os.waitpid(child, 0)
    if hung:
        return "hang", f"more than {WAITED:g} s", WAITED
    if os.WIFSIGNALED(status):
        return "crash", signal.Signals(os.WTERMSIG(status)).name, 0.0
    if not answer:
        return "crash", f"exit code {os.WEXITSTATUS(status)}", 0.0
    kind, detail, taken, seconds = json.loads(answer)
    if seconds > SECONDS:
        kind, detail = "hang", f"{seconds:.0f} s of computing; {detail}"
    elif taken > BYTES:
        kind, detail = "memory", f"{taken / 1e9:.1f} GB; {detail}"
    return kind, detail, seconds


def _load(target: Target, folder: Path) -> tuple[str, str, int, float]:
    """In the child: load below a memory limit, with nothing on the terminal."""
    from cmrcnet.errors import CmrcnetError

    faulthandler.disable()  # a crash is counted, not printed
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + 2 * BYTES, pages + 2 * BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _peak_bytes()
    try:
        kind, detail = "loaded", target.load(folder)
    except CmrcnetError as error:
        kind, detail = "refused", str(error)[:300]
    except BaseException:
        kind, detail = "traceback", "".join(traceback.format_exc()[-1500:])
    return kind, detail, _peak_bytes() - before, time.process_time()


def _digests_and_modules(targets: Mapping[str, Target], folder: Path) -> str:
    """Digests of the sound files of all targets, and the modules that loading them has imported."""
    before, digests = set(sys.modules), {}
    for name, target in targets.items():
        try:
            digests[name] = target.load(folder / target.folder)
        except Exception as error:
            raise RuntimeError(name) from error
    return json.dumps([digests, sorted(set(sys.modules) - before)])


def _peak_bytes() -> int:
    """Largest resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def campaign(
    inputs: Path,
    *,
    cases: int,
    seconds: float = float("inf"),
    first_seed: int = 0,
    targets: Mapping[str, Target] = TARGETS,
    report: Path | None = None,
) -> list[Outcome]:
    """Run cases over all targets in turn, until either limit is reached.

    Parameters
    ----------
    inputs : Path
        Made by `tests.fuzz.targets.write_inputs`.
    report : Path, optional
        Every outcome, one JSON object a line.

    Raises
    ------
    RuntimeError
        A sound input is not read.

    Notes
    -----
    Sealed files whose digest differs from run to run are told as "silent".
    """
    os.environ["CMRCNET_FUZZ_INPUTS"] = str(inputs)
    outcome = run_case("sound", Target(".", partial(_digests_and_modules, targets)), inputs, None, "")
    if outcome.kind != "changed":
        raise RuntimeError(f"the sound inputs are not read: {outcome}")
    sound, modules = json.loads(outcome.detail)
    for module in modules:  # for the cases: each fork would import them again
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.freeze()  # a collection in a fork would copy the memory that it walks
    found, started = [], time.monotonic()
    names = list(targets)
    with (report or Path(os.devnull)).open("w", encoding="utf-8") as file:
        for number in range(cases):
            if time.monotonic() - started > seconds:
                break
            name, seed = names[number % len(names)], first_seed + number // len(names)
            found.append(run_case(name, targets[name], inputs, seed, sound[name]))
            file.write(json.dumps(asdict(found[-1])) + "\n")
            file.flush()
            if report and (number + 1) % 200 == 0:
                print(f"{number + 1:,} cases: {counts(found)}", file=sys.stderr, flush=True)
    return found


def counts(outcomes: list[Outcome]) -> dict[str, int]:
    """Number of outcomes of every kind, most frequent first."""
    return dict(Counter(outcome.kind for outcome in outcomes).most_common())
