"""Choose the device, the precision and the batch size of an encoder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from cmrcnet.errors import BadOption

Precision = Literal["float32", "bf16", "fp16"]
ON_CPU, ON_GPU = 32, 256
"""Patches a forward pass. More are no faster on a CPU; a GPU is kept busy by them."""


def choose_device(name: str) -> torch.device:
    """Find the device of a name: auto, cpu, cuda, cuda:1, mps.

    ``auto`` takes the first NVIDIA GPU, else Apple's, else the CPU.

    Raises
    ------
    BadOption
        The device is unknown or not available.
    """
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
    """Find the precision of a name: auto is bf16 (else fp16) mixed precision on an NVIDIA GPU, float32 elsewhere.

    Raises
    ------
    BadOption
        fp16 on a device that is no NVIDIA GPU.
    """
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
    """Compute ``forward(batch)``, split in halves (again and again) where the device has no memory for all of it.

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
    return torch.cat([split_on_memory_error(forward, half) for half in (batch[:middle], batch[middle:])])
