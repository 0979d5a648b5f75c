"""Create image encoders by name: short names, any timm network, and any timm network on the model hub.

The file is one thing: from a name, or from the facts that a model folder stores, to an `ImageEncoder`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmrcnet.errors import BadOption, Incompatible, UnknownName
from cmrcnet.models.encoder_weights import (
    draw_as_released,
    embedded_weights,
    fetch_from_hub,
    fit_weights,
    from_efficientnet_lite,
    from_transformers,
    import_timm,
    random_weights,
    read_safetensors,
    require_hub,
    translate_hub_errors,
)
from cmrcnet.models.image_encoder import EncoderOrigin, ImageEncoder, block_outputs, blocks_of
from cmrcnet.models.pretrained import EXTERNAL, NOT_INCLUDED, PRETRAINED, PretrainedConfig

RANDOM = ("random", "random-released")
_PREFIXES = (
    "or timm:NAME for any timm network, or hf-hub:ORG/NAME for one on the model hub, or external:NAME:WIDTH for "
    "features that you computed elsewhere"
)


def image_encoders() -> tuple[str, ...]:
    """Short names of the pretrained encoders, the embedded one first.

    Examples
    --------
    >>> import cmrcnet as cn
    >>> cn.image_encoders()[:3]
    ('efficientnet-lite0', 'vit-b32', 'dinov2-s')
    """
    return tuple(PRETRAINED)


def pretrained_config(name: str) -> PretrainedConfig:
    """Config of a pretrained encoder; for ``timm:`` and ``hf-hub:`` names it is read from the network itself."""
    if name in PRETRAINED:
        return PRETRAINED[name]
    if name.startswith(EXTERNAL):
        return _external_config(name)
    if name.startswith(("timm:", "hf-hub:")):
        return _config_of(_timm_network(name, pretrained=False, settings={}), name)
    hint = NOT_INCLUDED.get(name.lower().replace("-", "").replace("_", ""), f"Give one of these, {_PREFIXES}")
    raise UnknownName("encoder", name, image_encoders(), f"{hint}.")


def create_image_encoder(
    name: str,
    *,
    weights: str | Path = "pretrained",
    blocks: Sequence[int] = (),
    depth: int | None = None,
    heads: int | None = None,
    seed: int = 0,
    patch_px: int | None = None,
) -> ImageEncoder:
    """Build an encoder, in evaluation mode, on the CPU.

    Parameters
    ----------
    name : str
        A short name (`image_encoders`), ``timm:NAME``, or ``hf-hub:ORG/NAME``. Or ``external:NAME:WIDTH``, which
        computes nothing: vectors of WIDTH numbers come with each slide (`FeatureSlide`).
    weights : str
        "pretrained"; "random", as timm draws them; "random-released", as the released code draws those of a vision
        transformer; or the path of a local safetensors file.
    blocks : sequence of int
        Blocks whose tokens are joined, counted from 0; empty: the last output.
    depth, heads : int or None
        Number of transformer blocks, and of attention heads, where not the network's own. A shallower pretrained
        network keeps its first blocks; other heads cannot be had with pretrained weights.
    seed : int
        Of random weights.
    patch_px : int or None
        Side of the patches that a plain vision transformer ``timm:NAME_patchN_...`` is built for, where N divides it;
        its position embedding is resampled. None: 224. Other encoders are built for the side that is their own.

    Returns
    -------
    ImageEncoder

    Raises
    ------
    UnknownName
        If there is no such encoder.
    DownloadFailed, MissingInput, MissingExtra
        If its weights are not at hand.
    BadInput, Damaged
        If a local file is a pickle; or is no safetensors file, is truncated, or holds the weights of another network.
    BadOption
        If the network has no such blocks, depth or heads.

    Examples
    --------
    >>> import numpy as np
    >>> import cmrcnet as cn
    >>> encoder = cn.create_image_encoder("timm:test_vit", weights="random", blocks=(0, 1))
    >>> patches = np.full((2, 160, 160, 3), 200, np.uint8)
    >>> encoder(encoder.prepare(patches)).shape
    torch.Size([2, 101, 128])
    """
    weights, blocks = str(weights), tuple(blocks)
    if heads is not None and weights == "pretrained":
        raise BadOption("model.encoder_heads", heads, "nothing, unless the weights are random or a file of your own")
    settings: dict[str, Any] = {}
    if depth is not None:
        settings["depth"] = depth
    if heads is not None:
        settings["num_heads"] = heads
    if name.startswith(EXTERNAL):
        config, backbone = _external_config(name), ComputedElsewhere(name)
        if weights != "pretrained" or settings:
            raise BadOption("model.weights", weights, f"pretrained, without depth and heads, for {name}")
    elif name in PRETRAINED:
        config, backbone = _from_config(PRETRAINED[name], weights, settings, seed)
    else:
        config, backbone = _from_timm(name, weights, settings, seed, patch_px)
    if weights == "random-released":
        draw_as_released(backbone, name, seed)
    origin = EncoderOrigin(name, weights, blocks, depth, heads, seed, patch_px)
    if config.grid is not None:
        backbone = backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # faster on a CPU
    return ImageEncoder(backbone, config, blocks, origin).eval()


class ComputedElsewhere(nn.Module):
    """In place of a network: the features of its slides come in files.

    Parameters
    ----------
    name : str
        ``external:NAME:WIDTH``.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward_features(self, patches: Tensor) -> Tensor:
        """Refuse: there is no network here."""
        raise BadOption(
            "model.encoder", self.name, "features from the slide's file: there is no network to encode pixels"
        )


def _external_config(name: str) -> PretrainedConfig:
    encoder, _, width = name.removeprefix(EXTERNAL).rpartition(":")
    if not encoder or not width.isdecimal() or not 1 <= int(width) <= 1 << 16:
        raise BadOption("model.encoder", name, "external:NAME:WIDTH, such as external:uni_v1:1024")
    known = PRETRAINED.get(encoder)
    return PretrainedConfig(
        name=name,
        source=name,
        licence="not known here: see the encoder's model card" if known is None else known.licence,
        architecture=name,
        any_size=True,
        n_tokens=1,
        dim=int(width),
        note="computed elsewhere, and read from a file of each slide",
        external=encoder,
    )


def _from_config(
    config: PretrainedConfig, weights: str, settings: dict[str, Any], seed: int
) -> tuple[PretrainedConfig, nn.Module]:
    given = _weights_of(config, weights)  # first, so that missing weights are reported before a large network is built
    every, depth = {**dict(config.settings), **settings}, settings.get("depth")
    backbone = random_weights(lambda: _build(config.architecture, every, config.name), seed)
    if given is not None:
        fit_weights(backbone, given, config.source if weights == "pretrained" else weights, depth)
    return (config if depth is None else dataclasses.replace(config, blocks=config.blocks[:1] * depth)), backbone


def _weights_of(config: PretrainedConfig, weights: str) -> dict[str, torch.Tensor] | None:
    """Weights under timm's names, or None when they shall be random."""
    if weights in RANDOM:
        return None
    if weights == "pretrained" and config.name == "efficientnet-lite0":
        return from_efficientnet_lite(embedded_weights())
    if weights != "pretrained":
        given = read_safetensors(weights)
    elif config.repository is not None:
        given = fetch_from_hub(config.repository, config.name)
    else:
        given = _timm_network(config.source, True, dict(config.settings)).state_dict()
    return from_transformers(given) if config.name == "phikon-v2" else given


def _from_timm(
    name: str, weights: str, settings: dict[str, Any], seed: int, patch_px: int | None
) -> tuple[PretrainedConfig, nn.Module]:
    if not name.startswith(("timm:", "hf-hub:")):
        pretrained_config(name)  # raises UnknownName
    side = patch_px or 224
    if weights == "pretrained" and not settings:
        backbone = _timm_network(name, True, {}, side)
        return _config_of(backbone, name), backbone
    given = None
    if weights == "pretrained":
        given = _timm_network(name, True, {}, side).state_dict()
    elif weights not in RANDOM:
        given = read_safetensors(weights)
    backbone = random_weights(lambda: _timm_network(name, False, settings, side), seed)
    if given is not None:
        fit_weights(backbone, given, name if weights == "pretrained" else weights, settings.get("depth"))
    return _config_of(backbone, name), backbone


def _timm_network(name: str, pretrained: bool, settings: dict[str, Any], patch_px: int = 224) -> nn.Module:
    """A timm network by ``timm:NAME`` or ``hf-hub:ORG/NAME``."""
    timm = import_timm()
    kind, _, rest = name.partition(":")
    if kind == "hf-hub":
        require_hub(rest, name)
        with translate_hub_errors(rest, name):
            return _build(name, settings, name, pretrained)
    if not timm.is_model(rest):
        close = difflib.get_close_matches(rest, timm.list_models(), n=5, cutoff=0.3)
        raise UnknownName("timm network", rest, close, "timm.list_models() lists them all.")
    if pretrained:
        found = timm.get_pretrained_cfg(rest, allow_unregistered=False)
        repository = (found and found.hf_hub_id) or f"timm/{rest}"
        require_hub(repository, name)
        with translate_hub_errors(repository, name):
            return _build(rest, {**_built_for(rest, patch_px), **settings}, name, pretrained=True)
    return _build(rest, {**_built_for(rest, patch_px), **settings}, name)


def _built_for(network: str, patch_px: int) -> dict[str, Any]:
    """A plain vision transformer takes any image size that its patches divide: the settings that build it for one."""
    timm = import_timm()
    cfg = timm.get_pretrained_cfg(network)
    side = cfg.input_size[-1] if cfg is not None else 224
    plain = timm.model_entrypoint(network).__module__ == "timm.models.vision_transformer"
    patch = next((int(part[5:]) for part in network.split("_") if part.startswith("patch") and part[5:].isdigit()), 0)
    wanted = next((px for px in (patch_px, 224) if patch and px % patch == 0), side)
    return {"img_size": wanted} if plain and side != wanted else {}


def _build(architecture: str, settings: dict[str, Any], name: str, pretrained: bool = False) -> nn.Module:
    timm = import_timm()
    layers = {
        key: getattr(home, settings[key])
        for key, home in (("mlp_layer", timm.layers), ("act_layer", nn))
        if key in settings
    }
    for key in ("depth", "num_heads"):
        if key in settings and (not isinstance(settings[key], int) or settings[key] < 1):
            raise BadOption(f"model.encoder_{key.removeprefix('num_')}", settings[key], "a whole number, 1 or more")
    try:
        backbone = timm.create_model(architecture, pretrained=pretrained, num_classes=0, **{**settings, **layers})
    except TypeError as error:
        unknown = [key for key in ("depth", "num_heads") if key in settings and f"'{key}'" in str(error)]
        if not unknown:
            raise
        option = f"model.encoder_{unknown[0].removeprefix('num_')}"
        raise BadOption(option, settings[unknown[0]], f"nothing: {name} is not a plain vision transformer") from error
    except (AssertionError, ValueError) as error:
        if "num_heads" not in settings:
            raise
        raise BadOption("model.encoder_heads", settings["num_heads"], f"a divisor of {name}'s width") from error
    return backbone


def _config_of(backbone: Any, name: str) -> PretrainedConfig:
    """Config of a timm network, found by running one blank patch through it."""
    cfg = getattr(backbone, "pretrained_cfg", {}) or {}
    size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    if size is None:
        size = cfg.get("input_size", (3, 224, 224))[-1] if cfg.get("fixed_input_size", False) else 224
    side = int(size[0] if isinstance(size, tuple | list) else size)
    modules = blocks_of(backbone)
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        blank = torch.zeros(1, 3, side, side)
        last = backbone.forward_features(blank)
        each = block_outputs(backbone, range(len(modules)), blank) if modules else []
    backbone.train(training)
    if not isinstance(last, torch.Tensor) or last.ndim not in (3, 4):
        raise BadOption("model.encoder", name, "a network that gives one feature map or one row of tokens")
    maps_last = str(getattr(backbone, "output_fmt", "")).endswith("NHWC")
    registers = getattr(backbone, "reg_token", None)
    register = int(registers.shape[1]) if last.ndim == 3 and isinstance(registers, torch.Tensor) else 0
    prefix = int(getattr(backbone, "num_prefix_tokens", 0)) if last.ndim == 3 else 0
    widths = [out.shape[1] if out.ndim == 4 and not maps_last else out.shape[-1] for out in (last, *each)]
    grid = None
    if last.ndim == 4:
        grid = (last.shape[1], last.shape[2]) if maps_last else (last.shape[2], last.shape[3])
    return PretrainedConfig(
        name=name,
        source=name,
        licence=str(cfg.get("license") or "unknown: see the network's model card"),
        architecture=str(cfg.get("architecture") or name.partition(":")[2]),
        patch_px=side,
        any_size=last.ndim == 4 and not cfg.get("fixed_input_size", False),
        mean=tuple(cfg.get("mean", (0.5, 0.5, 0.5))),
        std=tuple(cfg.get("std", (0.5, 0.5, 0.5))),
        n_tokens=grid[0] * grid[1] if grid else last.shape[1] - register,
        dim=widths[0],
        grid=grid,
        blocks=tuple(widths[1:]),
        class_tokens=prefix - register,
        register_tokens=register,
        note="the scale of its training is unknown; patches have the scale of your config",
    )


def encoder_facts(encoder: ImageEncoder, trained: bool) -> dict[str, Any]:
    """Describe an encoder for the folder of a model: how to build it again, and whether its weights are stored there.

    The weights of a frozen encoder are not copied into a folder. Those of one that was `trained`, or whose weights were
    random, are.
    """
    origin = encoder.origin
    return {
        "origin": None if origin is None else dataclasses.asdict(origin),
        "fingerprint": encoder.fingerprint(),
        "stored": trained or (origin is not None and origin.weights in RANDOM),
    }


def rebuild_encoder(
    facts: Mapping[str, Any], weights: Mapping[str, Tensor], folder: object, given: ImageEncoder | None = None
) -> ImageEncoder:
    """Build the encoder of a stored model again from `encoder_facts` and its stored weights, or check the one `given`.

    Raises
    ------
    Incompatible
        The encoder is not the one that the model was trained with, or it was the user's own and is not given.
    DownloadFailed, MissingInput, MissingExtra
        The frozen encoder's weights are not at hand.
    """
    encoder = given
    if encoder is None:
        if facts["origin"] is None:
            raise Incompatible(folder, "its encoder was one of your own", "pass it: from_pretrained(..., encoder=...)")
        origin = EncoderOrigin(**facts["origin"] | {"blocks": tuple(facts["origin"]["blocks"])})
        encoder = create_image_encoder(
            origin.name,
            weights="random" if facts["stored"] else origin.weights,
            blocks=origin.blocks,
            depth=origin.depth,
            heads=origin.heads,
            seed=origin.seed,
            patch_px=origin.patch_px,
        )
        if facts["stored"]:
            encoder.backbone.load_state_dict(dict(weights), strict=True)
        encoder.origin = origin
    wanted, found = facts["fingerprint"], encoder.fingerprint()
    if found != wanted:
        raise Incompatible(
            folder,
            f"it was trained on tokens of encoder {wanted[:12]}, but {encoder.config.name} here is {found[:12]}",
            "give back the weights that it was trained with",
        )
    return encoder
