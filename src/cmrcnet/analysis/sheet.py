"""The paper of a attribution: a page measured in inches, its colours, and pictures in frames."""

from __future__ import annotations

from typing import Any

import numpy as np

INK, SOFT, LINE, WASH, MARK, WARN, SPOT = "#1c2430", "#5a6675", "#dde3ea", "#f5f7fa", "#7a2e8e", "#8a4b00", "#7d8896"
WIDE, LEFT, RIGHT, DPI = 14.0, 0.5, 13.5, 130
"""Width, left and right edge in inches; pixels an inch."""


class Sheet:
    """A page measured in inches from its upper left corner.

    Parameters
    ----------
    drawing : matplotlib.figure.Figure
        `WIDE` wide.
    high : float
        Its height.
    """

    def __init__(self, drawing: Any, high: float) -> None:
        self._drawing, self._high = drawing, high

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes of a size, at a location."""
        return self._drawing.add_axes((left / WIDE, 1 - (top + height) / self._high, width / WIDE, height / self._high))

    def text(
        self,
        left: float,
        top: float,
        words: str,
        size: float,
        color: str = SOFT,
        *,
        bold: bool = False,
        ha: str = "left",
        va: str = "baseline",
        spacing: float = 1.4,
        boxed: bool = False,
    ) -> None:
        """Words at a location; boxed ones warn."""
        box = {"boxstyle": "round,pad=0.45", "facecolor": "#fff4e0", "edgecolor": "#f0d3a2"} if boxed else None
        self._drawing.text(
            left / WIDE, 1 - top / self._high, words, fontsize=size, color=color, weight="bold" if bold else "normal",
            ha=ha, va=va, linespacing=spacing, bbox=box,
        )  # fmt: skip


def show_patch(axes: Any, patch: np.ndarray | None, instead: str) -> None:
    """A patch in its frame, or words in its place."""
    if patch is None:
        axes.set_facecolor(WASH)
        axes.text(0.5, 0.5, instead, transform=axes.transAxes, ha="center", va="center", color=SOFT, fontsize=8.5)
    else:
        axes.imshow(patch, interpolation="antialiased")
    frame(axes)


def frame(axes: Any, color: str = LINE, width: float = 1.0) -> None:
    """A thin frame, no ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=width)


def cut(name: object, most: int = 13) -> str:
    """A name that fits."""
    word = str(name)
    return word if len(word) <= most else f"{word[: most - 1]}…"
