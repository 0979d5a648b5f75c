"""The doctor command: what this installation can do, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata

LIBRARIES = ("torch", "timm", "lightning-fabric", "anndata", "scanpy", "openslide-python", "tifffile", "scikit-learn")


def doctor() -> dict[str, str]:
    """Check the installation: libraries, device, encoders, cache, disk.

    Returns
    -------
    dict of str to str
        Findings by topic; printed by the command line.
    """
    from rich.console import Console
    from rich.table import Table

    found = examine()
    table = Table(title="cmrcnet doctor", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, finding in found.items():
        table.add_row(what, finding)
    Console(file=getattr(sys.stdout, "raw", None), markup=False).print(table)
    return found


def examine() -> dict[str, str]:
    """Collect the findings; something that is missing is a finding, not an error."""
    import torch

    from cmrcnet import __version__
    from cmrcnet.models.encoder_weights import import_timm, is_stubbed
    from cmrcnet.storage.cache import TokenCache

    import_timm()
    try:
        import openslide

        slide_reader = openslide.__library_version__
    except (ImportError, OSError) as error:
        slide_reader = f"not installed: {error}"
    stubbed = " (another build than torch; missing operators are stubbed)" if is_stubbed() else ""
    found = {
        "cmrcnet": __version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "libraries": ", ".join(f"{name} {_version(name)}" for name in LIBRARIES),
        "device": _device(torch),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "torchvision": _version("torchvision") + stubbed,
        "OpenSlide": slide_reader,
        "embedded encoder": _embedded_encoder(),
        "engine": _engine(),
        "model hub": "offline (HF_HUB_OFFLINE is set)"
        if os.environ.get("HF_HUB_OFFLINE")
        else "used when an hf-hub: encoder is named",
    }
    cache = TokenCache.default()
    try:
        below = next(folder for folder in (cache.folder, *cache.folder.parents) if folder.exists())
        free = shutil.disk_usage(below).free
        size = f"{cache.size_bytes() / 2**30:.2f} GiB, {free / 2**30:.0f} GiB free"
        size += "" if os.access(below, os.W_OK) and below.is_dir() else "; it cannot be written and is not used"
    except OSError as error:
        size = f"it cannot be used: {error.strerror}"
    found["cache"] = f"{cache.folder}, {size} (set CMRCNET_CACHE to move it)"
    return found


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device(torch) -> str:
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return f"cuda: {torch.cuda.get_device_name(0)}, {memory:.0f} GiB"
    if torch.backends.mps.is_available():
        return "mps (Apple)"
    return "cpu (frozen encoders train in minutes; preset `paper` needs a GPU)"


def _engine() -> str:
    from cmrcnet.errors import CmrcnetError
    from cmrcnet.features.engine import choose_engine, openvino_installed
    from cmrcnet.features.spec import FeatureSpec
    from cmrcnet.models.encoders import create_image_encoder

    try:
        spec = choose_engine(create_image_encoder("efficientnet-lite0"), FeatureSpec(scales_um=(112.0,)))
    except CmrcnetError as error:
        return str(error)
    if not openvino_installed() and spec.device == "cpu":
        return f'{spec.made_by} (pip install "cmrcnet[fast]" for a faster one)'
    return f"{spec.made_by}, OpenVINO {_version('openvino')}"


def _embedded_encoder() -> str:
    from cmrcnet.errors import CmrcnetError
    from cmrcnet.models.encoders import create_image_encoder

    try:
        encoder = create_image_encoder("efficientnet-lite0")
    except CmrcnetError as error:
        return str(error)
    return f"efficientnet-lite0, fingerprint {encoder.fingerprint()[:12]}"
