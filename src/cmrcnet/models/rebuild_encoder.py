"""The encoder of a stored model or student: named with its fingerprint, or kept where nobody could build it again.

The weights of a frozen encoder are not copied into a folder. An encoder that was trained, or whose weights were
random, is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cmrcnet.errors import Incompatible
from cmrcnet.models.artefact_folder import tensors_of, under
from cmrcnet.models.encoder_registry import create_image_encoder
from cmrcnet.models.image_encoder import EncoderOrigin, ImageEncoder


def encoder_facts(encoder: ImageEncoder, trained: bool) -> dict[str, Any]:
    """What the folder's .json says of its encoder.

    Parameters
    ----------
    encoder : ImageEncoder
    trained : bool
        Whether its weights were changed in training.
    """
    origin = encoder.origin
    return {
        "origin": None if origin is None else dataclasses.asdict(origin),
        "fingerprint": encoder.fingerprint(),
        "stored": trained or (origin is not None and origin.weights == "random"),
    }


def kept_weights(encoder: ImageEncoder, facts: Mapping[str, Any]) -> dict[str, Tensor]:
    """The encoder's weights, where `encoder_facts` says that they are stored."""
    return tensors_of("encoder", encoder.backbone) if facts["stored"] else {}


def rebuild_encoder(facts: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> ImageEncoder:
    """The encoder that a folder speaks of.

    Parameters
    ----------
    facts : mapping
        From `encoder_facts`.
    tensors : mapping
        Of the folder.
    folder : Path
        For sentences.

    Raises
    ------
    Incompatible
        It was one of the user's own.
    WeightsError
    """
    if facts["origin"] is None:
        raise Incompatible(folder, "its encoder was one of your own", "pass it: load(folder, encoder=...)")
    origin = EncoderOrigin(**facts["origin"] | {"blocks": tuple(facts["origin"]["blocks"])})
    encoder = create_image_encoder(
        origin.name,
        weights="random" if facts["stored"] else origin.weights,
        blocks=origin.blocks,
        depth=origin.depth,
        heads=origin.heads,
        seed=origin.seed,
    )
    if facts["stored"]:
        encoder.backbone.load_state_dict(under(tensors, "encoder"), strict=True)
    encoder.origin = origin
    return encoder


def require_encoder(encoder: ImageEncoder, facts: Mapping[str, Any], folder: Path) -> None:
    """Refuse an encoder that is not the one that the folder names: `Incompatible`."""
    wanted = facts["fingerprint"]
    if encoder.fingerprint() != wanted:
        raise Incompatible(
            folder,
            f"it was trained on tokens of encoder {wanted[:12]}, but {encoder.card.name} as it is here is "
            f"{encoder.fingerprint()[:12]}",
            "give back the weights that it was trained with",
        )
