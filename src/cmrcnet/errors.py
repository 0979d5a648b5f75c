"""Every exception that we raise on purpose. Each says what was wanted, what came, and what to do.

The command line turns a `CmrcnetError` into one sentence and exit code 2. Every class also inherits the
built-in exception that a library user would expect to catch. Past 300 lines because it is one thing: every sentence
of refusal side by side, so that they stay alike.
"""

from __future__ import annotations

from collections.abc import Sequence


class CmrcnetError(Exception):
    """Anything that the user can mend."""

    def __reduce__(self) -> tuple:  # copies and worker processes keep the sentence, whatever `__init__` takes
        return _error_again, (type(self), self.args)


def _error_again(kind: type[CmrcnetError], args: tuple) -> CmrcnetError:
    """An error of `kind` that says what the first one said."""
    error = kind.__new__(kind, *args)
    error.args = args
    return error


class CmrcnetWarning(UserWarning):
    """Something that the user should know, and that did not stop the work."""


def _few(names: Sequence[object], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


# --- options and names -------------------------------------------------------------------------------------------


class BadOption(CmrcnetError, ValueError):
    """A value that an option cannot take."""

    def __init__(self, option: str, got: object, want: str) -> None:
        super().__init__(f"{option} is {got!r}; wanted {want}.")


class UnknownKey(CmrcnetError, KeyError):
    """A key that a config does not have."""

    def __init__(self, key: str, known: Sequence[str], where: str) -> None:
        super().__init__(f"{where} has the key {key!r}, which no config knows; known here: {', '.join(known)}.")

    __str__ = Exception.__str__  # KeyError would print the repr


class UnknownName(CmrcnetError, KeyError):
    """A config, encoder, method, gene or section that nobody has heard of."""

    def __init__(self, kind: str, name: str, known: Sequence[str], hint: str = "") -> None:
        sentence = f"There is no {kind} {name!r}; known: {_few(list(known), 30)}."
        super().__init__(f"{sentence} {hint}".strip())

    __str__ = Exception.__str__


class UnknownSection(UnknownName):
    """A section that the cohort does not hold."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__("section", name, known)


class NotAMethod(CmrcnetError, TypeError):
    """Something given as a method of the evaluation that is none."""

    def __init__(self, what: object, why: str) -> None:
        super().__init__(
            f"{what} is no method: {why}; wanted a class or object with name, about and fit(training), "
            "given as module:object."
        )


class MissingExtra(CmrcnetError, ImportError):
    """A library that only some jobs need is not installed."""

    def __init__(self, library: str, job: str, install: str) -> None:
        super().__init__(f"{job} needs {library}, which is not installed; run: pip install {install}")


class ShapeMismatch(CmrcnetError, ValueError):
    """An array of another shape than its partner."""

    def __init__(self, what: str, want: object, got: object) -> None:
        super().__init__(f"{what} has shape {got}; wanted {want}.")


# --- files -------------------------------------------------------------------------------------------------------


class BadFile(CmrcnetError, ValueError):
    """A file that cannot be read as what it should be."""

    def __init__(self, path: object, want: str, why: str) -> None:
        super().__init__(f"{path} cannot be read as {want}: {why}.")


class NoSuchFile(CmrcnetError, FileNotFoundError):
    """A file that is not there."""

    def __init__(self, path: object, what: str, hint: str = "check the path") -> None:
        super().__init__(f"{what} {path} does not exist; {hint}.")


class UnknownFormat(CmrcnetError, ValueError):
    """A location that no reader recognises, or that more than one does."""

    def __init__(self, path: object, why: str, known: Sequence[str]) -> None:
        super().__init__(f"{path}: {why}; give format= (--format), one of: {', '.join(known)}.")


class MissingColumn(CmrcnetError, ValueError):
    """A table without a column that it needs."""

    def __init__(self, path: object, missing: Sequence[str], found: Sequence[str]) -> None:
        super().__init__(f"{path} lacks the column(s) {', '.join(missing)}; it has: {_few(list(found), 12)}.")


class OutputExists(CmrcnetError, FileExistsError):
    """An output that is there already."""

    def __init__(self, path: object, hint: str = "choose another name or pass --overwrite") -> None:
        super().__init__(f"{path} exists already; {hint}.")


class OutputInUse(CmrcnetError, OSError):
    """An output that another process is writing."""

    def __init__(self, path: object) -> None:
        super().__init__(f"{path} is being written by another process; wait until it is done, or choose another name.")


class Unwritable(CmrcnetError, PermissionError):
    """A location that cannot be written."""

    def __init__(self, path: object, why: str) -> None:
        super().__init__(f"{path} cannot be written: {why}; choose a folder that you may write to.")


class DiskFull(CmrcnetError, OSError):
    """No space left while writing."""

    def __init__(self, path: object) -> None:
        super().__init__(
            f"The disk is full: {path} was not written and nothing half-written is left; free space and run again."
        )


class NoRoom(DiskFull):
    """Less room on the disk than the work will take."""

    def __init__(self, path: object, needed_gb: float, free_gb: float) -> None:
        CmrcnetError.__init__(
            self,
            f"{path} takes about {needed_gb:.1f} GB while it is made, and {free_gb:.1f} GB are free there; free space, "
            "choose another folder, or choose fewer genes (--genes) or locations (--grid-um).",
        )


# --- downloads ---------------------------------------------------------------------------------------------------


class LicenceNotAccepted(CmrcnetError, PermissionError):
    """Data whose licence the user has not accepted yet."""

    def __init__(self, data: str, licence: str, terms: str) -> None:
        super().__init__(
            f"{data} is under {licence} ({terms}); read it, and pass --accept-licence if you keep to it. "
            "Nothing was fetched."
        )


class AccessRefused(CmrcnetError, PermissionError):
    """A repository that opens only to users who have asked for access."""

    def __init__(self, repository: str, page: str) -> None:
        super().__init__(
            f"{repository} refused access, because it is gated or the token is missing or wrong; accept its terms at "
            f"{page} while logged in, make a token with read access, and give it by `hf auth login` or in the "
            "environment variable HF_TOKEN."
        )


class DownloadFailed(CmrcnetError, OSError):
    """A download that did not arrive whole."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"{what} was not fetched: {why}; run the same command again, and files that are whole are kept."
        )


# --- slides ------------------------------------------------------------------------------------------------------


class UnknownScale(CmrcnetError, ValueError):
    """Nobody has said how large a pixel is."""

    def __init__(self, slide: str) -> None:
        super().__init__(
            f"{slide} does not say how many micrometres a pixel shows; give it: --mpp 0.5 on the command line, "
            "the column mpp in the cohort file, or mpp= in open_slide()."
        )


class ScaleMismatch(CmrcnetError, ValueError):
    """A stated scale that the slide or its spots contradict."""

    def __init__(self, slide: str, stated: float, evidence: str) -> None:
        super().__init__(f"{slide} is said to show {stated:g} um per px, but {evidence}; correct mpp.")


class SpotsOffImage(CmrcnetError, ValueError):
    """Spots that lie outside their image."""

    def __init__(self, section: str, outside: int, total: int, image_px: tuple[int, int], spots_px: str) -> None:
        super().__init__(
            f"{outside} of {total} spots of {section} lie outside its image ({image_px[0]} x {image_px[1]} px; the "
            f"spots span {spots_px}); check that image and spot file belong together and use level-0 pixels."
        )


class NoTissue(CmrcnetError, ValueError):
    """A slide on which no tissue was found."""

    def __init__(self, slide: str) -> None:
        super().__init__(
            f"No tissue was found on {slide}; check the picture, or give the locations to predict yourself."
        )


class BadMask(CmrcnetError, ValueError):
    """A mask that does not fit its slide."""

    def __init__(self, path: object, why: str) -> None:
        super().__init__(
            f"The mask {path} does not fit: {why}; give a picture of the whole slide in which tissue is white."
        )


# --- counts and genes --------------------------------------------------------------------------------------------


class DuplicateBarcodes(CmrcnetError, ValueError):
    """Spots of the same name."""

    def __init__(self, barcodes: Sequence[str], where: str = "the spots") -> None:
        super().__init__(f"{where} repeat the barcode(s) {_few(list(barcodes))}; each spot needs a name of its own.")


class BadCounts(CmrcnetError, ValueError):
    """Counts that are no counts."""

    def __init__(self, section: str, why: str) -> None:
        super().__init__(
            f"The counts of {section} are not raw counts: {why}; give the unnormalised whole numbers, 0 or more."
        )


class EmptySection(CmrcnetError, ValueError):
    """A section without spots or without genes."""

    def __init__(self, section: str, spots: int, genes: int) -> None:
        hint = (
            "check that the counts and the spot file use the same spot names"
            if spots == 0
            else "no gene but controls was counted on any spot, so check that this is the table of raw counts"
        )
        super().__init__(f"{section} holds {spots} spots and {genes} genes after cleaning; {hint}.")


class NoSharedGenes(CmrcnetError, ValueError):
    """Gene names that do not meet, or only in a few that two species happen to write alike."""

    def __init__(self, left: str, right: str, hint: str = "", shared: int = 0) -> None:
        how_many = f"only {shared} gene{'s' if shared > 1 else ''}" if shared else "no genes"
        super().__init__(f"{left} and {right} share {how_many}. {hint}".strip())


class GenesMissing(CmrcnetError, ValueError):
    """A section whose assay did not measure genes that are asked of it."""

    def __init__(self, section: str, missing: Sequence[str], wanted: int, hint: str = "") -> None:
        super().__init__(
            f"{section} lacks {len(missing)} of the {wanted} genes asked for ({_few(list(missing))}); "
            f"ask only for genes that every section measures. {hint}".strip()
        )


class TooFew(CmrcnetError, ValueError):
    """Too few sections, patients, spots or genes for the job."""

    def __init__(self, what: str, got: int, want: int, hint: str) -> None:
        super().__init__(f"{got} {what}, but at least {want} are needed; {hint}.")


# --- models and banks --------------------------------------------------------------------------------------------


class WeightsMissing(CmrcnetError, FileNotFoundError):
    """Weights that are not at hand."""

    def __init__(self, encoder: str, why: str, hint: str) -> None:
        super().__init__(f"The weights of encoder {encoder} are not at hand: {why}; {hint}.")


class DamagedWeights(CmrcnetError, ValueError):
    """Weights that are truncated, changed, or of another network."""

    def __init__(self, path: object, why: str) -> None:
        super().__init__(f"The weights {path} are damaged or were changed: {why}; fetch or train them again.")


class PickleRefused(CmrcnetError, ValueError):
    """A pickle, which can run code when it is loaded."""

    def __init__(self, path: object) -> None:
        super().__init__(
            f"{path} is a pickle (a PyTorch .pt or .pth file), which can run code when loaded; "
            "convert it to safetensors on a machine that trusts it and give that file."
        )


class ForeignBank(CmrcnetError, ValueError):
    """A bank that another model made."""

    def __init__(self, bank: object, made_by: str, model: str) -> None:
        super().__init__(
            f"The bank {bank} was made by model {made_by[:12]}, not by model {model[:12]}; "
            "their embeddings do not compare. Run: cmrcnet index MODEL COHORT.csv --out BANK"
        )


class RecallTooLow(CmrcnetError, ValueError):
    """A search index that finds fewer of the true neighbours than was asked for."""

    def __init__(self, kind: str, k: int, found: float, wanted: float, parameter: str, value: int) -> None:
        super().__init__(
            f"The {kind} index finds {found:.3f} of the {k} nearest spots with {parameter} {value}, and {wanted:g} was "
            f"asked for; raise --{parameter}, leave it out to have it found, or take --search exact."
        )


class ForeignIndex(CmrcnetError, ValueError):
    """A search index that was made for another bank."""

    def __init__(self, bank: object, why: str) -> None:
        super().__init__(
            f"The search index in {bank} does not match its bank: {why}; make it anew: cmrcnet bank search {bank}"
        )


class BankInUse(CmrcnetError, OSError):
    """A bank that somebody else is editing."""

    def __init__(self, bank: object, why: str) -> None:
        super().__init__(f"The bank {bank} {why}; wait until that is done and run again.")


class DamagedArtefact(CmrcnetError, ValueError):
    """A model, bank or run folder that is incomplete, or of a format that this version does not read."""

    def __init__(self, path: object, why: str, hint: str) -> None:
        super().__init__(f"{path} is not whole: {why}; {hint}.")


class SeenInTraining(CmrcnetError, ValueError):
    """An artefact that has seen the patient that it is tested on."""

    def __init__(self, artefact: str, seen: Sequence[str]) -> None:
        super().__init__(
            f"{artefact} has seen {_few(list(seen))} in training, so it cannot be evaluated there; "
            "train it without them (cmrcnet evaluate does so for every fold)."
        )


class NotCalibrated(CmrcnetError, ValueError):
    """Intervals or translate_os_errors asked of a model that has nothing to calibrate them on."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"There are no {what}: {why}.")


class NoAttribution(CmrcnetError, LookupError):
    """A attribution asked of a prediction that has none."""

    def __init__(self, slide: str) -> None:
        super().__init__(
            f"The prediction of {slide} was made by a student, which has no attributions; predict with "
            f"MODEL and --bank "
            "for these."
        )


class CannotResume(CmrcnetError, ValueError):
    """A run that cannot be taken up again."""

    def __init__(self, path: object, why: str) -> None:
        super().__init__(f"The run in {path} cannot be resumed: {why}; pass --overwrite to start afresh.")


class WorkerDied(CmrcnetError, ChildProcessError):
    """A worker process that ended without an answer."""

    def __init__(self, job: str, exit_code: object) -> None:
        super().__init__(
            f"The worker process that ran {job} ended without an answer (exit code {exit_code}), most often for want "
            "of memory or because a script starts workers outside `if __name__ == '__main__':`; run again with "
            "fewer workers (--workers 1), and --resume keeps what is finished."
        )


class Diverged(CmrcnetError, ArithmeticError):
    """A training whose numbers are no longer finite."""

    def __init__(self, epoch: int) -> None:
        super().__init__(
            f"The training loss is not finite in epoch {epoch}; use a smaller train.learning_rate, a train.clip_norm "
            "above 0, or train.precision float32."
        )
