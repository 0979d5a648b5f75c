"""How many processes work side by side, and with how many threads each.

A sum over many threads is added up in another order than over one, so the last digits depend on their number. Tasks
on a CPU therefore run with one thread each, whatever the number of workers: results are then bit-identical. Only a
config that trains its encoder gets all cores (a task of hours); there the last digits may depend on the number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from cmrcnet.config import Config
from cmrcnet.errors import BadOption

Workers = int | Literal["auto"]

WORKER_BYTES = 1_500_000_000
"""What one worker is reckoned to need: torch, the counts of a cohort, one method."""


def choose_workers(asked: Workers, tasks: int) -> int:
    """Number of processes.

    Parameters
    ----------
    asked : int or "auto"
        auto: one a core, as far as there are tasks, and half of the memory for them.
    tasks : int
        More workers than tasks would only wait.

    Raises
    ------
    BadOption
    """
    if asked == "auto":
        return max(1, min(cores(), tasks, _memory_bytes() // WORKER_BYTES))
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise BadOption("workers", asked, want="a number of processes, 1 or more, or auto")
    return max(1, min(asked, tasks))


def threads_of_task(config: Config, workers: int) -> int:
    """Threads that one task computes with."""
    return max(1, cores() // workers) if config.model.train_encoder else 1


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Let numerical libraries use so many threads, and put back what was before."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


def _memory_bytes() -> int:
    """Half of the machine's memory, where the system tells how much that is."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 8 * WORKER_BYTES
