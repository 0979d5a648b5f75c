"""Speed of the engines that compute a frozen encoder, and how far their features are from each other, in one run.

    OMP_NUM_THREADS=1 python benchmarks/engines.py --out docs/benchmarks/engines.json

Patches of 224 px and one dense tile of 1,024 px through EfficientNet-Lite0 up to block 14 (the default config), patches
through a ViT-S/16. Ways take turns, and the best round of each counts. With one thread the seconds are of the
processor, not of the clock, so that other work on the machine hardly shows. The file also has:

- `timm`: what a user would write instead, the whole timm network over patches in a DataLoader, pooled features;
- `compiled`: torch.compile (--compile; it takes a minute and needs a C++ compiler).

With ONEDNN_MAX_CPU_ISA=AVX2 in the environment the kernels compute as on a machine without AVX-512.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from torch.utils.data import DataLoader

from cmrcnet.features.engine import OpenVINOEngine, TorchEngine, has_bf16
from cmrcnet.models.encoder_weights import import_timm
from cmrcnet.models.encoders import create_image_encoder

CPU = torch.device("cpu")
ENCODERS = {"efficientnet-lite0": ("pretrained", (4, 7, 10, 14)), "timm:vit_small_patch16_224": ("random", ())}
TILE_PX, PATCHES = 1024, 16


def like_tissue(count: int, side: int) -> np.ndarray:
    """Smooth fields of another colour each, with noise."""
    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.uniform(60, 255, (count, 3, 8, 8)))
    fields = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").permute(0, 2, 3, 1).numpy()
    return np.clip(fields + draw.normal(0, 10, fields.shape), 0, 255).astype(np.uint8)


def best_seconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least seconds of each way; they take turns."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    found = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds + 1):  # the first warms up, and is never the best
        for name, way in ways.items():
            start = clock()
            way()
            found[name] = min(found[name], clock() - start)
    return found


def measure(name: str, rounds: int, compiled: bool) -> dict[str, Any]:
    """Rates of one encoder, and how far its features are from torch float32."""
    weights, blocks = ENCODERS[name]
    encoder = create_image_encoder(name, weights=weights, blocks=blocks)
    engines: dict[str, Any] = {"torch float32": TorchEngine(encoder, "float32", CPU)}
    engines["torch bf16"] = TorchEngine(encoder, "bf16", CPU)
    engines["openvino float32"] = OpenVINOEngine(encoder, "float32")
    if has_bf16():
        engines["openvino bf16"] = OpenVINOEngine(encoder, "bf16")
    patches = like_tissue(PATCHES, 224)
    ways: dict[str, Callable[[], object]] = {
        key: (lambda engine=engine: engine.mean_token(patches, 1)) for key, engine in engines.items()
    }
    if name == "efficientnet-lite0":
        plain = import_timm().create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
        ways["timm"] = lambda: _timm_loop(plain, patches)
        contiguous = create_image_encoder(name, weights=weights, blocks=blocks)
        contiguous.backbone.to(memory_format=torch.contiguous_format)
        ways["torch float32, not channels-last"] = lambda: contiguous_run(contiguous, patches)
    if compiled:
        fast = torch.compile(lambda some: encoder(some).mean(dim=1))
        ways["compiled"] = lambda: _no_gradients(lambda: fast(encoder.prepare(patches)))
    seconds = best_seconds(ways, rounds)
    base = seconds["torch float32"]
    found: dict[str, Any] = {
        "patches_per_s": {key: round(PATCHES / each, 1) for key, each in seconds.items()},
        "times_torch_float32": {key: round(base / each, 2) for key, each in seconds.items()},
    }
    exact = engines["torch float32"].mean_token(patches, 4)
    found["difference_from_torch_float32"] = {}
    for key, engine in engines.items():
        values = engine.mean_token(patches, 4)
        found["difference_from_torch_float32"][key] = {
            "largest_in_deviations_of_the_feature": float(f"{(np.abs(values - exact) / exact.std(axis=0)).max():.2g}"),
            "one_minus_correlation": float(f"{1 - np.corrcoef(values.ravel(), exact.ravel())[0, 1]:.2g}"),
        }
    if name == "efficientnet-lite0":
        tile = like_tissue(1, TILE_PX)
        seconds = best_seconds({key: (lambda e=engine: e.maps(tile)) for key, engine in engines.items()}, rounds)
        base = seconds["torch float32"]
        found["dense_megapixels_per_s"] = {key: round(TILE_PX**2 / each / 1e6, 2) for key, each in seconds.items()}
        found["dense_times_torch_float32"] = {key: round(base / each, 2) for key, each in seconds.items()}
    start = time.process_time()
    OpenVINOEngine(encoder, "float32").convert("mean", 224, 224)
    found["seconds_to_convert_and_check"] = round(time.process_time() - start, 1)
    return found


def contiguous_run(encoder: Any, patches: np.ndarray) -> object:
    """Torch float32 with the pixels in torch's usual order."""
    return _no_gradients(lambda: encoder(encoder.prepare(patches).contiguous()).mean(dim=1))


def _no_gradients(compute: Callable[[], object]) -> object:
    with torch.inference_mode():
        return compute()


def _timm_loop(network: torch.nn.Module, patches: np.ndarray) -> list[np.ndarray]:
    """A loop over a DataLoader in this process, whole network, pooled features."""
    data: Any = [(torch.from_numpy(each).permute(2, 0, 1).float() / 255 - 0.5) / 0.5 for each in patches]
    with torch.inference_mode():
        return [network(batch).numpy() for batch in DataLoader(data, batch_size=PATCHES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "command": "python " + " ".join(["benchmarks/engines.py", *sys.argv[1:]]),
        "processor": [platform.machine(), openvino.Core().get_property("CPU", "FULL_DEVICE_NAME"), os.cpu_count()],
        "bf16_in_hardware": has_bf16(),
        "threads": torch.get_num_threads(),
        "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
        "versions": {
            "torch": torch.__version__,
            "openvino": openvino.__version__.split("-")[0],
            "timm": import_timm().__version__,
        },
    }
    for name in ENCODERS:
        found[name] = measure(name, options.rounds, options.compile)
        print(name, json.dumps(found[name], indent=1), flush=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
