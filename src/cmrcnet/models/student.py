"""A distilled student: an encoder, a small head and the genes. It predicts without a bank and without a search.

Folder format 4: ``student.json`` (config, genes, lineage, report, fingerprints), ``weights.safetensors`` (head, PCA and
gene basis; the encoder's weights where `encoders.encoder_facts` says so), and where its teacher had it
``calibration.safetensors``. The file is one thing: the student, its head, and its folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cmrcnet.config import Config
from cmrcnet.errors import ShapeMismatch
from cmrcnet.genes.scaling import Scaling
from cmrcnet.heads.gene_decoder import GeneBasis
from cmrcnet.heads.pca import FeaturePCA
from cmrcnet.models.artefact import (
    arrays_to_tensors,
    module_tensors,
    read_artefact,
    tensors_to_arrays,
    write_artefact,
)
from cmrcnet.models.encoders import encoder_facts, rebuild_encoder
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.storage.arrays import arrays_under
from cmrcnet.storage.hashing import fingerprint_stream
from cmrcnet.uncertainty.calibration import Calibration

FILE = "student.json"
FORMAT = 6
_LOCATIONS_AT_A_TIME = 1024


class StudentHead(nn.Module):
    """Linear map plus a small residual network: ``scale * (A x + b + W2 GELU(W1 x + b1))``, W1 to `hidden` features.

    The residual starts at zero, so that an untrained head is the linear map, which has a closed solution.
    """

    scale: Tensor

    def __init__(self, features: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, rank)
        hidden_layer, out = nn.Linear(features, hidden), nn.Linear(hidden, rank, bias=False)
        self.residual = nn.Sequential(hidden_layer, nn.GELU(), out)
        nn.init.zeros_(out.weight)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, features: Float[Tensor, "locations features"]) -> Float[Tensor, "locations rank"]:
        return self.scale * (self.linear(features) + self.residual(features))

    def scores(self, features: np.ndarray) -> np.ndarray:
        """The scores (locations, rank) float32 of an array of features, some locations at a time."""
        found = np.empty((len(features), self.linear.out_features), np.float32)
        with torch.inference_mode():
            for start in range(0, len(features), _LOCATIONS_AT_A_TIME):
                rows = slice(start, start + _LOCATIONS_AT_A_TIME)
                found[rows] = self(torch.from_numpy(features[rows])).numpy()
        return found


@dataclass(frozen=True)
class Lineage:
    """Teacher of a student, and the sections and slides that it has seen."""

    model_fingerprint: str
    bank_fingerprint: str
    bank_sections: tuple[str, ...]
    bank_patients: tuple[str, ...]
    sections: tuple[str, ...]
    """That the model or the bank has seen; they stay here when they are removed from the bank later."""
    patients: tuple[str, ...]
    """As `sections`."""
    slides: tuple[str, ...] = ()
    """Fingerprints of the slides that it was trained on."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Head, k, grid and seed, plain values."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Lineage:
        """From `dataclasses.asdict`, after JSON has made lists of tuples."""
        plain: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in values.items()}
        return cls(**plain)


@dataclass(frozen=True, eq=False)
class Student:
    """Everything that its predictions depend on, and its report. It is put into evaluation mode.

    Parameters
    ----------
    encoder : ImageEncoder
        Frozen.
    config : Config
        `features` and `patch` of the student, and device and precision of `train`; the rest is its teacher's.
    pca : FeaturePCA
        Of its features.
    head : StudentHead
        From principal components to expression scores.
    basis : GeneBasis
        From expression scores to genes.
    genes : tuple of str
        All that the teacher's bank measured.
    scaling : Scaling
        How measured values became expression.
    lineage : Lineage
        Its teacher, and what both have seen.
    calibration : Calibration or None
        Of its teacher. Not part of the fingerprint.
    report : dict
        Report of its accuracy and speed, plain values. Not part of the fingerprint.

    Raises
    ------
    ShapeMismatch

    Examples
    --------
    >>> import numpy as np
    >>> import cmrcnet as cn
    >>> from cmrcnet.genes.scaling import Scaling
    >>> from cmrcnet.heads.gene_decoder import GeneBasis
    >>> from cmrcnet.heads.pca import FeaturePCA
    >>> from cmrcnet.models.student import Lineage, StudentHead
    >>> encoder = cn.create_image_encoder("timm:test_vit", weights="random")
    >>> pca = FeaturePCA(np.zeros(64, np.float32), np.eye(64, 4, dtype=np.float32))
    >>> basis = GeneBasis(np.ones(3, np.float32), np.eye(2, 3, dtype=np.float32))
    >>> lineage = Lineage("model", "bank", ("A1",), ("A",), ("A1",), ("A",))
    >>> head, genes = StudentHead(4, 2, 8), ("EPCAM", "PTPRC", "VIM")
    >>> student = cn.Student(encoder, cn.Config.load("tiny"), pca, head, basis, genes, Scaling(), lineage)
    >>> student.predict(np.zeros((5, 64), np.float32), np.array([0, 2])).shape
    (5, 2)
    """

    encoder: ImageEncoder
    config: Config
    pca: FeaturePCA
    head: StudentHead
    basis: GeneBasis
    genes: tuple[str, ...]
    scaling: Scaling
    lineage: Lineage
    calibration: Calibration | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "genes", tuple(self.genes))
        wanted = (self.head.linear.out_features, len(self.genes))
        if self.basis.directions.shape != wanted:
            raise ShapeMismatch("the gene basis of the student", want=wanted, got=self.basis.directions.shape)
        if self.pca.directions.shape[1] != self.head.linear.in_features:
            got = self.pca.directions.shape[1]
            raise ShapeMismatch("the features of the student's head", want=self.head.linear.in_features, got=got)
        self.encoder.eval()
        self.head.eval()

    @cached_property
    def fingerprint(self) -> str:
        """Name of everything that its predictions depend on."""
        config = self.config.to_dict()
        facts = {
            "format": FORMAT,
            "features": {**config["features"], "engine": ""},
            "patch": config["patch"],
            "genes": list(self.genes),
            "scaling": self.scaling.to_dict(),
            "encoder": self.encoder.fingerprint(),
        }
        weights = ((name, value.numpy()) for name, value in self._tensors().items())
        return fingerprint_stream([facts, *(part for pair in weights for part in pair)])

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Expression scores of some locations: (locations, rank) float32.

        Parameters
        ----------
        features : array, shape (locations, width)
            The tokens of its scales concatenated, or the mean token of a plain patch.
        """
        return self.head.scores(self.pca.apply(features))

    def predict(self, features: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Expression of some genes at some locations: (locations, columns) float32.

        Parameters
        ----------
        features : array, shape (locations, width)
            As in `scores`.
        columns : array of int
            Of `genes`.
        """
        return self.basis.expression(self.scores(features), columns, self.scaling.limits)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the student's folder, whole or not at all; parameters and errors as `TrainedModel.save_pretrained`."""
        encoder = encoder_facts(self.encoder, self.config.model.train_encoder)
        weights = self._tensors()
        if encoder["stored"]:
            weights |= module_tensors("encoder", self.encoder.backbone)
        facts = {
            "format": FORMAT,
            "kind": "cmrcnet student",
            "fingerprint": self.fingerprint,
            "report": self.report,
            "lineage": dataclasses.asdict(self.lineage),
            "config": self.config.to_dict(),
            "scaling": self.scaling.to_dict(),
            "shape": [self.head.linear.in_features, self.head.linear.out_features, self.head.residual[0].out_features],
            "encoder": encoder,
            "genes": list(self.genes),
        }
        limits = {} if self.calibration is None else arrays_to_tensors(self.calibration.arrays())
        write_artefact(Path(folder), FILE, facts, {"weights": weights, "calibration": limits}, overwrite)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, encoder: ImageEncoder | None = None
    ) -> Student:
        """Load a student from a folder or from the model hub, and check all of it.

        Parameters and errors as `TrainedModel.from_pretrained`.
        """
        stored = read_artefact(source, FILE, "The student", "distil", FORMAT, revision)
        facts, tensors, limits = stored.facts, stored.tensors("weights"), stored.tensors("calibration")
        with stored.restoring():
            encoder = rebuild_encoder(facts["encoder"], arrays_under("encoder", tensors), stored.folder, encoder)
            head = StudentHead(*facts["shape"])
            head.load_state_dict(arrays_under("head", tensors), strict=True)
            arrays = tensors_to_arrays(tensors)
            student = cls(
                encoder,
                Config.from_dict(facts["config"], where=f"{stored.folder}/{FILE}"),
                FeaturePCA(arrays["pca.mean"], arrays["pca.directions"]),
                head,
                GeneBasis(arrays["basis.level"], arrays["basis.directions"]),
                tuple(facts["genes"]),
                Scaling.from_dict(facts["scaling"]),
                Lineage.from_dict(facts["lineage"]),
                Calibration.restore(tensors_to_arrays(limits)) if limits else None,
                facts["report"],
            )
        if student.fingerprint != facts["fingerprint"]:
            raise stored.damaged(f"{FILE} does not belong to these weights")
        return student

    def _tensors(self) -> dict[str, torch.Tensor]:
        """What was fitted, by name in order."""
        arrays = {
            "pca.mean": self.pca.mean,
            "pca.directions": self.pca.directions,
            "basis.level": self.basis.level,
            "basis.directions": self.basis.directions,
        }
        return module_tensors("head", self.head) | arrays_to_tensors(arrays)
