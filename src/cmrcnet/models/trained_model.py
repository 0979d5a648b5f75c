"""A trained model: embeds patches and expression, and is saved to a folder and loaded from one.

Folder format 7: ``model.json`` (config, panel, provenance, encoder, fingerprints) beside ``weights.safetensors`` and,
where the training fitted it, ``calibration.safetensors``. The encoder's weights are stored only where they cannot be
found again (`encoders.encoder_facts`). The file is one thing: what `save_pretrained` writes, `from_pretrained` checks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize

from cmrcnet.config import Config
from cmrcnet.errors import ShapeMismatch
from cmrcnet.genes.components import ExpressionComponents
from cmrcnet.genes.gene_sets import GenePanel
from cmrcnet.heads.head import Head
from cmrcnet.models.artefact import (
    arrays_to_tensors,
    module_tensors,
    read_artefact,
    tensors_to_arrays,
    write_artefact,
)
from cmrcnet.models.cmrcnet import CMRCNet
from cmrcnet.models.encoders import encoder_facts, rebuild_encoder
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.storage.arrays import arrays_under
from cmrcnet.storage.hashing import fingerprint_stream
from cmrcnet.uncertainty.calibration import Calibration

FILE = "model.json"
FORMAT = 7
EMBEDDING_FORMAT = 4
"""Part of the fingerprint: counts up when the same weights would embed otherwise."""
_PATCHES_AT_A_TIME = 256
_SPOTS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Provenance:
    """Sections and patients that a model has seen, so that an evaluation can refuse it, and how its training went.

    Plain values that JSON can write; lists become tuples.
    """

    sections: Sequence[str]
    """Every one that took part: trained on, used to choose the epoch, or used to choose the panel."""
    patients: Sequence[str]
    """As `sections`."""
    seed: int = 0
    version: str = ""
    """Of cmrcnet."""
    history: Sequence[dict[str, Any]] = ()
    """One entry an epoch: losses and validation scores by name."""
    chosen_epoch: int | None = None
    """Epochs behind the weights that were kept."""
    notes: Sequence[str] = ()
    """Warnings for the reader: leakage, collapse."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Anything else worth storing."""

    def __post_init__(self) -> None:
        for name in ("sections", "patients", "history", "notes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a number that JSON does not know (nan, inf) becomes None."""
        return {each.name: _plain(getattr(self, each.name)) for each in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()  # a NumPy or torch scalar
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network together with everything that its numbers depend on. It is put into evaluation mode.

    Parameters
    ----------
    network : CMRCNet
        With its trained weights.
    encoder : ImageEncoder
        Of its tokens.
    panel : GenePanel
        Its genes, in its order.
    config : Config
        Of its training.
    provenance : Provenance
        Sections and patients that it has seen.
    components : ExpressionComponents or None
        Of the panel's expression, where the config works on them; the network's genes are then their first scores.
    head : Head or None
        Together with `components`.
    calibration : Calibration or None
        What it knows of its limits. No part of the fingerprint: embeddings do not depend on it.

    Examples
    --------
    >>> import tempfile
    >>> import cmrcnet as cn
    >>> from cmrcnet.models.cmrcnet import CMRCNet
    >>> from cmrcnet.models.trained_model import Provenance
    >>> config = cn.Config.load("tiny").override({"model.encoder": "timm:test_vit", "model.blocks": []})
    >>> encoder = cn.create_image_encoder("timm:test_vit", weights="random")
    >>> network = CMRCNet(config.model, n_genes=2, token_dim=encoder.dim)
    >>> panel, provenance = cn.GenePanel(("EPCAM", "PTPRC")), Provenance(("A1",), ("A",))
    >>> model = cn.TrainedModel(network, encoder, panel, config, provenance)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_pretrained(f"{folder}/model")
    ...     again = cn.TrainedModel.from_pretrained(f"{folder}/model")
    >>> again.fingerprint == model.fingerprint
    True
    """

    network: CMRCNet
    encoder: ImageEncoder
    panel: GenePanel
    config: Config
    provenance: Provenance
    components: ExpressionComponents | None = None
    head: Head | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        genes = len(self.panel.genes)
        if self.components is not None:
            genes = min(self.config.target.gene_rank, self.components.rank)
        if self.network.n_genes != genes:
            raise ShapeMismatch("the panel of the network", want=self.network.n_genes, got=genes)
        if self.network.token_dim != self.encoder.dim:
            raise ShapeMismatch("a token of the network", want=self.network.token_dim, got=self.encoder.dim)
        self.network.eval()
        self.encoder.eval()

    @cached_property
    def fingerprint(self) -> str:
        """Name of everything that its embeddings depend on: weights, encoder, panel, scale and settings."""
        facts = {
            "format": EMBEDDING_FORMAT,
            "model": self.config.to_dict()["model"] | {"weights": ""},  # a path; the encoder's fingerprint counts
            "patch": self.config.to_dict()["patch"],
            "features": self.config.to_dict()["features"] | {"engine": ""},  # it changes nothing but rounding
            "genes": list(self.panel.genes),
            "scaling": self.panel.scaling.to_dict(),
            "encoder": self.encoder.fingerprint(),
        }
        stored = {**module_tensors("network", self.network), **self._extras()}
        if self.head is not None:
            facts |= {"target": self.config.to_dict()["target"], "head": self.head.facts()}
        weights = ((name, value.numpy()) for name, value in stored.items())
        return fingerprint_stream([facts, *(part for pair in weights for part in pair)])

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.network.image_head.project.weight.device

    def to(self, device: torch.device | str) -> TrainedModel:
        """Move network and encoder, and return the same model."""
        self.network.to(device)
        self.encoder.to(device)
        return self

    def embed_tokens(self, tokens: np.ndarray | Tensor) -> np.ndarray:
        """Embed patches by the tokens that this model's encoder made of them.

        Parameters
        ----------
        tokens : array or tensor, shape (patches, tokens, dim)
            May be memory-mapped, and of half precision; read a few hundred at a time.

        Returns
        -------
        numpy.ndarray, shape (patches, embedding), float32
            Of unit length.
        """
        if tokens.ndim != 3 or tokens.shape[2] != self.network.token_dim:
            raise ShapeMismatch("tokens", want=("patches", "tokens", self.network.token_dim), got=tuple(tokens.shape))
        return self._embed(tokens, _PATCHES_AT_A_TIME, self.network.embed_images)

    def embed_section(self, expression: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray | None]:
        """Embed the measured spots of ONE whole section.

        Parameters
        ----------
        expression : scipy.sparse.csr_matrix, shape (spots, genes of the panel)
            What `panel.select` gives of the section. Scores are centred within it, so all its spots are needed.

        Returns
        -------
        vectors : numpy.ndarray, shape (spots, embedding), float32
            Of unit length.
        scores : numpy.ndarray, shape (spots, rank), float32, or None
            Expression scores, where the config works on components.
        """
        if self.components is None:
            return self.embed_expression(expression), None
        scores = self.components.scores(expression)
        return self.embed_expression(scores[:, : self.network.n_genes]), scores

    def embed_expression(self, expression: np.ndarray | sparse.sparray | sparse.spmatrix) -> np.ndarray:
        """Embed spots by their expression.

        Parameters
        ----------
        expression : array or sparse matrix, shape (spots, genes of the panel)
            Log-normalised, genes in the panel's order: what `GenePanel.select` gives; or the first expression scores,
            where the config works on components (see `embed_section`).

        Returns
        -------
        numpy.ndarray, shape (spots, embedding), float32
            Of unit length.
        """
        rows = sparse.csr_matrix(expression) if sparse.issparse(expression) else np.asarray(expression)
        shape = tuple(rows.shape or ())
        if len(shape) != 2 or shape[1] != self.network.n_genes:
            raise ShapeMismatch("expression", want=("spots", self.network.n_genes), got=shape)
        return self._embed(rows, _SPOTS_AT_A_TIME, self.network.embed_genes)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the model folder, whole or not at all.

        Parameters
        ----------
        folder : path
            A repository made of it can be loaded from the model hub. Where the name ends in .zip: one file, to be
            mailed.
        overwrite : bool
            Replace an existing folder, if cmrcnet wrote it.

        Raises
        ------
        OutputExists, NoSpace, Unwritable
        """
        encoder = encoder_facts(self.encoder, self.config.model.train_encoder)
        weights = module_tensors("network", self.network) | self._extras()
        if encoder["stored"]:
            weights |= module_tensors("encoder", self.encoder.backbone)
        facts = {
            "format": FORMAT,
            "kind": "cmrcnet model",
            "fingerprint": self.fingerprint,
            "config": self.config.to_dict(),
            "panel": self.panel.to_dict(),
            "token_dim": self.network.token_dim,
            "n_tokens": self.network.n_tokens,
            "head": None if self.head is None else self.head.facts(),
            "encoder": encoder,
            "provenance": self.provenance.to_dict(),
        }
        limits = {} if self.calibration is None else arrays_to_tensors(self.calibration.arrays())
        write_artefact(Path(folder), FILE, facts, {"weights": weights, "calibration": limits}, overwrite)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, encoder: ImageEncoder | None = None
    ) -> TrainedModel:
        """Load a model from a folder or from the model hub, and check all of it.

        Parameters
        ----------
        source : path or "hf-hub:ORG/NAME"
            A folder or .zip that `save_pretrained` wrote, or a repository on the model hub with the same files.
        revision : str, optional
            Branch, tag or commit of a repository on the hub.
        encoder : ImageEncoder, optional
            The frozen encoder, where it cannot be built again from its name: one of your own, or one whose weights
            file has moved. It must have the fingerprint of the one that the model was trained with.

        Raises
        ------
        MissingInput
            There is no model.
        Incompatible
            It has another format, or was trained with another encoder.
        Damaged, BadInput
            Something in the folder is missing or was changed, or the frozen encoder's weights are not at hand.
        MissingExtra, DownloadFailed
            It could not be fetched from the hub.
        """
        stored = read_artefact(source, FILE, "The model", "train", FORMAT, revision)
        facts, tensors, limits = stored.facts, stored.tensors("weights"), stored.tensors("calibration")
        with stored.restoring():
            config = Config.from_dict(facts["config"], where=f"{stored.folder}/{FILE}")
            panel = GenePanel.from_dict(facts["panel"])
            encoder = rebuild_encoder(facts["encoder"], arrays_under("encoder", tensors), stored.folder, encoder)
            components = head = None
            n_genes = len(panel.genes)
            if facts["head"] is not None:
                arrays = tensors_to_arrays(arrays_under("head", tensors))
                components = ExpressionComponents(arrays["components"])
                head = Head.restore(arrays, facts["head"])
                n_genes = min(config.target.gene_rank, components.rank)
            shape = {"token_dim": facts["token_dim"], "n_tokens": facts["n_tokens"]}
            network = CMRCNet(config.model, n_genes=n_genes, **shape)
            network.load_state_dict(arrays_under("network", tensors), strict=True)
            calibration = Calibration.restore(tensors_to_arrays(limits)) if limits else None
            provenance = Provenance(**facts["provenance"])
            model = cls(network, encoder, panel, config, provenance, components, head, calibration)
        if model.fingerprint != facts["fingerprint"]:
            raise stored.damaged(f"{FILE} does not belong to these weights")
        return model

    def _extras(self) -> dict[str, Tensor]:
        """Components and head as tensors, by name."""
        if self.components is None or self.head is None:
            return {}
        arrays = {"components": self.components.directions, **self.head.arrays()}
        return {f"head.{name}": value for name, value in arrays_to_tensors(arrays).items()}

    def _embed(self, rows: Any, at_a_time: int, embed: Callable[[Tensor], Tensor]) -> np.ndarray:
        length = self.config.model.embedding_dim
        found = np.empty((rows.shape[0], length), np.float32)
        with torch.inference_mode():
            for start in range(0, rows.shape[0], at_a_time):
                part = rows[start : start + at_a_time]
                if sparse.issparse(part):
                    part = part.toarray()
                if not isinstance(part, Tensor):
                    part = torch.from_numpy(np.array(part, dtype=np.float32))
                part = part.to(self.device, torch.float32)
                found[start : start + at_a_time] = normalize(embed(part), dim=1).float().cpu().numpy()
        return found
