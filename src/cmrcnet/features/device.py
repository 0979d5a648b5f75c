"""Keep a device busy: choose it, its precision and batch size, and prepare its next inputs in threads."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, TypeVar

import torch

from cmrcnet.errors import BadOption

Precision = Literal["float32", "bf16", "fp16"]
ON_CPU, ON_GPU = 32, 256
"""Patches a forward pass. More are no faster on a CPU; a GPU is kept busy by them."""
MOST_READERS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")
_END = object()


def choose_device(name: str) -> torch.device:
    """Find the device of a name: auto (an NVIDIA GPU, else Apple's, else the CPU), cpu, cuda, cuda:1, mps."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadOption("train.device", name, want="auto, cpu, cuda, cuda:1 or mps") from None
    there = {
        "cpu": device.index in (None, 0),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise BadOption("train.device", name, want="a device of this machine; auto takes the best available")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def choose_precision(name: str, device: torch.device) -> Precision:
    """Find the precision of a name: auto is bf16 (else fp16) mixed precision on an NVIDIA GPU, float32 elsewhere."""
    if name == "auto":
        if device.type != "cuda":
            return "float32"
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if name not in ("float32", "bf16", "fp16"):
        raise BadOption("train.precision", name, want="auto, float32, bf16 or fp16")
    if name == "fp16" and device.type != "cuda":
        raise BadOption("train.precision", name, want=f"float32 or bf16 on {device.type}; fp16 needs an NVIDIA GPU")
    return name


def mixed(precision: Precision, device: torch.device) -> AbstractContextManager:
    """Context in which a forward pass computes in `precision`."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def choose_batch(batch: int | Literal["auto"], device: torch.device) -> int:
    """Patches a forward pass: `batch`, or what suits the device."""
    if batch == "auto":
        return ON_CPU if device.type == "cpu" else ON_GPU
    if batch < 1:
        raise BadOption("batch", batch, want="1 patch or more, or auto")
    return batch


def split_on_memory_error(forward: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
    """Compute ``forward(batch)``, row by row the same, in halves (again and again) where memory is short for all."""
    try:
        return forward(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    return torch.cat([split_on_memory_error(forward, half) for half in (batch[:middle], batch[middle:])])


def read_ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """Iterate over `items`, at most `depth` of them prepared before they are asked for.

    The order stays. One thread makes the items, so that a seeded generator behind them draws as it would without.
    An exception in `items` is raised here. Leaving the iteration early ends the thread.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    left = threading.Event()

    def put(what: object) -> bool:
        while not left.is_set():
            try:
                ready.put(what, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:  # raised where the items are used
            put((_END, error))

    thread = threading.Thread(target=work, name="cmrcnet-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        left.set()
        thread.join()


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int = 1, depth: int = 1
) -> Iterator[Result]:
    """Apply `function` to each of the items in threads, some items ahead of the one that is processed.

    The results come in the order of the items, which are iterated in the caller's own thread. An exception in
    `function` is raised here, in its turn. Leaving the iteration early drops waiting items and ends the threads. At
    most `depth` results wait besides one a thread, which bounds the memory.
    """
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="cmrcnet-map-ahead")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers + depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def reading_threads(device: str) -> int:
    """Threads that cut patches: one beside an encoder on the "cpu", which uses the cores itself; several for a GPU."""
    return 1 if device == "cpu" else max(1, min(MOST_READERS, (os.cpu_count() or 1) - 1))


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Limit the threads of numerical libraries, and restore the former limit afterwards."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)
