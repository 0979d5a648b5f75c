"""A distilled student: what it looks with, a small head, and the genes. It predicts without a bank and without search.

Folder format 1: ``student.json`` (how it looks, genes, whom it was taught by, the card, fingerprints),
``weights.safetensors`` (head, reduction, gene basis; the encoder where `kept_encoder` says so), and where its teacher
had it ``trust.safetensors``: the teacher's alarm and gene cards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cmrcnet.config import Config
from cmrcnet.errors import CmrcnetError, ShapeMismatch
from cmrcnet.heads.gene_decoder import GeneBasis
from cmrcnet.heads.pca import FeaturePCA
from cmrcnet.models.artefact_folder import (
    as_tensors,
    changed,
    read_facts,
    read_tensors,
    tensors_of,
    under,
    write_artefact,
)
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.models.rebuild_encoder import encoder_facts, kept_weights, rebuild_encoder, require_encoder
from cmrcnet.models.student_head import StudentHead
from cmrcnet.storage.hashing import fingerprint, fingerprint_stream
from cmrcnet.uncertainty.calibration import Trust

FILE = "student.json"
FORMAT = 1
_LOCATIONS_PERT_A_TIME = 1024


@dataclass(frozen=True)
class Lineage:
    """Whom a student was taught by, and on what.

    Parameters
    ----------
    model_fingerprint, bank_fingerprint : str
        Of its teacher.
    bank_sections, bank_patients : tuple of str
        That the bank held.
    sections, patients : tuple of str
        That the model or the bank has seen: the student remembers them, whoever is dropped from the bank later.
    slides : tuple of str
        Fingerprints of the slides that it learnt on.
    facts : dict
        Head, k, grid and seed, plain values.
    """

    model_fingerprint: str
    bank_fingerprint: str
    bank_sections: tuple[str, ...]
    bank_patients: tuple[str, ...]
    sections: tuple[str, ...]
    patients: tuple[str, ...]
    slides: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Lineage:
        """The opposite of `dataclasses.asdict`, after a journey through JSON."""
        return cls(**{name: tuple(each) if isinstance(each, list) else each for name, each in values.items()})


@dataclass(frozen=True, eq=False)
class Student:
    """Everything that its predictions depend on, and its card. It is put into evaluation mode.

    Parameters
    ----------
    encoder : ImageEncoder
        What it looks with, frozen.
    config : Config
        How it looks: `features`, `patch`, and device and precision of `train`. The rest is its teacher's.
    reduction : FeaturePCA
        Of its features.
    head : StudentHead
    basis : GeneBasis
    genes : tuple of str
        All that the teacher's bank measured.
    target_sum : float or "median"
        Library size before log1p.
    lineage : Lineage
    trust : Trust or None
        What its teacher knew of its limits. No part of the fingerprint.
    card : dict
        What was measured of it, plain values. No part of the fingerprint.

    Raises
    ------
    ShapeMismatch
    """

    encoder: ImageEncoder
    config: Config
    reduction: FeaturePCA
    head: StudentHead
    basis: GeneBasis
    genes: tuple[str, ...]
    target_sum: float | Literal["median"]
    lineage: Lineage
    trust: Trust | None = None
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "genes", tuple(self.genes))
        wanted = (self.head.line.out_features, len(self.genes))
        if self.basis.directions.shape != wanted:
            raise ShapeMismatch("the gene basis of the student", want=wanted, got=self.basis.directions.shape)
        if self.reduction.directions.shape[1] != self.head.line.in_features:
            got = self.reduction.directions.shape[1]
            raise ShapeMismatch("the features of the student's head", want=self.head.line.in_features, got=got)
        self.encoder.eval()
        self.head.eval()

    @cached_property
    def fingerprint(self) -> str:
        """Name of everything that its predictions depend on."""
        config = self.config.to_dict()
        facts = {
            "format": FORMAT,
            "features": config["features"],
            "patch": config["patch"],
            "genes": list(self.genes),
            "target_sum": self.target_sum,
            "encoder": self.encoder.fingerprint(),
        }
        weights = ((name, value.numpy()) for name, value in self._tensors().items())
        return fingerprint_stream([facts, *(part for pair in weights for part in pair)])

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Expression scores of some locations: (locations, rank) float32.

        Parameters
        ----------
        features : array, shape (locations, width)
            What its sight gives: the tokens of its views side by side, or the mean token of a plain patch.

        Raises
        ------
        ShapeMismatch
        """
        reduced = torch.from_numpy(self.reduction.apply(features))
        found = np.empty((len(reduced), self.head.line.out_features), np.float32)
        with torch.inference_mode():
            for start in range(0, len(reduced), _LOCATIONS_PERT_A_TIME):
                part = slice(start, start + _LOCATIONS_PERT_A_TIME)
                found[part] = self.head(reduced[part]).numpy()
        return found

    def predict(self, features: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Expression of some genes at some locations: (locations, columns) float32, never below 0.

        Parameters
        ----------
        features : array, shape (locations, width)
            As in `scores`.
        columns : array of int
            Of `genes`.
        """
        return self.basis.expression(self.scores(features), columns)

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the student's folder, whole or not at all.

        Parameters
        ----------
        folder : path
        overwrite : bool
            Replace what is there, if it is one of ours.

        Raises
        ------
        OutputExists, NoSpace, Unwritable
        """
        from safetensors.torch import save

        encoder = encoder_facts(self.encoder, self.config.model.train_encoder)
        weights = save(self._tensors() | kept_weights(self.encoder, encoder))
        facts = {
            "format": FORMAT,
            "kind": "cmrcnet student",
            "fingerprint": self.fingerprint,
            "card": self.card,
            "lineage": dataclasses.asdict(self.lineage),
            "config": self.config.to_dict(),
            "target_sum": self.target_sum,
            "shape": [self.head.line.in_features, self.head.line.out_features, self.head.bend[0].out_features],
            "encoder": encoder,
            "genes": list(self.genes),
        }
        limits = None if self.trust is None else save(as_tensors(self.trust.arrays()))
        write_artefact(Path(folder), FILE, facts, {"weights": weights, "trust": limits}, overwrite)

    @classmethod
    def load(cls, folder: str | Path, encoder: ImageEncoder | None = None) -> Student:
        """Read a student's folder and check all of it.

        Parameters
        ----------
        folder : path
        encoder : ImageEncoder, optional
            The frozen encoder, where it cannot be built again from its name.

        Raises
        ------
        MissingInput, Damaged
            If there is no student, or one of a newer format, or `student.json` was changed.
        WeightsError
            If the weights are truncated or changed.
        WeightsError
            If the frozen encoder's weights are not at hand.
        """
        folder = Path(folder)
        facts = read_facts(folder / FILE, "The student", "distil", FORMAT)
        said = {key: value for key, value in facts.items() if key != "check"}
        if fingerprint(said) != facts.get("check"):
            raise changed(folder, f"{FILE} was changed")
        tensors = read_tensors(folder / "weights.safetensors", facts, "weights", FILE)
        limits = read_tensors(folder / "trust.safetensors", facts, "trust", FILE) if "trust" in facts else None
        try:
            encoder = encoder or rebuild_encoder(facts["encoder"], tensors, folder)
            require_encoder(encoder, facts["encoder"], folder)
            head = StudentHead(*facts["shape"])
            head.load_state_dict(under(tensors, "head"), strict=True)
            arrays = {name: value.numpy() for name, value in tensors.items()}
            student = cls(
                encoder,
                Config.from_dict(facts["config"], where=f"{folder}/{FILE}"),
                FeaturePCA(arrays["reduction.mean"], arrays["reduction.directions"]),
                head,
                GeneBasis(arrays["basis.level"], arrays["basis.directions"]),
                tuple(facts["genes"]),
                facts["target_sum"],
                Lineage.from_dict(facts["lineage"]),
                None if limits is None else Trust.restore({name: value.numpy() for name, value in limits.items()}),
                facts["card"],
            )
        except (KeyError, TypeError, RuntimeError) as error:
            if isinstance(error, CmrcnetError):
                raise
            raise changed(folder, str(error).splitlines()[0]) from error
        if student.fingerprint != facts["fingerprint"]:
            raise changed(folder, f"{FILE} does not belong to these weights")
        return student

    def _tensors(self) -> dict[str, torch.Tensor]:
        """What was learnt, by name in order."""
        arrays = {
            "reduction.mean": self.reduction.mean,
            "reduction.directions": self.reduction.directions,
            "basis.level": self.basis.level,
            "basis.directions": self.basis.directions,
        }
        return tensors_of("head", self.head) | as_tensors(arrays)
