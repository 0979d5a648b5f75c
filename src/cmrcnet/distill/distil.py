"""Distil a model and its bank into a student that predicts without search."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cmrcnet.config import Config
from cmrcnet.distill.distillation_set import make_distillation_sets
from cmrcnet.distill.fit_student import fit_student
from cmrcnet.distill.student_report import make_report
from cmrcnet.errors import BadOption, Leakage
from cmrcnet.evaluation.protocol.folds import refuse_seen
from cmrcnet.features.spec import state_method
from cmrcnet.inference.location_features import LocationEncoder
from cmrcnet.models.artefact import join_licences
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.models.image_encoder import ImageEncoder
from cmrcnet.models.student import Lineage, Student
from cmrcnet.models.trained_model import TrainedModel
from cmrcnet.retrieval.bank import ReferenceBank
from cmrcnet.slides.section import Cohort
from cmrcnet.slides.slide import Slide

if TYPE_CHECKING:
    from cmrcnet.storage.cache import TokenCache

log = logging.getLogger("cmrcnet")


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Encoder and scales of a student; what is left out is as in its teacher.

    Sub-windows (`features.window_um`) are the teacher's where encoder and scales of the student allow them, else none.

    Examples
    --------
    One forward pass per location, over 112 um of tissue:

    >>> from cmrcnet import StudentConfig
    >>> StudentConfig(augmentations=1, scales_um=[112.0]).encoder is None
    True
    """

    encoder: str | None = None
    """Frozen image encoder: a name from `cmrcnet encoders`, timm:NAME or hf-hub:ORG/NAME."""
    weights: str = "pretrained"
    """Weights of `encoder`: pretrained, random, or the path of a local safetensors file."""
    augmentations: int | None = None
    """Test-time augmentation: symmetries (D4) of each patch that are encoded and averaged, 1 to 8, of all scales. As
    the teacher's of the same scale when left out; of a scale that the teacher has not, its most."""
    scales_um: Sequence[float] | None = None
    """Side lengths of the square patches around a location, in micrometres."""
    patch_px: int | None = None
    """Pixels that a patch is resized to; it shows the same tissue."""

    def apply_to(self, model: TrainedModel) -> tuple[ImageEncoder, Config]:
        """Return encoder and config of a student of `model`.

        Parameters
        ----------
        model : TrainedModel
            The teacher.

        Raises
        ------
        BadOption
            Values that do not go together, such as augmentations without scales.
        UnknownName, MissingInput, DownloadFailed, Damaged
        """
        encoder, settings = model.encoder, {}
        if self.encoder is not None:
            encoder = create_image_encoder(self.encoder, weights=self.weights)
            settings |= {"model.encoder": self.encoder, "model.weights": self.weights, "model.blocks": []}
            settings |= {"model.encoder_depth": None, "model.encoder_heads": None}
            settings |= {"model.train_encoder": False, "model.trained_blocks": None}
        if self.scales_um is not None:
            settings["features.scales_um"] = list(self.scales_um)
        features = model.config.features
        if self.augmentations is not None:
            settings["features.augmentations"] = self.augmentations
        elif self.scales_um is not None and not isinstance(features.augmentations, int):
            known = dict(zip(features.scales_um, features.augmentations, strict=True))
            each = [known.get(side, max(known.values())) for side in self.scales_um]
            settings["features.augmentations"] = each or 1
        pixels = self.patch_px
        if pixels is None and not encoder.config.any_size:
            pixels = encoder.config.patch_px
        if pixels is not None:
            settings |= {"patch.size_px": pixels, "patch.mpp": model.config.patch.side_um / max(pixels, 1)}
        if model.config.features.method == "dense":  # its encoder may not allow it
            settings["features.method"] = "auto"
        try:
            return encoder, state_method(model.config.override(settings), encoder)
        except BadOption as error:
            window_um = model.config.features.window_um
            if not window_um:
                raise
            config = state_method(model.config.override(settings | {"features.window_um": 0.0}), encoder)
            log.info("The student has no windows of %g um as its teacher has: %s", window_um, error)
            return encoder, config


AS_TEACHER = StudentConfig()


def distil(
    model: TrainedModel,
    bank: ReferenceBank,
    cohort: Cohort,
    *,
    slides: Sequence[Slide] = (),
    config: StudentConfig = AS_TEACHER,
    grid_um: float = 200.0,
    test: Cohort | None = None,
    seed: int = 0,
    cache: TokenCache | None = None,
) -> Student:
    """Fit a small head to the predictions of a model and its bank, and report how close it comes.

    Each section is predicted by the bank without it, so that no spot is its own neighbour. Genes that only some
    sections measured are predicted everywhere, from the locations where the teacher predicts them.

    Parameters
    ----------
    model : TrainedModel
        The teacher.
    bank : ReferenceBank
        Made with this model.
    cohort : Cohort
        That the bank was built from: its slides are encoded, and its counts judge the student.
    slides : sequence of Slide, optional
        More slides to learn from; they need no counts.
    config : StudentConfig
        Encoder and scales of the student; as its teacher when left out.
    grid_um : float
        Pitch of the grid of locations that are learnt from besides the measured spots; 0: only spots.
    test : Cohort, optional
        Sections of patients that neither model nor bank has seen, for unbiased values in the report.
    seed : int
        Of every random choice.
    cache : TokenCache, optional
        For features of frozen encoders.

    Returns
    -------
    Student
        With its report. Its lineage names every patient of model and bank, also those that are dropped from the bank
        later.

    Raises
    ------
    Incompatible
        Another model made the bank.
    Leakage
        The test cohort holds a section, patient or slide that model, bank or student has seen.
    BadOption
        The cohort is not the one that the bank was built from, or `config` has values that do not go together.
    ScaleError, TooFew, Damaged, Diverged

    Examples
    --------
    >>> import cmrcnet
    >>> from cmrcnet.testing import quick_config
    >>> cohort = cmrcnet.synthetic_cohort(patients=2, spots=16, genes=24)
    >>> model = cmrcnet.fit(cohort, quick_config())
    >>> student = cmrcnet.distil(model, cmrcnet.build_bank(model, cohort), cohort, grid_um=0)
    >>> cmrcnet.predict(student, cohort.read(cohort.sections[0]).slide, grid_um=400).n_vars
    24
    """
    bank.require_model(model)
    if not 0 <= grid_um < np.inf:
        raise BadOption("grid_um", grid_um, want="micrometres between neighbouring locations, or 0 for the spots only")
    sections = tuple(dict.fromkeys((*model.provenance.sections, *bank.sections)))
    patients = tuple(dict.fromkeys((*model.provenance.patients, *bank.patients, *bank.patients_within)))
    if test is not None:
        refuse_seen(
            "The student's teacher",
            seen_sections=sections,
            seen_patients=patients,
            sections=test.sections,
            patients=test.patients,
        )
    encoder, applied = config.apply_to(model)
    location_encoder = LocationEncoder.of_student(encoder, applied)
    sets, pca = make_distillation_sets(
        model, bank, cohort, slides, location_encoder, grid_um=grid_um, seed=seed, cache=cache
    )
    seen_slides = tuple(dict.fromkeys(each.slide.fingerprint() for each in sets))
    for section in test or ():
        if section.slide.fingerprint() in seen_slides:
            raise Leakage("The student", [f"the slide of section {section.name}"])

    outputs, head, head_facts = fit_student(model, bank, sets, seed)
    used = model.config.head.within(len(bank))
    facts = {"head": used.kind, "k": used.k, "weighting": used.weighting, "grid_um": float(grid_um), "seed": seed}
    facts["features_made_by"] = location_encoder.spec.made_by
    facts["licences"] = {
        **{f"{what} (teacher)": terms for what, terms in model.provenance.facts.get("licences", {}).items()},
        "slides of the bank (teacher)": join_licences(entry.licence for entry in bank.entries),
        "encoder": encoder.licence,
    }
    lineage = Lineage(
        model.fingerprint, bank.fingerprint, bank.sections, bank.patients, sections, patients, seen_slides, facts
    )
    student = Student(
        encoder, applied, pca, head, outputs.basis, outputs.genes, bank.scaling, lineage, model.calibration
    )
    report = make_report(model, bank, cohort, sets, student, test=test, seed=seed, cache=cache)
    return dataclasses.replace(student, report=report | {"head": head_facts})
