"""Weights of an encoder: from a local safetensors file or from the model hub, checked before they are used."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from cmrcnet.errors import WeightsError

_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def read_safetensors(path: str | Path, encoder: str = "") -> dict[str, Tensor]:
    """Read a local safetensors file. What it is, is decided by its content, not by its name.

    Raises
    ------
    WeightsError
        If there is no such file.
    WeightsError
        If it is a pickle (a PyTorch .pt or .pth file).
    WeightsError
        If it is truncated, or no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise WeightsError.missing(
            encoder or path.stem, f"there is no file {path}", "check the path, or use weights: pretrained or random"
        )
    with path.open("rb") as stream:
        head = stream.read(9)
    if looks_like_pickle(head):
        raise WeightsError.pickle(path)
    if len(head) < 9 or head[8:] != b"{" or int.from_bytes(head[:8], "little") > _LARGEST_HEADER:
        raise WeightsError.damaged(path, "it is not a safetensors file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError.damaged(path, str(error)) from error


def looks_like_pickle(head: bytes) -> bool:
    """Whether a file that begins so is a pickle, or a zip archive as PyTorch makes them of pickles."""
    return head[:2] == b"PK" or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def fetch_from_hub(repository: str, encoder: str) -> dict[str, Tensor]:
    """Download (or find in the hub's cache) the weights of ``ORG/NAME``.

    safetensors is preferred; a repository that has only a PyTorch file is read with ``weights_only=True``, so that
    no code can run.

    Raises
    ------
    WeightsError
        If the hub cannot be reached, or the terms were not accepted.
    """
    from cmrcnet.models.torchvision_compat import import_timm

    import_timm()
    from timm.models import load_state_dict_from_hf

    require_hub(repository, encoder)
    with translate_hub_errors(repository, encoder):
        return load_state_dict_from_hf(repository, weights_only=True)


def require_hub(repository: str, encoder: str) -> None:
    """Say at once that the hub is out of sight, which its own client finds out only after a minute of retries.

    Raises
    ------
    WeightsError
        If nothing of `repository` is in the hub's cache, and the hub's name cannot even be looked up.
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
    """Turn the ways in which a model hub says no into `WeightsError` with what to do."""
    from huggingface_hub import errors as hub

    try:
        yield
    except hub.GatedRepoError as error:
        raise WeightsError.missing(
            encoder,
            f"{repository} is gated",
            f"accept its licence at https://huggingface.co/{repository}, create a token there and set HF_TOKEN, "
            "or give the path of a local safetensors file",
        ) from error
    except (hub.RepositoryNotFoundError, hub.EntryNotFoundError) as error:
        if isinstance(error, hub.LocalEntryNotFoundError):
            raise _unreachable(repository, encoder) from error
        raise WeightsError.missing(
            encoder,
            f"the model hub shows no weights for {repository}",
            "check the name; a private or gated repository also needs HF_TOKEN and an accepted licence",
        ) from error
    except (OSError, hub.HfHubHTTPError, *_transport_errors()) as error:
        raise _unreachable(repository, encoder) from error


def fit_weights(backbone: nn.Module, weights: Mapping[str, Tensor], where: object, depth: int | None = None) -> None:
    """Load `weights` into `backbone`, every key used once.

    The classifier's weights, and those of blocks past an asked-for `depth`, are left out. Where the names or the
    position embedding's size differ, timm's own conversion for the architecture is tried.

    Raises
    ------
    WeightsError
        With the keys that are missing, left over, of another shape, or not finite.
    """
    wanted = backbone.state_dict()
    given = _without_classifier(weights, backbone)
    if depth is not None:
        given = {key: value for key, value in given.items() if not _past_depth(key, depth)}
    if _differences(wanted, given):
        given = _converted_by_timm(weights, backbone, given, depth)
    differences = _differences(wanted, given)
    if differences:
        raise WeightsError.damaged(where, f"they do not fit {type(backbone).__name__}: {differences}")
    broken = sorted(key for key, value in given.items() if value.is_floating_point() and not value.isfinite().all())
    if broken:
        raise WeightsError.damaged(where, f"{broken[0]} holds values that are not finite")
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


def _without_classifier(weights: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    classifier = getattr(backbone, "default_cfg", {}).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return {key: value for key, value in weights.items() if not key.startswith(tuple(f"{head}." for head in heads))}


def _past_depth(key: str, depth: int) -> bool:
    parts = key.split(".")
    return parts[0] == "blocks" and len(parts) > 1 and parts[1].isdigit() and int(parts[1]) >= depth


def _converted_by_timm(weights, backbone: nn.Module, fallback: dict[str, Tensor], depth: int | None):
    """timm's own renaming and resizing for this architecture, where it has one that understands these weights."""
    convert = getattr(sys.modules.get(type(backbone).__module__), "checkpoint_filter_fn", None)
    if convert is None:
        return fallback
    try:
        converted = _without_classifier(convert(dict(weights), backbone), backbone)
    except (KeyError, RuntimeError, IndexError, AttributeError, ValueError, AssertionError):
        return fallback  # it stumbles over weights of another network; say what differs in our own words
    return {key: value for key, value in converted.items() if depth is None or not _past_depth(key, depth)}


def _unreachable(repository: str, encoder: str) -> WeightsError:
    offline = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "the model hub cannot be reached"
    return WeightsError.missing(
        encoder,
        f"{offline} and {repository} is not in its cache",
        "run once where the hub can be reached, or give the path of a local safetensors file "
        "(weights: path/to/model.safetensors), or weights: random",
    )


def _transport_errors() -> tuple[type[Exception], ...]:
    """The network library of the installed huggingface_hub, which changed with its versions."""
    found = []
    for name in ("httpx", "httpx2", "requests"):
        module = sys.modules.get(name)
        if module is not None:
            found.append(module.RequestException if name == "requests" else module.HTTPError)
    return tuple(found)


def random_weights(build, seed: int) -> nn.Module:
    """Run `build` under its own seed, leaving torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
