"""How many patches go through the encoder at once, and what happens when that was too much for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from cmrcnet.errors import BadOption

ON_CPU, ON_GPU = 32, 256
"""More patches at once are no faster on a CPU; a GPU is kept busy by them."""


def choose_batch(batch: int | Literal["auto"], device: torch.device) -> int:
    """Patches a forward pass: `batch`, or what suits the device."""
    if batch == "auto":
        return ON_CPU if device.type == "cpu" else ON_GPU
    if batch < 1:
        raise BadOption("batch", batch, want="1 patch or more, or auto")
    return batch


def in_memory_of_the_device(forward: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
    """``forward(batch)``; in halves, and halves of halves, where the device has no memory for all of it.

    Parameters
    ----------
    forward : callable
        Works row by row of its input.
    batch : torch.Tensor
        Rows first.
    """
    try:
        return forward(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    return torch.cat([in_memory_of_the_device(forward, half) for half in (batch[:middle], batch[middle:])])
