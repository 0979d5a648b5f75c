"""Two engines, one encoder: the same features, and never mixed without a word."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from cmrcnet.errors import BadOption, Incompatible, MissingExtra
from cmrcnet.features import engine as engine_module
from cmrcnet.features.engine import (
    OpenVINOEngine,
    TorchEngine,
    choose_engine,
    has_bf16,
    open_engine,
)
from cmrcnet.features.extract import extract
from cmrcnet.features.spec import FeatureSpec
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.slides.slide import PatchScale
from tests.features.conftest import CountingEncoder, files_in

pytest.importorskip("openvino", reason="extra `fast`")

CPU = torch.device("cpu")
SPEC = FeatureSpec(patch=PatchScale(size_px=16), scales_um=(8.0,), device="cpu")


@pytest.fixture
def auto(monkeypatch):
    """The engine `auto` chooses by itself, as for a user."""
    monkeypatch.delenv("CMRCNET_ENGINE")
    monkeypatch.setattr(engine_module, "_engines", type(engine_module._engines)())
    monkeypatch.setattr(engine_module, "_refused", set())
    monkeypatch.setattr(engine_module, "_said", set())


def pixels_like_tissue(count: int, side: int) -> np.ndarray:
    """Smooth fields of another colour each, with noise: as far from each other as patches of tissue."""
    draw = np.random.default_rng(3)
    coarse = torch.from_numpy(draw.uniform(0, 255, (count, 3, 4, 4)))
    fields = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").permute(0, 2, 3, 1).numpy()
    return np.clip(fields + draw.normal(0, 8, fields.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_efficientnet"])
def test_openvino_equals_torch_and_bf16_is_close(name):
    encoder = create_image_encoder(name, weights="random", blocks=(0, 1))
    pixels = pixels_like_tissue(6, 160)
    exact = TorchEngine(encoder, "float32", CPU)
    tokens, means = exact.tokens(pixels).astype(np.float32), exact.mean_token(pixels, 4)

    same = OpenVINOEngine(encoder, "float32")
    np.testing.assert_allclose(same.mean_token(pixels, 4), means, rtol=0, atol=1e-4 * means.std(axis=0).min())
    np.testing.assert_allclose(same.tokens(pixels[:5]), tokens[:5], rtol=2e-3, atol=1e-4)  # float16

    if has_bf16():
        rounded = OpenVINOEngine(encoder, "bf16").mean_token(pixels, 4)
        assert np.corrcoef(rounded.ravel(), means.ravel())[0, 1] > 0.9995
        assert 1e-6 < np.abs(rounded - means).max() / means.std() < 0.05


def test_maps_of_tiles_of_any_size_equal_those_of_torch():
    """The embedded encoder, whose padding is TensorFlow's, at sizes other than those that the network was traced at."""
    encoder = create_image_encoder("efficientnet-lite0", blocks=(4, 7, 10, 14))
    engine, exact = OpenVINOEngine(encoder, "float32"), TorchEngine(encoder, "float32", CPU)
    for height, width in ((128, 128), (256, 384), (96, 160)):
        pixels = np.ascontiguousarray(pixels_like_tissue(1, 384)[:, :height, :width])
        found, wanted = engine.maps(pixels), exact.maps(pixels)
        assert [each.shape[2] for each in found] == [height // stride for stride in (8, 16, 16, 32)]
        for one, two in zip(found, wanted, strict=True):
            assert float((one - two).abs().max() / two.std()) < 1e-4
    (graph,) = engine.graphs.values()
    steps = [step.get_rt_info()["layerType"].astype(str) for step in graph.get_runtime_model().get_ops()]
    assert "Convolution" in steps and "Pad" not in steps  # padding is no step of its own, with copies of its own


def test_auto_takes_openvino_where_it_converts_and_says_so(auto, encoder, slide, centres, cache, caplog):
    caplog.set_level("INFO", logger="cmrcnet")
    chosen = choose_engine(encoder, SPEC)
    precision = "bf16" if has_bf16() else "float32"
    assert (chosen.engine, chosen.precision, chosen.device) == ("openvino", precision, "cpu")
    features = extract(encoder, slide, centres, SPEC, cache=cache)
    np.testing.assert_allclose(
        features, extract(encoder, slide, centres, dataclasses.replace(SPEC, engine="torch")), rtol=0.02
    )
    assert caplog.text.count(f"Image features are computed by openvino {precision} on cpu.") == 1
    assert caplog.text.count("computed by torch float32 on cpu") == 1


def test_engines_have_cache_entries_of_their_own(encoder, slide, centres, cache):
    for number, (engine, precision) in enumerate([("torch", "float32"), ("torch", "bf16"), ("openvino", "float32")]):
        extract(encoder, slide, centres, dataclasses.replace(SPEC, engine=engine, precision=precision), cache=cache)
        assert len(files_in(cache, "tokens")) == number + 1


class Unconvertible(CountingEncoder):
    """Leaves torch, so that the tracer sees a constant."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(super().forward(patches).detach().numpy().copy())


def test_an_encoder_that_differs_when_converted_falls_back_or_is_refused(auto, slide, centres, cache, caplog):
    caplog.set_level("INFO", logger="cmrcnet")
    encoder: Any = Unconvertible()
    assert choose_engine(encoder, SPEC, cache).engine == "torch"
    assert "The engine is auto, so torch computes it." in caplog.text
    engine_module._refused.clear()
    asked = encoder.patches
    assert choose_engine(encoder, SPEC, cache).engine == "torch"
    assert encoder.patches == asked, "the cache knows the answer"
    with pytest.raises(Incompatible, match=r"OpenVINO.*set features.engine to torch"):
        extract(encoder, slide, centres, dataclasses.replace(SPEC, engine="openvino"))


def test_what_is_not_there_is_refused(auto, encoder, monkeypatch):
    stated = dataclasses.replace(SPEC, engine="openvino")
    with monkeypatch.context() as fewer:
        fewer.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # OpenVINO itself crashes in bf16
        assert choose_engine(encoder, SPEC).made_by == "openvino float32 on cpu"
    with pytest.raises(BadOption, match=r"features.engine is 'tensorrt'; wanted auto, torch or openvino"):
        choose_engine(encoder, dataclasses.replace(SPEC, engine="tensorrt"))
    with pytest.raises(BadOption, match="fp16 needs an NVIDIA GPU"):
        choose_engine(encoder, dataclasses.replace(stated, precision="fp16"))
    monkeypatch.setattr(engine_module, "has_bf16", lambda: False)
    with pytest.raises(BadOption, match=r"train.precision is 'bf16'; wanted float32: OpenVINO has no bf16"):
        choose_engine(encoder, dataclasses.replace(stated, precision="bf16"))
    assert choose_engine(encoder, dataclasses.replace(SPEC, precision="bf16")).engine == "torch"
    assert choose_engine(encoder, stated).precision == "float32"
    monkeypatch.setattr(engine_module, "choose_device", lambda name: torch.device("mps"))
    with pytest.raises(BadOption, match=r"features.engine is 'openvino'; wanted torch on mps"):
        choose_engine(encoder, stated)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(engine_module, "openvino_installed", lambda: False)
    monkeypatch.delenv("CMRCNET_ENGINE")
    assert choose_engine(encoder, SPEC).made_by == "torch float32 on cpu"
    with pytest.raises(MissingExtra, match=r'pip install "cmrcnet\[fast\]"'):
        choose_engine(encoder, stated)


def test_shapes_and_threads_are_converted_once_and_few_are_kept(encoder, monkeypatch):
    made = []
    convert = engine_module._convert
    monkeypatch.setattr(engine_module, "_convert", lambda *how: made.append(how[2:]) or convert(*how))
    monkeypatch.setattr(engine_module, "MOST_SHAPES", 2)
    engine = OpenVINOEngine(encoder, "float32")
    for side in (8, 12, 8, 16, 8, 12):
        pixels = np.full((side % 3 + 1, side, side, 3), side, np.uint8)
        np.testing.assert_allclose(engine.mean_token(pixels, 1), side, rtol=1e-5)
    assert [how[1] for how in made] == [8, 12, 16, 12]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        engine.mean_token(pixels, 1)
    finally:
        torch.set_num_threads(before)
    assert made[-1][-1] == before + 1


def test_a_network_is_converted_once_for_equal_encoders_and_stays_as_it_was(auto):
    """An encoder that is trained after its conversion gives its new features, not those that were converted."""
    first: Any = CountingEncoder()
    second: Any = CountingEncoder()
    spec = dataclasses.replace(SPEC, engine="openvino", precision="float32")
    engine = open_engine(first, spec)
    pixels = np.full((1, 16, 16, 3), 100, np.uint8)
    assert open_engine(second, spec) is engine
    engine.mean_token(pixels, 1)
    with torch.no_grad():
        first.weight.fill_(2.0)
    np.testing.assert_allclose(open_engine(first, spec).mean_token(pixels, 1), 200, rtol=1e-5)
    np.testing.assert_allclose(open_engine(second, spec).mean_token(pixels, 1), 100, rtol=1e-5)


GIVEN_BACK = """
import dataclasses, os
from pathlib import Path
import numpy as np
from cmrcnet.features.engine import open_engine, release_engines
from cmrcnet.models.encoders import create_image_encoder
from tests.features.test_engine import SPEC, pixels_like_tissue
encoder = create_image_encoder("efficientnet-lite0", blocks=(4,))
engine = open_engine(encoder, dataclasses.replace(SPEC, engine="openvino", precision="float32"))
pixels = pixels_like_tissue(1, 1024)
(before,) = engine.maps(pixels)
held = int(Path("/proc/self/statm").read_text().split()[1])
release_engines()
given_back = held - int(Path("/proc/self/statm").read_text().split()[1])
assert given_back * os.sysconf("SC_PAGE_SIZE") > 100e6, given_back  # it took about 200 bytes a pixel
np.testing.assert_array_equal(engine.maps(pixels)[0], before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_large_tile_is_given_back():
    """In a process of its own: what the heap of this one keeps depends on the tests before."""
    subprocess.run([sys.executable, "-c", GIVEN_BACK], check=True)


def test_openvino_reports_nothing_to_its_makers(tmp_path):
    code = (
        "import sys; from cmrcnet.features.engine import has_bf16; has_bf16(); "
        "assert 'openvino' in sys.modules and sys.modules['openvino_telemetry'] is None"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "HOME": str(tmp_path)}, check=False)
    assert done.returncode == 0
    assert not list(tmp_path.iterdir())
