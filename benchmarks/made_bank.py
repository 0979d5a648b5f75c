"""A model that was never trained and a bank of random numbers: for measuring time and memory, they do."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse

from cmrcnet.config import Config
from cmrcnet.genes.gene_sets import GenePanel
from cmrcnet.models.cmrcnet import CMRCNet
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.trained_model import Provenance, TrainedModel
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.retrieval.store import BankSection

PANEL, SHARE = 200, 0.1
"""Genes of the panel; share of expression values that are not 0."""


def made_model(config: Config, genes: int) -> TrainedModel:
    """The config's network as it is drawn.

    Parameters
    ----------
    config : Config
    genes : int
        Of the bank; the first 200 are the panel.
    """
    encoder = create_image_encoder(config.model.encoder, weights=config.model.weights, blocks=config.model.blocks)
    network = CMRCNet(config.model, n_genes=PANEL, token_dim=encoder.dim, n_tokens=encoder.n_tokens)
    panel = GenePanel(gene_names(genes)[:PANEL], 10_000.0)
    return TrainedModel(network, encoder, panel, config, Provenance(("S",), ("P",)))


def made_bank(model: TrainedModel, spots: int, genes: int, seed: int = 0) -> ReferenceBank:
    """Random vectors of unit length, and random expression of which nine values in ten are 0.

    Parameters
    ----------
    model : TrainedModel
    spots, genes : int
    seed : int
    """
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(spots, model.config.model.embedding_dim)).astype(np.float32)
    each = round(spots * SHARE)
    indices = np.concatenate([np.sort(rng.choice(spots, each, replace=False)) for _ in range(genes)]).astype(np.int32)
    values = rng.random(len(indices), np.float32) + np.float32(0.5)
    expression = sparse.csc_matrix((values, indices, np.arange(genes + 1, dtype=np.int64) * each), (spots, genes))
    table = pd.DataFrame({"barcode": np.arange(spots).astype(str), "x": 0.0, "y": 0.0})
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    part = BankSection("S", "P", table, vectors, expression, gene_names(genes), True)
    return ReferenceBank((part,), model.fingerprint)


def gene_names(count: int) -> tuple[str, ...]:
    """Names of so many genes."""
    return tuple(f"GENE{number}" for number in range(count))
