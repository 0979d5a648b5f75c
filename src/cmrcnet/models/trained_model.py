"""A trained model: one self-sufficient thing that embeds patches and expression, and that can be saved and loaded.

Folder format 2: ``model.json`` (config, panel, provenance, encoder, fingerprints) beside ``weights.safetensors`` and,
where the training learnt it, ``trust.safetensors`` (what the model knows of its limits; format 1 had none).
Its encoder is named or kept as `kept_encoder` says. The file is one thing: what `save` writes `load` must read back and
check, line by line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize

from cmrcnet.config import Config
from cmrcnet.errors import CmrcnetError, ShapeMismatch
from cmrcnet.genes.components import ExpressionComponents
from cmrcnet.genes.gene_sets import GenePanel
from cmrcnet.heads.head import Head
from cmrcnet.models.artefact_folder import (
    as_tensors,
    changed,
    read_facts,
    read_tensors,
    tensors_of,
    under,
    write_artefact,
)
from cmrcnet.models.cmrcnet import CMRCNet
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.models.provenance import Provenance
from cmrcnet.models.rebuild_encoder import encoder_facts, kept_weights, rebuild_encoder, require_encoder
from cmrcnet.slides.slide import PatchScale
from cmrcnet.storage.hashing import fingerprint, fingerprint_stream
from cmrcnet.uncertainty.calibration import Trust

FILE = "model.json"
FORMAT = 2
EMBEDDING_FORMAT = 1
"""Goes into the fingerprint: counts up when the same weights would embed otherwise."""
_PATCHES_AT_A_TIME = 256
_SPOTS_AT_A_TIME = 1024

__all__ = ["FORMAT", "Provenance", "TrainedModel"]


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network together with everything that its numbers depend on. It is put into evaluation mode.

    Parameters
    ----------
    network : CMRCNet
    encoder : ImageEncoder
        What made its tokens.
    panel : GenePanel
        Its genes, in its order.
    config : Config
    provenance : Provenance
    components : ExpressionComponents or None
        Of the panel's expression, where the config works on them; the network's genes are then their first scores.
    head : Head or None
        Together with `components`.
    trust : Trust or None
        What it knows of its limits. No part of the fingerprint: embeddings do not depend on it.
    """

    network: CMRCNet
    encoder: ImageEncoder
    panel: GenePanel
    config: Config
    provenance: Provenance
    components: ExpressionComponents | None = None
    head: Head | None = None
    trust: Trust | None = None

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
            "genes": list(self.panel.genes),
            "target_sum": self.panel.target_sum,
            "encoder": self.encoder.fingerprint(),
        }
        stored = {**tensors_of("network", self.network), **self._extras()}
        if self.head is not None:
            facts |= {name: self.config.to_dict()[name] for name in ("features", "target")}
            facts["head"] = self.head.facts()
        weights = ((name, value.numpy()) for name, value in stored.items())
        return fingerprint_stream([facts, *(part for pair in weights for part in pair)])

    @property
    def scale(self) -> PatchScale:
        """How much tissue a patch shows."""
        return self.config.patch

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

        Raises
        ------
        ShapeMismatch
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

        Raises
        ------
        ShapeMismatch
        """
        if expression.ndim != 2 or expression.shape[1] != self.network.n_genes:
            raise ShapeMismatch("expression", want=("spots", self.network.n_genes), got=tuple(expression.shape))
        if sparse.issparse(expression):
            expression = sparse.csr_matrix(expression)
        return self._embed(expression, _SPOTS_AT_A_TIME, self.network.embed_genes)

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the model folder, whole or not at all.

        Raises
        ------
        OutputExists, NoSpace, Unwritable
        """
        from safetensors.torch import save

        encoder = encoder_facts(self.encoder, self.config.model.train_encoder)
        tensors = {**tensors_of("network", self.network), **self._extras()} | kept_weights(self.encoder, encoder)
        weights = save(tensors)
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
        limits = None if self.trust is None else save(as_tensors(self.trust.arrays()))
        write_artefact(Path(folder), FILE, facts, {"weights": weights, "trust": limits}, overwrite)

    @classmethod
    def load(cls, folder: str | Path, encoder: ImageEncoder | None = None) -> TrainedModel:
        """Read a model folder and check all of it.

        Parameters
        ----------
        folder : path
        encoder : ImageEncoder, optional
            The frozen encoder, where it cannot be built again from its name: one of your own, or one whose weights
            file has moved. It must bear the fingerprint of the one that the model was trained with.

        Raises
        ------
        MissingInput, Damaged
            If there is no model, or one of a newer format, or `model.json` was changed.
        WeightsError
            If the weights are truncated or changed.
        WeightsError
            If the frozen encoder's weights are not at hand.
        """
        folder = Path(folder)
        facts = read_facts(folder / FILE, "The model", "train", FORMAT)
        tensors = read_tensors(folder / "weights.safetensors", facts, "weights", FILE)
        limits = read_tensors(folder / "trust.safetensors", facts, "trust", FILE) if facts.get("trust") else None
        try:
            config = Config.from_dict(facts["config"], where=f"{folder}/model.json")
            panel = GenePanel.from_dict(facts["panel"])
            provenance = Provenance.from_dict(facts["provenance"])
            encoder = encoder or rebuild_encoder(facts["encoder"], tensors, folder)
            require_encoder(encoder, facts["encoder"], folder)
            components = head = None
            n_genes = len(panel.genes)
            if facts.get("head") is not None:
                arrays = {name: value.numpy() for name, value in under(tensors, "head").items()}
                components = ExpressionComponents(arrays["components"])
                head = Head.restore(arrays, facts["head"])
                n_genes = min(config.target.gene_rank, components.rank)
            shape = {"token_dim": facts["token_dim"], "n_tokens": facts.get("n_tokens", 1)}
            network = CMRCNet(config.model, n_genes=n_genes, **shape)
            network.load_state_dict(under(tensors, "network"), strict=True)
            trust = None if limits is None else Trust.restore({name: value.numpy() for name, value in limits.items()})
        except (KeyError, TypeError, RuntimeError) as error:
            if isinstance(error, CmrcnetError):
                raise
            raise changed(folder, str(error).splitlines()[0]) from error
        model = cls(network, encoder, panel, config, provenance, components, head, trust)
        if model.fingerprint != facts["fingerprint"]:
            raise changed(folder, "model.json does not belong to these weights")
        said = {key: value for key, value in facts.items() if key != "check"}
        if fingerprint(said) != facts.get("check", fingerprint(said)):  # what it has seen in training counts, too
            raise changed(folder, "model.json was changed")
        return model

    def _extras(self) -> dict[str, Tensor]:
        """Components and head as tensors, by name."""
        if self.components is None or self.head is None:
            return {}
        arrays = {"components": self.components.directions, **self.head.arrays()}
        return {f"head.{name}": value for name, value in as_tensors(arrays).items()}

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
