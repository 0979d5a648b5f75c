"""Import timm where torch and torchvision were built for different devices.

pip takes torch for the CPU from one index and torchvision for CUDA from another. torchvision's compiled operators
then do not load, and its import (which timm needs) stops at "operator torchvision::nms does not exist".
Nothing here or in timm's networks calls these operators, so it is enough to declare them.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_SYMPTOM = "operator torchvision::nms does not exist"
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")

_declared: list[torch.library.Library] = []  # a Library takes its operators with it when it is collected


def import_timm() -> ModuleType:
    """Import timm, declaring torchvision's missing operators when, and only when, they stop the import.

    Returns
    -------
    module
        timm.

    Raises
    ------
    ImportError, RuntimeError
        Anything else that stops the import of timm.
    """
    awake = set(sys.modules)
    try:
        return importlib.import_module("timm")
    except RuntimeError as error:
        if _SYMPTOM not in str(error) or is_stubbed():
            raise
    for name in sorted(set(sys.modules) - awake):
        if name.split(".")[0] in ("torchvision", "timm"):
            del sys.modules[name]  # half-imported
    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(operator + _SIGNATURE)
    _declared.append(library)
    return importlib.import_module("timm")


def is_stubbed() -> bool:
    """Whether the operators had to be declared here."""
    return bool(_declared)
