"""Prepare the next items in a thread while the present one is worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_END = object()


def read_ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """Iterate over `items`, at most `depth` of them prepared before they are asked for.

    The items come in the same order; they are made by one thread, so that a seeded generator behind them draws as it
    would without. An exception in `items` comes out here. Leaving the iteration early ends the thread.

    Parameters
    ----------
    items : iterable
        Iterated in a thread of its own.
    depth : int
        Bounds the memory that waits.
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
        except BaseException as error:  # handed to whoever iterates
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
