"""A small slide, and an encoder that counts how often it is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cmrcnet.slides.slide import ArraySlide, PatchScale
from cmrcnet.storage.cache import TokenCache

SCALE = PatchScale(size_px=16, mpp=0.5)


class CountingEncoder(nn.Module):
    """Four tokens a patch: the mean colour of each quarter, times a weight."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.n_tokens, self.dim = 4, 3
        self.patches = 0
        self.fail_after: int | None = None
        self.error: type[BaseException] = KeyboardInterrupt

    def fingerprint(self) -> str:
        return f"counting {self.weight.item()}"

    def prepare(self, patches: np.ndarray | torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(patches).permute(0, 3, 1, 2).float()

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        if self.fail_after is not None and self.patches >= self.fail_after:
            raise self.error
        assert not self.training
        self.patches += len(patches)
        return torch.nn.functional.adaptive_avg_pool2d(patches, 2).flatten(2).transpose(1, 2) * self.weight


@pytest.fixture
def encoder() -> CountingEncoder:
    return CountingEncoder()


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (120, 140, 3), dtype=np.uint8)


@pytest.fixture
def slide(pixels) -> ArraySlide:
    return ArraySlide(pixels, 0.5, "noise")


@pytest.fixture(scope="session")
def centres() -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 120, (21, 2)).round(1)


@pytest.fixture
def cache(tmp_path) -> TokenCache:
    return TokenCache(tmp_path / "cache")


def files_in(cache: TokenCache, shelf: str) -> list:
    return sorted(path for path in (cache.folder / shelf).rglob("*") if path.is_file())
