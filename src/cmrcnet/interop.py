"""Adapters to other packages: a distilled student as a model of LazySlide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cmrcnet.errors import BadOption, ShapeMismatch, UnknownName
from cmrcnet.features.spec import FeatureSpec
from cmrcnet.features.tokens import SectionTokens, check_standardised
from cmrcnet.models.image_encoder import mean_token

if TYPE_CHECKING:
    from cmrcnet.models.student import Student


class LazySlideStudent:
    """A student that LazySlide can call, for features of tiles and for prediction from them.

    It implements LazySlide's image model and feature prediction protocols (lazyslide_models 0.1)::

        zs.tl.feature_extraction(wsi, model, key_added="student")    # tiles of the sizes in `spec.scales`
        zs.tl.feature_prediction(wsi, model, feature_key="student")

    Features of a student with several scales are those of each scale side by side, extracted one scale at a time.

    Parameters
    ----------
    student : Student
        Loaded with `Student.from_pretrained`.
    genes : sequence of str, optional
        Genes to predict; all when left out.
    slide_mpp : float, optional
        Micrometres per level-0 pixel of the slide, for a student whose features have a neighbourhood.
    tile_px : float
        Side of a tile in level-0 pixels, for the same; LazySlide gives the corners of tiles.
    name : str
        Name of the prediction table in the slide's store.

    Raises
    ------
    UnknownName
        The student does not predict a gene.
    BadOption
        A neighbourhood, and no `slide_mpp`; or a student of dense features, or one whose scales are turned differently
        often.
    """

    features_model_name: str | None = None

    def __init__(
        self,
        student: Student,
        *,
        genes: Sequence[str] | None = None,
        slide_mpp: float | None = None,
        tile_px: float = 0.0,
        name: str = "cmrcnet_student",
    ) -> None:
        self.student, self.model, self.name = student, student.encoder, name
        self.spec = FeatureSpec.of(student.config, student.encoder)
        if self.spec.method == "dense":
            want = "a student trained with features.method=patches: LazySlide encodes tiles one by one"
            raise BadOption("features.method", "dense", want)
        each = [self.spec.augmentations_of(layer) for layer in range(len(self.spec.scales))]
        if len(set(each)) > 1:
            want = "one number for all scales: a tile does not say which scale it is of; distil with --augmentations"
            raise BadOption("features.augmentations", each, want)
        self.genes = tuple(student.genes if genes is None else genes)
        known = {gene: column for column, gene in enumerate(student.genes)}
        unknown = [gene for gene in self.genes if gene not in known]
        if unknown:
            raise UnknownName("gene", unknown[0], student.genes, "The student does not predict it.")
        self._columns = np.array([known[gene] for gene in self.genes], np.intp)
        self.needs_coords = self.spec.neighbourhood_um > 0
        self.whole_slide = self.needs_coords or self.spec.standardize == "section"
        if self.needs_coords and slide_mpp is None:
            raise BadOption("slide_mpp", slide_mpp, "micrometres per pixel of the slide, for its neighbourhoods")
        self._slide_mpp, self._tile_px = slide_mpp or 1.0, tile_px

    def get_transform(self) -> Callable[[np.ndarray], Tensor]:
        """A function from a tile (height, width, 3) uint8 to the encoder's input (3, height, width)."""
        return lambda tile: self.student.encoder.prepare(np.asarray(tile, np.uint8)[None])[0].cpu()

    def encode_image(self, image: Tensor) -> Tensor:
        """Features (tiles, dim) of prepared tiles (tiles, 3, height, width): the mean token, over D4 augmentations.

        Parameters
        ----------
        image : torch.Tensor
            From `get_transform`.
        """
        encoder = self.student.encoder
        with torch.inference_mode():
            return mean_token(encoder, image.to(encoder.mean.device), self.spec.augmentations_of(0))

    def predict(self, features: np.ndarray, coords: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Expression of each gene at each tile, log1p of counts scaled to the student's library size.

        Parameters
        ----------
        features : array, shape (tiles, scales * dim)
            From `encode_image`, of all tiles of the slide where `whole_slide` is set.
        coords : array, shape (tiles, 2), optional
            x, y of the upper left corners of the tiles, in level-0 pixels; needed for neighbourhoods.

        Returns
        -------
        dict of str to numpy.ndarray, shape (tiles,), float32

        Raises
        ------
        ShapeMismatch, BadOption
        """
        features = np.asarray(features, np.float32)
        scales, dim = len(self.spec.scales), self.student.encoder.dim
        if features.ndim != 2 or features.shape[1] != scales * dim:
            raise ShapeMismatch("the features of tiles", want=("tiles", scales * dim), got=features.shape)
        if self.spec.scales_um:
            if coords is None and self.needs_coords:
                raise BadOption("coords", None, "corners of the tiles, for their neighbourhoods")
            corners = np.zeros((len(features), 2)) if coords is None else np.asarray(coords, np.float64)
            location_um = (corners + self._tile_px / 2) * self._slide_mpp
            check_standardised(self.spec, len(features), "the tiles")
            tokens = SectionTokens(features.reshape(-1, scales, dim), location_um, self.spec)
            features = tokens.take(slice(0, len(features))).reshape(len(features), -1)
        values = self.student.predict(features, self._columns)
        return {gene: values[:, column] for column, gene in enumerate(self.genes)}

    def to(self, device: Any) -> LazySlideStudent:
        """Move the encoder to a device, and return the same model."""
        self.student.encoder.to(device)
        return self

    def try_compile(self, **compile_kws: Any) -> None:
        """Compile the encoder with `torch.compile`; it happens at the first tile."""
        self.model.compile(**compile_kws)
