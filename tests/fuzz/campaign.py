"""Run cases, each in a process of its own with bounded memory and time, and count how they end."""

from __future__ import annotations

import faulthandler
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
    kind : str
        "refused" (one sentence), "same", "changed" (other content of a file of the user, which has no seal), or a
        fault: "traceback", "crash" (a signal), "hang", "memory", "silent" (other content of a file that we wrote).
    """

    target: str
    seed: int
    damage: str
    kind: str
    detail: str


def run_case(name: str, target: Target, inputs: Path, seed: int | None, expected: str) -> Outcome:
    """Damage a copy of the inputs (seed None: leave it sound) and load it in a child process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "case"
        shutil.copytree(inputs / target.folder, folder)
        done = "" if seed is None else damage(np.random.default_rng([seed, *name.encode()]), folder, target.sealed)
        kind, detail = _load_in_child(target, folder)
    if kind == "loaded":
        kind = "same" if detail == expected else "silent" if target.sealed else "changed"
    return Outcome(name, -1 if seed is None else seed, done, kind, detail)


def _load_in_child(target: Target, folder: Path) -> tuple[str, str]:
    """Fork, load, and report through a pipe: a kind and the digest, the sentence or the traceback."""
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
        return "hang", f"more than {WAITED:g} s"
    if os.WIFSIGNALED(status):
        return "crash", signal.Signals(os.WTERMSIG(status)).name
    if not answer:
        return "crash", f"exit code {os.WEXITSTATUS(status)}"
    kind, detail, taken, seconds = json.loads(answer)
    if seconds > SECONDS:
        return "hang", f"{seconds:.0f} s of computing; {detail}"
    return ("memory", f"{taken / 1e9:.1f} GB; {detail}") if taken > BYTES else (kind, detail)


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
    """
    os.environ["CMRCNET_FUZZ_INPUTS"] = str(inputs)
    sound = {}
    for name, target in targets.items():
        outcomes = [run_case(name, target, inputs, None, "") for _ in range(2)]
        if outcomes[0].kind not in ("changed", "silent") or outcomes[0].detail != outcomes[1].detail:
            raise RuntimeError(f"the sound input of {name} is not read, or differs from run to run: {outcomes}")
        sound[name] = outcomes[0].detail
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
