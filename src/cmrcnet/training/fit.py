"""Train CMRCNet on the sections given, and on nothing else: the whole pipeline, top to bottom.

1. Collect: read each section once; choose panel, components and scored genes; extract tokens, standardised as the
   config says (`data`).
2. Train the network: with one validation split, or once without each group (`search`), the epoch whose retrieval is
   best is chosen; then, with `train.refit`, the network is trained again from the start on all sections for that many
   epochs (`loop`).
3. Fit the heads: ridge, kernel ridge and their ensemble with retrieval, chosen on validation groups (`heads`).
4. Calibrate: intervals, gene reliability and the out-of-distribution detector (`calibrate`).

An interrupted and resumed run ends with the same weights, bit for bit on a CPU (see `loop.train_phase`).
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch.nn.modules.batchnorm import _BatchNorm

from cmrcnet.config import Config
from cmrcnet.errors import BadOption, CmrcnetWarning, TooFew
from cmrcnet.features.device import choose_device, choose_precision
from cmrcnet.features.engine import choose_engine
from cmrcnet.features.spec import FeatureSpec, state_method
from cmrcnet.genes.gene_sets import GenePanel
from cmrcnet.models.artefact import LICENCE_COLUMN, join_licences
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.models.trained_model import Provenance, TrainedModel
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.cache import TokenCache
from cmrcnet.storage.hashing import fingerprint
from cmrcnet.training.calibrate import fit_calibration
from cmrcnet.training.checkpoint import Checkpoints
from cmrcnet.training.data import TrainingData
from cmrcnet.training.distributed import FABRIC_PRECISION, Ranks, require_devices
from cmrcnet.training.heads import fit_head
from cmrcnet.training.loop import History, TrainContext, search_and_refit
from cmrcnet.training.module import TrainingModule, new_network
from cmrcnet.training.validation import CollapseReading, ValidationSplit, validation_splits

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

log = logging.getLogger("cmrcnet")


def fit(
    cohort: Cohort,
    config: Config,
    *,
    panel: GenePanel | None = None,
    cache: TokenCache | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    logger: Logger | None = None,
    calibrate: bool = True,
    devices: int = 1,
) -> TrainedModel:
    """Train on a cohort of training sections.

    Parameters
    ----------
    cohort : Cohort
        Training sections only: everything is fitted and chosen on them. Each is read once.
    config : Config
        Every option; ``Config.load("default")`` is the shipped preset.
    panel : GenePanel, optional
        Genes of the gene encoder; chosen from `cohort` when left out.
    cache : TokenCache, optional
        Where tokens (patches, when the encoder is trained) are kept; a temporary folder when left out, so that
        memory does not grow with the number of slides either way.
    checkpoints : Checkpoints, optional
        Where the state of the training and `log.csv` are kept.
    resume : bool
        Continue from the state in `checkpoints`; start from the beginning when there is none.
    logger : lightning_fabric.loggers.Logger, optional
        Gets every epoch's numbers as well: ``TensorBoardLogger("runs")``.
    calibrate : bool
        Also calibrate: intervals, gene reliability and the out-of-distribution detector.
    devices : int
        GPUs of this machine to train on (CPU processes, where it has none), each on its part of every batch (see
        `distributed`). It pays for configs that train the encoder.

    Returns
    -------
    TrainedModel
        On the device that it was trained on. Its provenance holds the history, one entry an epoch.

    Raises
    ------
    BadOption
        More devices than there are, or than pairs in a batch; or several for an encoder with batch normalisation.
    TooFew
        No section, or fewer than two spots to train on.
    Incompatible
        The state is damaged, or was started with another config, panel, encoder or cohort.
    Diverged, NoSpace, Unwritable, WorkerDied

    Warns
    -----
    CmrcnetWarning
        The network is at chance (see `validation`); or there is one section, so that none can be left out.

    Examples
    --------
    >>> import cmrcnet
    >>> from cmrcnet.testing import quick_config
    >>> model = cmrcnet.fit(cmrcnet.synthetic_cohort(patients=2, spots=16, genes=24), quick_config())
    >>> model.provenance.patients, len(model.panel.genes)
    (('P1', 'P2'), 24)
    """
    device = choose_device(config.train.device)
    precision = choose_precision(config.train.precision, device)
    if type(devices) is not int or devices != 1:
        require_devices(devices, config.train.device, device)
    encoder = new_encoder(config)
    config = state_method(config, encoder)
    if devices > 1 and config.model.train_encoder and any(isinstance(m, _BatchNorm) for m in encoder.modules()):
        want = f"1 to train {config.model.encoder}: its batch normalisation needs the whole batch on one device"
        raise BadOption("devices", devices, want)
    temporary = tempfile.TemporaryDirectory(prefix="cmrcnet-", ignore_cleanup_errors=True) if cache is None else None
    with nullcontext("") if temporary is None else temporary as folder:
        store = TokenCache(Path(folder)) if cache is None else cache
        data = TrainingData.collect(cohort, config, encoder, store, panel=panel, limits=calibrate)
        panel = data.panel
        assert panel is not None
        splits = validation_splits(data, config)
        for split in splits or (ValidationSplit.nothing(len(data)),):
            if len(split.rest) < 2:
                raise TooFew("spots to train on", len(split.rest), 2, "add sections, or set train.validation to none")
        trained = config.model.train_encoder
        made_by = f"torch {precision} on {device.type}"
        if not trained:
            made_by = choose_engine(encoder, FeatureSpec.of(config, encoder), store).made_by
        prefix = None
        turned = config.model.trained_blocks is not None  # before they were encoded
        if config.train.augment and not config.features.scales_um and not turned:  # pooled scales have no grid
            prefix = 0 if trained else encoder.config.class_tokens
        shared: dict[str, Any] = {
            "config": config,
            "data": data,
            "prefix": prefix,
            "checkpoints": checkpoints,
            "identity": {
                "config": fingerprint(config.to_dict()),
                "panel": fingerprint(panel.to_dict()),
                "training data": data.fingerprint(),
                "encoder": encoder.fingerprint(),
                "engine of its features": made_by,
                "number of devices": str(devices),
            },
        }
        if devices == 1:
            fabric = Fabric(
                accelerator=device.type,
                devices=[device.index or 0] if device.type == "cuda" else 1,
                precision=FABRIC_PRECISION[precision],
                loggers=logger,
            )
            encoders = (lambda: copy.deepcopy(encoder)) if trained else (lambda: encoder)
            context = TrainContext(fabric=fabric, encoder=encoders, **shared)
            module, history, epoch, search = search_and_refit(context, splits, resume)
        else:
            ranks = Ranks(
                count=devices,
                device=device.type,
                precision=precision,
                splits=splits,
                make_encoder=new_encoder,
                resume=resume,
                logger=logger,
                level=log.getEffectiveLevel(),
                **shared,
            )
            weights, history, epoch, search = ranks.train()
            module = TrainingModule(new_network(config, data, encoder), encoder if trained else None)
            module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
            module.to(device)
        head, predictions = (None, None) if data.components is None else fit_head(data, config, search)
        limits = fit_calibration(data, config, head, predictions) if calibrate else None
    provenance = Provenance(
        sections=cohort.sections,
        patients=tuple(dict.fromkeys((*cohort.patients, *data.patients_within))),
        seed=config.train.seed,
        version=version("cmrcnet"),
        history=tuple(history.rows),
        chosen_epoch=epoch,
        notes=_notes(history, epoch, panel, cohort),
        facts={
            "validation": "nothing" if not splits else splits[0].name if search is None else "each group in turn",
            "head": {} if head is None else dict(head.record),
            "validation_score": history.best_score,
            "selected_by": history.select_by,
            "device": str(device),
            "precision": precision,
            "features_made_by": made_by,
            "torch": torch.__version__,
            "licences": {
                "encoder": encoder.licence,
                "slides of training": join_licences(entry.metadata.get(LICENCE_COLUMN, "") for entry in cohort.entries),
            },
        },
    )
    network, encoder = module.network, module.encoder or encoder
    return TrainedModel(network, encoder, panel, config, provenance, data.components, head, limits)


def new_encoder(config: Config) -> ImageEncoder:
    """The image encoder of a config, with the weights that training starts from."""
    model = config.model
    return create_image_encoder(
        model.encoder,
        weights=model.weights,
        blocks=model.blocks,
        depth=model.encoder_depth,
        heads=model.encoder_heads,
        seed=config.train.seed,
        patch_px=config.patch.size_px,
    )


def _notes(history: History, epoch: int, panel: GenePanel, cohort: Cohort) -> tuple[str, ...]:
    """What a user of the model must know: a network at chance (with a warning), and a panel that others chose."""
    notes = []
    for phase in ("search", "refit"):
        row = history.last_reading(phase, epoch)
        if row is not None and row["meter_at_chance"]:
            reading = {name.removeprefix("meter_"): value for name, value in row.items() if name.startswith("meter_")}
            notes.append(CollapseReading(**reading).sentence)
    if notes:
        # A warning alone: the command line prints it as a plain line, and a log line would repeat it.
        warnings.warn(
            f"This training found no signal. {notes[0]} See docs/concepts/collapse.md.", CmrcnetWarning, stacklevel=3
        )
    others = [name for name in panel.origin.get("sections", ()) if name not in cohort.sections]
    if others:
        notes.append(f"Sections that it was not trained on took part in choosing its genes: {', '.join(others)}.")
    return tuple(notes)
