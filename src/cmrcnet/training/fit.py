"""Train CMRCNet on the sections given, and on nothing else: one loop over Lightning Fabric.

The course of a training: some training sections are held in and the rest trained on; the epoch whose retrieval is best
on the held-in ones is chosen; then, with `train.refit`, the network is trained again from the start on all sections
for that many epochs. Every epoch seeds its own generators from the recipe's seed, the phase and the epoch's number,
so that a run that was interrupted and resumed ends with the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

log = logging.getLogger("cmrcnet")

_PHASES = {"search": 0, "refit": 1}
_FABRIC_PRECISION = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
