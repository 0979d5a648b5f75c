"""Commands of models and students, and of what they can be made of: train, distil, pack, presets, encoders."""

from __future__ import annotations

from pathlib import Path

from cmrcnet.cli.options import DEFAULT_CONFIG, ConfigOptions, count_text, sections_named
from cmrcnet.config import Config, shipped_presets
from cmrcnet.storage.atomic import final_path, refuse_existing


def train_command(
    cohort: Path,
    *,
    out: Path,
    config: ConfigOptions = DEFAULT_CONFIG,
    without: list[str] | None = None,
    devices: int = 1,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train a model on sections with slide and counts.

    Parameters
    ----------
    cohort : Path
        A cohort.csv: section, patient, format, counts, spots, image, mpp, spot_diameter_um.
    out : Path
        Model folder to write. During training the checkpoints are in OUT.partial.
    config : ConfigOptions
        The config of the run.
    without : list of str, optional
        Sections or patients to leave out of training.
    devices : int
        GPUs of this machine to train on, each on its part of every batch; for configs that train the encoder. Without
        a GPU: processes.
    resume : bool
        Continue the interrupted training in OUT.partial from its last checkpoint.
    overwrite : bool
        Replace OUT, and delete OUT.partial.
    """
    wanted = config.load()
    refuse_existing(out, overwrite, folder=True)

    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.storage.cache import TokenCache
    from cmrcnet.training.checkpoint import Checkpoints
    from cmrcnet.training.fit import fit

    checkpoints = Checkpoints.beside(out, resume=resume, overwrite=overwrite)
    sections = read_cohort(cohort, controls=wanted.panel.controls)
    sections = sections.without(sections_named(sections, without, "without"))
    model = fit(sections, wanted, cache=TokenCache.default(), checkpoints=checkpoints, resume=resume, devices=devices)
    model.save_pretrained(out, overwrite=overwrite)
    checkpoints.discard()
    size = count_text((len(model.panel.genes), model.panel.scaling.word), (len(sections), "section"))
    print(f"Model written to {final_path(out)} ({size}).")
    return out


def distil_command(
    model: Path,
    bank: Path,
    *,
    out: Path,
    cohort: Path | None = None,
    slides: list[Path] | None = None,
    encoder: str | None = None,
    weights: str = "pretrained",
    augmentations: int | None = None,
    scales: list[float] | None = None,
    patch_px: int | None = None,
    grid_um: float = 200.0,
    test: Path | None = None,
    mpp: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Distil a model and its bank into a student: a small head that predicts without bank and search.

    The student is fitted to the predictions of MODEL and BANK on the slides of the bank; each section is predicted by
    the bank without it. The student report gives the loss of accuracy and the gain of speed, measured on sections
    that are left out and on --test. Encoding takes most of the time, so a student is much faster only when it encodes
    less: --augmentations 1, --scales 112, --encoder, --patch-px. A student gives no attributions, no intervals and no
    abstention. It contains what it learnt from the patients of MODEL and BANK: when a patient is dropped from the bank
    later, the student still contains the patient and must be distilled again.

    Parameters
    ----------
    model : Path
        Model folder of the teacher.
    bank : Path
        Bank folder of the teacher.
    out : Path
        Student folder to write; `cmrcnet predict` takes it in place of a model.
    cohort : Path, optional
        The cohort.csv that the bank was built from: its slides are encoded again, and its counts judge the student.
        The bank stores this path; give it when the file has moved.
    slides : list of Path, optional
        More slides to learn from; they need no counts. Files, folders or patterns.
    encoder : str, optional
        Frozen image encoder of the student (`cmrcnet encoders`); that of the teacher when left out.
    weights : str
        Weights of --encoder: pretrained, random, or a local safetensors file.
    augmentations : int, optional
        Flips and rotations of each patch that are encoded and averaged (test-time augmentation), 1 to 8; as the teacher
        when left out.
    scales : list of float, optional
        Side lengths of the square patches around a location, in micrometres; as the teacher when left out.
    patch_px : int, optional
        Pixels that a patch is resized to; it shows the same tissue. As the teacher when left out.
    grid_um : float
        Pitch of the grid of locations that are learnt from besides the measured spots; 0: only spots.
    test : Path, optional
        A cohort.csv of patients that neither model nor bank has seen, for unbiased values in the student report.
    mpp : float, optional
        Micrometres per level-0 pixel, for --slides that do not state it.
    seed : int
        Seed of every random choice.
    overwrite : bool
        Replace OUT.
    """
    refuse_existing(out, overwrite, folder=True)

    from cmrcnet.distill.distil import StudentConfig, distil
    from cmrcnet.distill.student_report import report_lines
    from cmrcnet.inference.slide_batch import slides_of
    from cmrcnet.models.trained_model import TrainedModel
    from cmrcnet.readers.cohort import read_cohort
    from cmrcnet.retrieval.bank import ReferenceBank, cohort_of_bank
    from cmrcnet.slides.slide import open_slide
    from cmrcnet.storage.cache import TokenCache

    trained = TrainedModel.from_pretrained(model)
    controls = trained.config.panel.controls
    found = [path for each in slides or [] for path in slides_of(each) or [each]]
    measured = ReferenceBank.load(bank)
    student = distil(
        trained,
        measured,
        cohort_of_bank(measured, controls=controls) if cohort is None else read_cohort(cohort, controls=controls),
        slides=[open_slide(path, mpp=mpp) for path in found],
        config=StudentConfig(
            encoder=encoder, weights=weights, augmentations=augmentations, scales_um=scales, patch_px=patch_px
        ),
        grid_um=grid_um,
        test=None if test is None else read_cohort(test, controls=controls),
        seed=seed,
        cache=TokenCache.default(),
    )
    student.save_pretrained(out, overwrite=overwrite)
    print(*report_lines(student.report), sep="\n")
    print(f"Student written to {final_path(out)} ({count_text((len(student.genes), student.scaling.word))}).")
    return out


def pack_command(model: Path, *, out: Path, overwrite: bool = False) -> Path:
    """Pack a model or student into one file, which can be mailed and is used as it is; or unpack it.

    The file is a .zip of the JSON and safetensors of the folder, without compression; every command takes it in place
    of the folder. It names the sections and patients of its training, which are printed as a count: read what you
    send. A model predicts with its bank, which is measured patient data and stays a folder; a student needs none.

    Parameters
    ----------
    model : Path
        Folder or .zip of a model or student.
    out : Path
        File that ends in .zip; or folder, to unpack.
    overwrite : bool
        Replace OUT.
    """
    refuse_existing(out, overwrite, folder=out.suffix != ".zip")

    from cmrcnet.models import student, trained_model
    from cmrcnet.models.artefact import pack

    kinds = {
        trained_model.FILE: ("The model", "train", trained_model.FORMAT),
        student.FILE: ("The student", "distil", student.FORMAT),
    }
    facts = pack(model, out, kinds, overwrite=overwrite).facts
    seen = facts.get("provenance") or facts["lineage"]
    print(f"Written to {final_path(out)}.")
    named = count_text((len(seen["sections"]), "section"), (len(seen["patients"]), "patient"))
    print(f"It names what it was trained on: {named}.")
    for what, terms in seen["facts"].get("licences", {}).items():
        print(f"Licence, {what}: {terms}.")
    return out


def presets_command(name: str | None = None) -> None:
    """List the presets, or print one with every option.

    Parameters
    ----------
    name : str, optional
        Preset to print in full, as a .yaml file that you can edit and give to --config.
    """
    if name is not None:
        import yaml

        print(yaml.safe_dump(Config.load(name).to_dict(), sort_keys=False, allow_unicode=True), end="")
        return
    for each in shipped_presets():
        print(f"{each:20}{Config.load(each).about}")


def encoders_command() -> None:
    """List the image encoders with their scale, licence and source of weights."""
    from cmrcnet.models.encoders import image_encoders, pretrained_config
    from cmrcnet.models.pretrained import NOT_INCLUDED

    for each in map(pretrained_config, image_encoders()):
        print(f"{each.name:20}{each.n_tokens} tokens x {each.dim}, {each.mpp:g} um per px, {each.licence}")
        print(f"{'':20}{each.source}; {each.note}")
    for name, reason in NOT_INCLUDED.items():
        print(f"{name:20}not offered: {reason}")
    print(f"{'timm:NAME':20}any timm model, by its timm name")
    print(f"{'hf-hub:ORG/NAME':20}any timm model on the Hugging Face hub, if the hub can be reached")
