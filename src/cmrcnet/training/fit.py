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
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from lightning_fabric import Fabric

from cmrcnet.config import Config
from cmrcnet.errors import CmrcnetWarning, TooFew
from cmrcnet.features.device import choose_device, choose_precision
from cmrcnet.features.engine import choose_engine
from cmrcnet.features.spec import FeatureSpec, state_method
from cmrcnet.genes.gene_sets import GenePanel
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.models.trained_model import Provenance, TrainedModel
from cmrcnet.slides.section import Cohort
from cmrcnet.storage.cache import TokenCache
from cmrcnet.storage.hashing import fingerprint
from cmrcnet.training.calibrate import fit_calibration
from cmrcnet.training.checkpoint import Checkpoints
from cmrcnet.training.data import TrainingData
from cmrcnet.training.heads import fit_head
from cmrcnet.training.loop import CrossSearch, History, TrainContext, cross_search, train_phase
from cmrcnet.training.module import TrainingModule
from cmrcnet.training.validation import CollapseReading, ValidationSplit, Validator, validation_splits

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

log = logging.getLogger("cmrcnet")

_FABRIC_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "float32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


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

    Returns
    -------
    TrainedModel
        On the device that it was trained on. Its provenance holds the history, one entry an epoch.

    Raises
    ------
    TooFew
        No section, or fewer than two spots to train on.
    Incompatible
        The state is damaged, or was started with another config, panel, encoder or cohort.
    Diverged, NoSpace, Unwritable

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
    encoder = new_encoder(config)
    config = state_method(config, encoder)
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
        if config.train.augment and not config.features.scales_um:  # pooled scales have no grid of tokens
            prefix = 0 if trained else encoder.config.class_tokens
        context = TrainContext(
            config=config,
            data=data,
            fabric=Fabric(
                accelerator=device.type,
                devices=[device.index or 0] if device.type == "cuda" else 1,
                precision=_FABRIC_PRECISION[precision],
                loggers=logger,
            ),
            encoder=(lambda: copy.deepcopy(encoder)) if trained else (lambda: encoder),
            prefix=prefix,
            checkpoints=checkpoints,
            identity={
                "config": fingerprint(config.to_dict()),
                "panel": fingerprint(panel.to_dict()),
                "cohort": data.fingerprint(),
                "encoder": encoder.fingerprint(),
                "engine of its features": made_by,
            },
        )
        module, history, epoch, search = _search_and_refit(context, splits, resume)
        head, predictions = (None, None) if data.components is None else fit_head(data, config, search)
        limits = fit_calibration(data, config, head, predictions) if calibrate else None
    provenance = Provenance(
        sections=cohort.sections,
        patients=cohort.patients,
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
    )


def _search_and_refit(
    context: TrainContext, splits: tuple[ValidationSplit, ...], resume: bool
) -> tuple[TrainingModule, History, int, CrossSearch | None]:
    """Both phases: the module that is kept, the history, the epochs behind its weights, and the search over groups."""
    config, data, fabric = context.config.train, context.data, context.fabric
    nothing = ValidationSplit.nothing(len(data))
    each = bool(splits) and config.validation == "each"
    validation = splits[0] if splits and not each else nothing
    state = context.checkpoints.load(context.identity) if resume and context.checkpoints is not None else None
    history = History(config.select_by)
    if state is not None:
        history = History(**state.facts["history"])
        fabric.strategy.precision.load_state_dict(state.facts["precision"])
        log.info("Continuing after epoch %d of the %s phase.", state.epoch, state.phase)

    search, module = None, None
    refit = each or (config.refit and bool(validation))
    if each:  # repeated after an interruption: its rows are in the history already
        search = cross_search(context, splits, history if state is None else History(config.select_by))
        history.best_epoch = search.epoch
    elif state is None or state.phase == "search":
        module = train_phase(
            context,
            "search",
            validation.rest,
            config.epochs,
            history,
            validator=Validator(data, validation, context.config, fabric),
            validate_every=config.validate_every,
            choose=bool(validation),
            keep_best=bool(validation) and not refit,
            resumed=state,
        )
    epoch = history.best_epoch or config.epochs
    if validation and history.best_epoch is None:
        warnings.warn(
            f"No epoch could be chosen: the score on the validation {validation.name} was never defined (constant "
            "expression or predictions). The last epoch is kept.",
            CmrcnetWarning,
            stacklevel=3,
        )
    if refit:
        log.info("Training again on all %d spots for the chosen %d epochs.", len(data), epoch)
        module = train_phase(
            context,
            "refit",
            np.arange(len(data)),
            epoch,
            history,
            validator=Validator(data, nothing, context.config, fabric),
            validate_every=epoch,
            resumed=state if state is not None and state.phase == "refit" else None,
        )
    assert module is not None
    return module, history, epoch, search


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
