"""How much tissue a patch shows."""

from __future__ import annotations

from dataclasses import dataclass

from cmrcnet.errors import BadOption


@dataclass(frozen=True, kw_only=True)
class PatchScale:
    """A patch's size in pixels and in micrometres: 224 px at 0.5 um per px is 112 um."""

    size_px: int = 224
    """Side of a patch in pixels."""
    mpp: float = 0.5
    """Micrometres that one pixel of a patch shows."""

    def __post_init__(self) -> None:
        if self.size_px < 1:
            raise BadOption("patch.size_px", self.size_px, want="a whole number of pixels, 1 or more")
        if not self.mpp > 0:
            raise BadOption("patch.mpp", self.mpp, want="micrometres per pixel, above 0")

    @property
    def side_um(self) -> float:
        """Side of a patch in micrometres."""
        return self.size_px * self.mpp

    def side_on(self, slide_mpp: float) -> float:
        """Side of a patch in level-0 pixels of a slide that shows `slide_mpp`."""
        return self.side_um / slide_mpp

    def showing(self, side_um: float) -> PatchScale:
        """A patch of as many pixels that shows `side_um` micrometres a side."""
        return PatchScale(size_px=self.size_px, mpp=side_um / self.size_px)
