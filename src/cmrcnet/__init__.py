"""CMRCNet: spatial gene expression from H&E, with the measured tissue behind every prediction.

One function a step; `docs/concepts/journey.md` draws the way from a slide to a prediction table. The public names stand
in `__init__.pyi` and are resolved when they are first used, so that importing the package is quick, quiet and offline.
"""

import importlib
import os
from typing import Any

import lazy_loader

# Before h5py is loaded: many network disks grant no locks, and our own files are written under temporary names.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

_resolve, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("cmrcnet")
    if name == "pl":
        return importlib.import_module("cmrcnet.pl")
    return _resolve(name)


def __dir__() -> list[str]:
    return [*_names(), "__version__", "pl"]
