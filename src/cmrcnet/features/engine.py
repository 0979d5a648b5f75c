"""What computes a frozen encoder: PyTorch on any device, or OpenVINO on a CPU, behind one interface.

Both take uint8 pixels and give NumPy arrays. OpenVINO (extra `fast`) converts the torch module in memory, pixel scaling
included. Every converted network is compared with its torch module on noise before it is used; one that cannot be
converted, or that differs, is computed by torch where the engine is `auto`, and refused where `openvino` was asked for.

Features in float32 of either engine, and in bf16 of OpenVINO, may take each other's place (see
``docs/how-to/engines.md`` for how far predictions differ); the cache keeps them apart, and every model and every
prediction says which made its features.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from cmrcnet.errors import BadOption, Incompatible, MissingExtra
from cmrcnet.features.device import Precision, choose_device, choose_precision, mixed, split_on_memory_error
from cmrcnet.features.spec import READ
from cmrcnet.models.encoder_weights import import_timm
from cmrcnet.models.image_encoder import ROTATIONS_FIRST, ImageEncoder, d4, mean_token, output_maps
from cmrcnet.storage.hashing import fingerprint

if TYPE_CHECKING:
    from cmrcnet.features.spec import FeatureSpec
    from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")

LARGEST = float(np.finfo(np.float16).max)
TOLERANCE: dict[str, float] = {"float32": 1e-3, "bf16": 0.1}
"""How far a converted network may be from its torch module on noise: root mean square of the difference, in deviations
of the output."""
MOST_SHAPES, MOST_ENGINES = 8, 2
"""Converted networks that are kept: pixel sizes of an encoder, and encoders; the one used longest ago is dropped."""
_CHECK_FORMAT = 2  # counts up when the conversion or its check changes

Output = Literal["tokens", "mean", "maps"]


class Engine(Protocol):
    """An encoder that computes features of pixels (batch, height, width, 3) uint8."""

    def tokens(self, pixels: np.ndarray) -> np.ndarray:
        """The encoder's tokens, (batch, tokens, dim) float16, cut off at +-65,504."""
        ...

    def mean_token(self, pixels: np.ndarray, augmentations: int) -> np.ndarray:
        """The mean over tokens and D4 augmentations, (batch, dim) float32, as `image_encoder.mean_token`."""
        ...

    def maps(self, pixels: np.ndarray) -> list[Tensor]:
        """The map of each wanted block, (batch, channels, height / stride, width / stride) float32, on its device.

        Height and width may be any multiple of 32 and of the strides of the network.
        """
        ...


def choose_engine(encoder: ImageEncoder, spec: FeatureSpec, cache: TokenCache | None = None) -> FeatureSpec:
    """Choose what computes an encoder on this machine: the spec, with nothing left `auto` in engine, precision, device.

    Parameters
    ----------
    encoder : ImageEncoder
    spec : FeatureSpec
        Its engine `auto` is OpenVINO on a CPU, where it is installed and can convert this encoder, else torch; the
        environment variable CMRCNET_ENGINE says what it is on this machine. Its precision `auto` is bf16 by OpenVINO on
        a CPU that has it in hardware; by torch it is as `choose_precision` says.
    cache : TokenCache, optional
        Remembers for the next process whether the encoder can be converted.

    Raises
    ------
    BadOption
        An unknown engine; OpenVINO for a GPU, or in a precision that this CPU does not have.
    MissingExtra
        OpenVINO is asked for and is not installed.
    """
    if isinstance(encoder, ImageEncoder) and encoder.config.external:
        return replace(spec, engine=READ, precision="float32", device=str(choose_device(spec.device)))
    engine = os.environ.get("CMRCNET_ENGINE", "auto") if spec.engine == "auto" else spec.engine
    if engine not in ("auto", "torch", "openvino"):
        raise BadOption("features.engine", engine, want="auto, torch or openvino")
    device = choose_device(spec.device)
    precision = choose_precision(spec.precision, device)
    if engine == "openvino":
        if not openvino_installed():
            raise MissingExtra("openvino", "features.engine openvino", '"cmrcnet[fast]"')
        if device.type != "cpu":
            raise BadOption("features.engine", engine, want=f"torch on {device.type}, or train.device cpu")
        if precision == "bf16" and not has_bf16():
            raise BadOption("train.precision", precision, want="float32: OpenVINO has no bf16 on this CPU")
    by_torch = replace(spec, engine="torch", precision=precision, device=str(device))
    if engine == "torch" or device.type != "cpu" or not openvino_installed():
        return by_torch
    if spec.precision == "auto" and has_bf16():
        precision = "bf16"
    if engine == "auto" and (
        (precision == "bf16" and not has_bf16()) or not _converts(encoder, spec, precision, cache)
    ):
        return by_torch
    return replace(by_torch, engine="openvino", precision=precision)


def open_engine(encoder: ImageEncoder, spec: FeatureSpec) -> Engine:
    """Make the engine that `choose_engine` chose; a network that was converted in this process is used again."""
    _say(f"Image features are computed by {spec.made_by}.")
    precision: Any = spec.precision
    if spec.engine == "openvino":
        return _openvino(encoder, precision)
    return TorchEngine(encoder, precision, torch.device(spec.device))


def release_engines() -> None:
    """Give back the memory that converted networks hold for their inputs, where nothing is encoded for a while."""
    for engine in list(_engines.values()):
        engine.release()


@dataclass(frozen=True, eq=False)
class TorchEngine:
    """An encoder computed by PyTorch, in evaluation mode and without gradients, and left on the device."""

    encoder: ImageEncoder
    precision: Precision
    device: torch.device

    def tokens(self, pixels: np.ndarray) -> np.ndarray:
        """As `Engine.tokens`."""
        return self._compute(lambda some: self.encoder(some).float().clamp(-LARGEST, LARGEST).half(), pixels)

    def mean_token(self, pixels: np.ndarray, augmentations: int) -> np.ndarray:
        """As `Engine.mean_token`."""
        return self._compute(partial(mean_token, self.encoder, augmentations=augmentations), pixels)

    def maps(self, pixels: np.ndarray) -> list[Tensor]:
        """As `Engine.maps`."""
        with self._evaluating() as encoder:
            found = output_maps(encoder.backbone, encoder.blocks, encoder.prepare(pixels))
        return [each.float() for each in found]

    def _compute(self, forward: Callable[[Tensor], Tensor], pixels: np.ndarray) -> np.ndarray:
        with self._evaluating() as encoder:
            return split_on_memory_error(forward, encoder.prepare(pixels)).cpu().numpy()

    @contextmanager
    def _evaluating(self) -> Iterator[ImageEncoder]:
        encoder, training = self.encoder.to(self.device), self.encoder.training
        encoder.eval()
        try:
            with torch.inference_mode(), mixed(self.precision, self.device):
                yield encoder
        finally:
            encoder.train(training)


@dataclass(eq=False)
class OpenVINOEngine:
    """An encoder converted to OpenVINO for the CPU: patches once for each height and width, maps once for all.

    A batch may have any size. It computes with as many threads as torch does (`torch.get_num_threads`), which are not
    pinned to cores, so that two processes do not share one.
    """

    encoder: ImageEncoder
    precision: Precision
    graphs: OrderedDict[tuple[Output, int, int, int], Any] = field(default_factory=OrderedDict, repr=False)
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def tokens(self, pixels: np.ndarray) -> np.ndarray:
        """As `Engine.tokens`."""
        (found,) = self._compute("tokens", pixels)
        return np.clip(found, -LARGEST, LARGEST).astype(np.float16)

    def mean_token(self, pixels: np.ndarray, augmentations: int) -> np.ndarray:
        """As `Engine.mean_token`."""
        tensor = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        total = np.zeros((), np.float32)
        for way in ROTATIONS_FIRST[:augmentations]:
            (found,) = self._compute("mean", d4(tensor, way, rows=1, columns=2).contiguous().numpy())
            total = np.add(total, found)
        return np.divide(total, np.float32(augmentations))

    def maps(self, pixels: np.ndarray) -> list[Tensor]:
        """As `Engine.maps`."""
        return [torch.from_numpy(each) for each in self._compute("maps", pixels)]

    def convert(self, output: Output, height: int, width: int) -> Any:
        """The compiled network for pixels of this size; `Incompatible` if it cannot be had or is not the same."""
        if output == "maps":
            height = width = 0
        key = (output, height, width, torch.get_num_threads())
        if key not in self.graphs:
            while len(self.graphs) >= MOST_SHAPES:
                self.graphs.popitem(last=False)
            self.graphs[key] = _convert(self.encoder, self.precision, *key)
        self.graphs.move_to_end(key)
        return self.graphs[key]

    def release(self) -> None:
        """Give back the memory of the largest input so far; the next one takes it again."""
        with self.one_at_a_time:
            for graph in self.graphs.values():
                graph.release_memory()

    def _compute(self, output: Output, pixels: np.ndarray) -> list[np.ndarray]:
        with self.one_at_a_time:
            found = self.convert(output, pixels.shape[1], pixels.shape[2])([pixels], share_inputs=True)
            return [found[number] for number in range(len(found))]


class _FromPixels(nn.Module):
    """What is converted: from uint8 pixels (batch, height, width, 3) to the output."""

    def __init__(self, encoder: ImageEncoder, output: Output) -> None:
        super().__init__()
        self.encoder, self.output = encoder, output
        if output == "maps":
            self.encoder = copy.deepcopy(encoder)
            _pad_constantly(self.encoder.backbone)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        if self.output == "maps":
            return tuple(output_maps(self.encoder.backbone, self.encoder.blocks, self.encoder.prepare(pixels)))
        tokens = self.encoder(self.encoder.prepare(pixels))
        return (tokens.mean(dim=1) if self.output == "mean" else tokens,)


class _PaddedConvolution(nn.Module):
    """A convolution with TensorFlow's padding, of maps whose sides its stride divides: the padding is constant then."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.padding: list[int] = []  # left, right, top, bottom
        for axis in (1, 0):
            total = max(conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1 - conv.stride[axis], 0)
            self.padding += [total // 2, total - total // 2]

    def forward(self, maps: Tensor) -> Tensor:
        conv = self.conv
        return conv2d(pad(maps, self.padding), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def _pad_constantly(network: nn.Module) -> None:
    """Replace convolutions that compute their padding from the size of the map, in place.

    OpenVINO cannot join these with the layers around them, and would hold three copies of the largest map.
    """
    same = import_timm().layers.Conv2dSame
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and isinstance(child, same):
                setattr(module, name, _PaddedConvolution(child))


def _convert(encoder: ImageEncoder, precision: Precision, output: Output, height: int, width: int, threads: int) -> Any:
    """Trace, convert, compile and compare with torch; OpenVINO's parts are called one by one: `openvino.convert_model`
    takes ten times as long, and reports to its makers over the network. A height of 0 is for any height and width."""
    openvino = _import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    shape = (-1, height or -1, width or -1, 3)
    seen, other = ((height, width), (height, width)) if height else ((128, 256), (256, 384))
    draw = np.random.default_rng(0)
    example = torch.from_numpy(draw.integers(0, 256, (1, *seen, 3), np.uint8))
    check = torch.from_numpy(draw.integers(0, 256, (2, *other, 3), np.uint8))
    module, training = _FromPixels(encoder.to("cpu"), output), encoder.training
    module.eval()
    try:
        with torch.inference_mode():
            want = [each.numpy() for each in module(check)]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer: sizes become constants, which they are here
            traced = torch.jit.freeze(torch.jit.trace(module, example, check_trace=False))
        decoder = TorchScriptPythonDecoder(traced, example_input=example, shared_memory=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        graph = frontend.load(decoder)
        place = graph.get_inputs()[0]
        graph.set_element_type(place, openvino.Type.u8)
        graph.set_partial_shape(place, openvino.PartialShape(shape))
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        compiled = _openvino_core().compile_model(frontend.convert(graph), "CPU", options)
        found = compiled([check.numpy()])
    except Exception as error:  # of many types: the tracer runs foreign code, OpenVINO raises plain RuntimeError
        why = f"OpenVINO cannot convert it ({(str(error).strip() or type(error).__name__).splitlines()[-1]})"
        raise Incompatible("This image encoder", why, "set features.engine to torch") from error
    finally:
        encoder.train(training)
    off = max(  # root mean square of the difference, in deviations of what is wanted
        float(np.sqrt(np.square(found[number] - each).mean()) / max(float(each.std()), 1e-12))
        for number, each in enumerate(want)
    )
    if not off <= TOLERANCE[precision]:
        why = f"converted to OpenVINO it differs from torch by {off:.2g} deviations on noise"
        raise Incompatible("This image encoder", why, "set features.engine to torch")
    return compiled


def openvino_installed() -> bool:
    """Whether OpenVINO (extra `fast`) is installed."""
    return importlib.util.find_spec("openvino") is not None


def has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU by its own instructions (AMX, or AVX-512 BF16).

    OpenVINO asks the CPU alone, and crashes where ONEDNN_MAX_CPU_ISA denies its kernels these instructions.
    """
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if not any(word in allowed for word in ("ALL", "DEFAULT", "BF16", "FP16", "AMX", "AVX10")):
        return False
    return "BF16" in _openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@cache
def _openvino_core() -> Any:
    return _import_openvino().Core()


def _import_openvino() -> Any:
    """OpenVINO without its telemetry, which tells its makers of each import and writes into the user's home."""
    telemetry: Any = sys.modules
    telemetry.setdefault("openvino_telemetry", None)  # cannot be imported from here on
    import openvino

    return openvino


_engines: OrderedDict[tuple[str, Precision], OpenVINOEngine] = OrderedDict()
_refused: set[str] = set()
_said: set[str] = set()


def _openvino(encoder: ImageEncoder, precision: Precision) -> OpenVINOEngine:
    key = (encoder.fingerprint(), precision)
    if key not in _engines:
        while len(_engines) >= MOST_ENGINES:
            _engines.popitem(last=False)
        _engines[key] = OpenVINOEngine(encoder, precision)
    _engines.move_to_end(key)
    _engines[key].encoder = encoder  # of the same weights; that of an earlier call may have been trained since
    return _engines[key]


def _converts(encoder: ImageEncoder, spec: FeatureSpec, precision: Precision, cache: TokenCache | None) -> bool:
    """Whether OpenVINO can compute what the spec wants of this encoder; tried once, and the cache keeps the answer."""
    openvino = _import_openvino()
    output: Output = "maps" if spec.method == "dense" else "mean" if spec.scales_um else "tokens"
    side = spec.patch.size_px
    name = fingerprint("converts", _CHECK_FORMAT, encoder.fingerprint(), openvino.__version__, precision, output, side)
    known = None if cache is None else cache.get("tokens", name, (1,), np.uint8)
    if known is not None:
        return bool(known[0])
    if name not in _refused:
        try:
            _openvino(encoder, precision).convert(output, side, side)
        except Incompatible as error:
            _refused.add(name)
            _say(f"{error} The engine is auto, so torch computes it.")
    if cache is not None:
        cache.put("tokens", name, (1,), np.uint8, [np.array([name not in _refused], np.uint8)])
    return name not in _refused


def _say(sentence: str) -> None:
    """Log a sentence once a process."""
    if sentence not in _said:
        _said.add(sentence)
        log.info(sentence)
