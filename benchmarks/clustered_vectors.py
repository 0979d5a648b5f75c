"""Vectors that look like embeddings of spots: several hundred kinds of tissue, few directions that carry most.

Centres of 500 kinds, of unequal frequency; around each, spots whose numbers fall off as 1/sqrt(i) along one rotated
basis, as the principal components of real embeddings do. Queries are drawn the same way and are not in the bank.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

DIM, KINDS, WITHIN = 256, 500, 0.6
AT_ONCE = 100_000


def blocks(count: int, seed: int) -> Iterator[np.ndarray]:
    """Unit vectors, (up to `AT_ONCE`, DIM) float32 at a time; the kinds are the same for every seed."""
    kinds = np.random.default_rng(0)
    falls = (np.arange(DIM) + 1.0) ** -0.5
    centre = (kinds.standard_normal((KINDS, DIM)) * falls).astype(np.float32)
    share = kinds.dirichlet(np.full(KINDS, 2.0))
    turn = np.linalg.qr(kinds.standard_normal((DIM, DIM)))[0].astype(np.float32)
    draw = np.random.default_rng(seed)
    for start in range(0, count, AT_ONCE):
        size = min(AT_ONCE, count - start)
        around = draw.standard_normal((size, DIM), dtype=np.float32) * (WITHIN * falls).astype(np.float32)
        found = (centre[draw.choice(KINDS, size, p=share)] + around) @ turn
        yield found / np.linalg.norm(found, axis=1, keepdims=True)


def vectors(count: int, seed: int) -> np.ndarray:
    """All of them at once."""
    return np.concatenate(list(blocks(count, seed)))
