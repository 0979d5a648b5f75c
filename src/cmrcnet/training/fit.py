"""Train CMRCNet on the sections given, and on nothing else.

The course of a training: some training sections are held in and the rest trained on; the epoch whose retrieval is best
on the validation ones is chosen; then, with `train.refit`, the network is trained again from the start on all sections
for that many epochs. Every epoch seeds its own generators from the config's seed, the phase and the epoch's number,
so that a run that was interrupted and resumed ends with the same weights, bit for bit on a CPU. The file is one thing:
the whole course, from sections to a model that can be stored.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric import Fabric

from cmrcnet.config import Config
from cmrcnet.errors import CmrcnetWarning, TooFew
from cmrcnet.features.device import Precision, choose_device, choose_precision
from cmrcnet.features.extract import FeatureSpec, cached_patches, extract
from cmrcnet.genes.components import ExpressionComponents, find_components
from cmrcnet.genes.gene_sets import GenePanel, choose_panel, gene_sets
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.models.trained_model import Provenance, TrainedModel
from cmrcnet.slides.section import Cohort, Section
from cmrcnet.storage.cache import TokenCache
from cmrcnet.storage.hashing import fingerprint
from cmrcnet.training.calibrate import fit_trust
from cmrcnet.training.checkpoint import Checkpoints
from cmrcnet.training.cross_search import CrossSearch, cross_search
from cmrcnet.training.data import Pairs, read_pairs
from cmrcnet.training.heads import fit_head
from cmrcnet.training.history import Course
from cmrcnet.training.loop import Job, train_phase
from cmrcnet.training.module import Learner
from cmrcnet.training.validate import Looker
from cmrcnet.training.validation_split import ValidationSplit, choose_validation, each_validation_group

if TYPE_CHECKING:
    from lightning_fabric.loggers import Logger

log = logging.getLogger("cmrcnet")

_FABRIC_PRECISION = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def fit(
    cohort: Cohort,
    config: Config,
    *,
    panel: GenePanel | None = None,
    cache: TokenCache | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    logger: Logger | None = None,
    trust: bool = True,
) -> TrainedModel:
    """Train on a cohort of training sections.

    Parameters
    ----------
    cohort : Cohort
        Training sections only. What is not in it cannot be learnt from, nor chosen on.
    config : Config
    panel : GenePanel, optional
        Genes of the gene encoder; chosen from `cohort` when left out.
    cache : TokenCache, optional
        Where tokens (patches, when the encoder is trained) are kept; a temporary folder when left out, so that
        memory does not grow with the number of slides either way.
    checkpoints : Checkpoints, optional
        Where the state of the training and `log.csv` are kept.
    resume : bool
        Go on with the state in `checkpoints`; start when there is none.
    logger : lightning_fabric.loggers.Logger, optional
        Gets every epoch's numbers as well: ``TensorBoardLogger("runs")``.
    trust : bool
        Learn the model's limits as well: intervals, gene cards, and what its sections look like.

    Returns
    -------
    TrainedModel
        On the device that it was trained on. Its provenance holds the history, one entry an epoch.

    Raises
    ------
    TooFew
        Fewer than two spots to train on.
    CannotResume
        The state is damaged, or was started with another config, panel, encoder or cohort.
    Diverged, NoSpace, Unwritable

    Warns
    -----
    CmrcnetWarning
        The network only guesses (see `meter`); or one section leaves nothing to hold in.
    """
    if len(cohort) == 0:
        raise TooFew("training sections", 0, 1, "give a cohort with at least one section")
    if panel is None:
        panel = choose_panel(cohort, config.panel)
    device = choose_device(config.train.device)
    precision = choose_precision(config.train.precision, device)
    encoder = _new_encoder(config)
    with _kept_on_disk(cache) as store:
        components = _components(cohort, config, panel)
        pairs = _pairs(cohort, config, panel, encoder, store, components)
        each = config.train.validation == "each"
        splits = each_validation_group(pairs, config) if each else ()
        validation = (
            ValidationSplit(np.arange(0), np.arange(len(pairs)), "nothing")
            if each
            else choose_validation(pairs, config)
        )
        for split in (validation, *splits):
            if len(split.rest) < 2:
                raise TooFew("spots to train on", len(split.rest), 2, "add sections, or set train.validation to none")
        identity = {
            "config": fingerprint(config.to_dict()),
            "panel": fingerprint(panel.to_dict()),
            "cohort": pairs.fingerprint(),
            "encoder": encoder.fingerprint(),
        }
        trained = config.model.train_encoder
        job = Job(
            config,
            pairs,
            len(panel.genes) if components is None else min(config.target.gene_rank, components.rank),
            _fabric(device, precision, logger),
            (lambda: copy.deepcopy(encoder)) if trained else (lambda: encoder),
            _turned_prefix(config, encoder),
            checkpoints,
            identity,
        )
        learner, course, epoch, crossed = _search_and_refit(job, validation, splits, resume)
        head, parts = (None, None) if components is None else fit_head(pairs, config, crossed)
        limits = fit_trust(cohort, pairs, config, head, parts) if trust else None
    notes = _verdict(course, epoch)
    provenance = Provenance(
        sections=cohort.sections,
        patients=cohort.patients,
        seed=config.train.seed,
        version=version("cmrcnet"),
        history=tuple(course.history),
        chosen_epoch=epoch,
        notes=(*notes, *_panel_notes(panel, cohort)),
        facts={
            "validation": "each unit in turn" if splits else validation.name,
            "head": {} if head is None else dict(head.record),
            "validation_score": course.best_score,
            "selected_by": course.select_by,
            "device": str(device),
            "precision": precision,
            "torch": torch.__version__,
        },
    )
    network, encoder = learner.network, learner.encoder or encoder
    return TrainedModel(network, encoder, panel, config, provenance, components, head, limits)


def _search_and_refit(
    job: Job, validation: ValidationSplit, splits: tuple[ValidationSplit, ...], resume: bool
) -> tuple[Learner, Course, int, CrossSearch | None]:
    """Both phases: the learner that is kept, the course, the epochs behind its weights, and the search over units.

    A search over every unit is a matter of seconds and is done again after an interruption; it ends alike.
    """
    config, everything = job.config.train, np.arange(len(job.pairs))
    state = job.checkpoints.load(job.identity) if resume and job.checkpoints is not None else None
    course = Course(config.select_by)
    if state is not None:
        course = Course.from_dict(state.facts["course"])
        job.fabric.strategy.precision.load_state_dict(state.facts["precision"])
        log.info("Going on behind epoch %d of the %s phase.", state.epoch, state.phase)

    crossed = None
    if splits:
        crossed = cross_search(job, splits, course if state is None else Course(config.select_by))
        course.best_epoch = crossed.epoch
    refit = bool(splits) or (config.refit and bool(validation))
    learner: Learner | None = None
    if splits:
        pass
    elif state is None or state.phase == "search":
        learner = train_phase(
            job,
            "search",
            validation.rest,
            config.epochs,
            course,
            looker=Looker(job.pairs, validation, job.config, job.fabric),
            look_every=config.validate_every,
            choose=bool(validation),
            keep_best=bool(validation) and not refit,
            resumed=state,
        )
    epoch = course.best_epoch or config.epochs
    if validation and course.best_epoch is None:
        warnings.warn(
            f"No epoch could be chosen: the score on the validation {validation.name} was never defined (constant "
            "expression or predictions). The last epoch is kept.",
            CmrcnetWarning,
            stacklevel=3,
        )
    if refit:
        log.info("Training again on all %d spots for the chosen %d epochs.", len(everything), epoch)
        learner = train_phase(
            job,
            "refit",
            everything,
            epoch,
            course,
            looker=Looker(job.pairs, ValidationSplit(everything[:0], everything, "nothing"), job.config, job.fabric),
            look_every=epoch,
            choose=False,
            keep_best=False,
            resumed=state if state is not None and state.phase == "refit" else None,
        )
    assert learner is not None
    return learner, course, epoch, crossed


def _new_encoder(config: Config) -> ImageEncoder:
    model = config.model
    return create_image_encoder(
        model.encoder,
        weights=model.weights,
        blocks=model.blocks,
        depth=model.encoder_depth,
        heads=model.encoder_heads,
        seed=config.train.seed,
    )


def _turned_prefix(config: Config, encoder: ImageEncoder) -> int | None:
    """Tokens before the grid, where samples are turned at random; None where nothing is: views have no grid."""
    if not config.train.augment or config.features.views_um:
        return None
    return 0 if config.model.train_encoder else encoder.config.class_tokens


def _components(cohort: Cohort, config: Config, panel: GenePanel) -> ExpressionComponents | None:
    """Components of the training sections' expression, where the config works on them."""
    if not config.target.ranks:
        return None
    rank = max(*config.target.ranks, config.target.gene_rank)
    return find_components((panel.select(section) for section in cohort), rank)


def _pairs(
    cohort: Cohort,
    config: Config,
    panel: GenePanel,
    encoder: ImageEncoder,
    store: TokenCache,
    components: ExpressionComponents | None,
) -> Pairs:
    """Tokens of a frozen encoder, or patches for one that is trained, beside expression; all mapped from disk."""

    def inputs_of(section: Section) -> np.ndarray:
        if config.model.train_encoder:
            return cached_patches(store, section.slide, section.spots.centre_px, config.patch)
        return extract(encoder, section.slide, section.spots.centre_px, FeatureSpec.of(config), cache=store)

    scored = None
    if components is not None or (config.train.validation != "none" and config.train.select_by == "pearson"):
        genes = gene_sets(cohort, panel, config.evaluation.set_size)["HVG"]
        scored = GenePanel(genes, panel.target_sum, {"kind": "HVG of the training sections"})
    return read_pairs(
        cohort,
        panel,
        inputs_of,
        scored=scored,
        components=components,
        gene_rank=config.target.gene_rank,
        depth_weights=config.target.depth_weights,
    )


@contextmanager
def _kept_on_disk(cache: TokenCache | None) -> Iterator[TokenCache]:
    """The cache, or a temporary one."""
    if cache is not None:
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="cmrcnet-", ignore_cleanup_errors=True) as folder:
        yield TokenCache(Path(folder))


def _fabric(device: torch.device, precision: Precision, logger: Logger | None) -> Fabric:
    return Fabric(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=_FABRIC_PRECISION[precision],
        loggers=logger,
    )


def _verdict(course: Course, epoch: int) -> tuple[str, ...]:
    """Say loudly when the network that is kept only guesses; the sentence stays with the model."""
    sentences = []
    for phase in ("search", "refit"):
        row = course.last_reading(phase, epoch)
        if row is not None and row["meter_guessing"]:
            sentences.append(_guess(row))
    if sentences:
        # A warning alone: the command line prints it as a plain line, and a log line beside it would say it twice.
        warnings.warn(
            f"This training has learnt nothing that it can use. {sentences[0]} See docs/concepts/collapse.md.",
            CmrcnetWarning,
            stacklevel=3,
        )
    return tuple(sentences)


def _guess(row: dict[str, Any]) -> str:
    from cmrcnet.training.meter import CollapseReading

    reading = {name.removeprefix("meter_"): value for name, value in row.items() if name.startswith("meter_")}
    return CollapseReading(**reading).sentence


def _panel_notes(panel: GenePanel, cohort: Cohort) -> tuple[str, ...]:
    """A sentence when sections that are not trained on chose the panel."""
    others = [name for name in panel.origin.get("sections", ()) if name not in cohort.sections]
    return (
        (f"Sections that it was not trained on took part in choosing its genes: {', '.join(others)}.",)
        if others
        else ()
    )
