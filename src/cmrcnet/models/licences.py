"""Licences of what a model was made of, carried into models, students, banks and predictions.

Only what is stated is carried: the licence of the encoder's weights (`pretrained`), and for slides the column `licence`
of the cohort file. Whether and how these terms bind a prediction is a question for a lawyer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmrcnet.models.image_encoder import ImageEncoder

COLUMN = "licence"
"""Of a cohort file."""
NOT_STATED = "not stated"


def encoder_licence(encoder: ImageEncoder) -> str:
    """Name and licence of an encoder's weights; of the user's own file nothing is known, random ones have none."""
    weights = "pretrained" if encoder.origin is None else encoder.origin.weights
    if weights.startswith("random"):
        return f"{encoder.config.name}: random weights"
    return f"{encoder.config.name}: {encoder.config.licence if weights == 'pretrained' else NOT_STATED}"


def in_words(stated: Iterable[str]) -> str:
    """Licences of sections and how many have each, those of most sections first.

    Examples
    --------
    >>> in_words(["CC BY 4.0", "", "CC BY 4.0"])
    'CC BY 4.0 (2 sections), not stated (1 section)'
    """
    counts = Counter(each.strip() or NOT_STATED for each in stated)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} ({count} section{'s' * (count > 1)})" for name, count in ordered)
