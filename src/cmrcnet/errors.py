"""Every exception that cmrcnet raises on purpose, one class for each thing that a caller would do about it.

The command line prints a `CmrcnetError` as one sentence (what was wanted, what came, what to do) and exits with code 2.
Each class also inherits the built-in exception that a library user would expect to catch. Sentences that are needed
in several places are built by the constructors and class methods below; a sentence that is needed once stands where it
is raised: ``raise BadOption.from_sentence("...")``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self


class CmrcnetError(Exception):
    """An error that the user can correct.

    Examples
    --------
    >>> import cmrcnet
    >>> try:
    ...     cmrcnet.Config.load("papre")
    ... except cmrcnet.CmrcnetError as error:
    ...     print(str(error)[:32], isinstance(error, KeyError))
    There is no preset 'papre'; know True
    """

    @classmethod
    def from_sentence(cls, sentence: str) -> Self:
        """Make an error with a sentence of its own instead of the one that the constructor builds."""
        error = cls.__new__(cls, sentence)
        error.args = (sentence,)
        return error

    def __reduce__(self) -> tuple:  # copies and worker processes keep the sentence, whatever `__init__` takes
        return type(self).from_sentence, self.args


class CmrcnetWarning(UserWarning):
    """A problem that the user should know of, and that did not stop the work."""


def _few(names: Sequence[object], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


# --- options, names and arrays -----------------------------------------------------------------------------------


class BadOption(CmrcnetError, ValueError):
    """An option or argument has a value that is not allowed."""

    def __init__(self, option: str, got: object, want: str) -> None:
        super().__init__(f"{option} is {got!r}; wanted {want}.")


class UnknownName(CmrcnetError, KeyError):
    """A name (of a config, option, encoder, method, gene, section) that does not exist."""

    def __init__(self, kind: str, name: str, known: Sequence[str], hint: str = "") -> None:
        super().__init__(f"There is no {kind} {name!r}; known: {_few(list(known), 30)}. {hint}".strip())

    __str__ = Exception.__str__  # KeyError would print the repr

    @classmethod
    def option(cls, key: str, known: Sequence[str], where: str) -> Self:
        """A key in `where` (a config file, a setting) that is not an option."""
        return cls.from_sentence(f"{where} has the key {key!r}, which is not an option; known: {', '.join(known)}.")


class ShapeMismatch(CmrcnetError, ValueError):
    """An array has another shape than the array that it belongs to."""

    def __init__(self, what: str, want: object, got: object) -> None:
        super().__init__(f"{what} has shape {got}; wanted {want}.")


class TooFew(CmrcnetError, ValueError):
    """Too few sections, patients, spots, locations or genes for the work."""

    def __init__(self, what: str, got: int, want: int, hint: str) -> None:
        super().__init__(f"{got} {what}, but at least {want} are needed; {hint}.")


class MissingExtra(CmrcnetError, ImportError):
    """An optional library is not installed."""

    def __init__(self, library: str, job: str, install: str) -> None:
        super().__init__(f"{job} needs {library}, which is not installed; run: pip install {install}")


# --- input files -------------------------------------------------------------------------------------------------


class MissingInput(CmrcnetError, FileNotFoundError):
    """An input file or folder does not exist."""

    def __init__(self, path: object, what: str, hint: str = "check the path") -> None:
        super().__init__(f"{what} {path} does not exist; {hint}.")


class BadInput(CmrcnetError, ValueError):
    """An input file cannot be read as what it should be."""

    def __init__(self, path: object, want: str, why: str) -> None:
        super().__init__(f"{path} cannot be read as {want}: {why}.")

    @classmethod
    def columns(cls, path: object, missing: Sequence[str], found: Sequence[str]) -> Self:
        """A table without columns that it needs."""
        has = _few(list(found), 12)
        return cls.from_sentence(f"{path} lacks the column(s) {', '.join(missing)}; it has: {has}.")

    @classmethod
    def unclear_format(cls, path: object, why: str, known: Sequence[str]) -> Self:
        """A section that no reader recognises, or that several do."""
        return cls.from_sentence(f"{path}: {why}; give format= (--format), one of: {', '.join(known)}.")

    @classmethod
    def pickle(cls, path: object) -> Self:
        """A pickle, which can run code when it is loaded."""
        return cls.from_sentence(
            f"{path} is a pickle (a PyTorch .pt or .pth file), which can run code when loaded; "
            "convert it to safetensors on a machine that trusts it and give that file."
        )

    @classmethod
    def mask(cls, path: object, why: str) -> Self:
        """A tissue mask that does not fit its slide."""
        want = "give a picture of the whole slide in which tissue is white"
        return cls.from_sentence(f"The mask {path} does not fit: {why}; {want}.")


class ScaleError(CmrcnetError, ValueError):
    """The scale of a slide (micrometres per pixel, mpp) is unknown, or contradicts the slide or its spots."""

    @classmethod
    def unknown(cls, slide: str, why: str = "") -> Self:
        """The slide does not state its scale, or (`why`) not a plausible one, and none was given."""
        return cls(
            f"{slide} does not say how many micrometres a pixel shows{f' ({why})' if why else ''}; give it: --mpp 0.5 "
            "on the command line, the column mpp in the cohort file, or mpp= in open_slide()."
        )

    @classmethod
    def contradicted(cls, slide: str, stated: float, evidence: str, mend: str = "mpp") -> Self:
        """The stated scale does not agree with `evidence`."""
        return cls(f"{slide} is said to show {stated:.6g} um per px, but {evidence}; correct {mend}.")


class SectionError(CmrcnetError, ValueError):
    """The spots, counts or genes of a section are wrong, or its genes are not those that are needed."""

    @classmethod
    def repeated_barcodes(cls, barcodes: Sequence[str], where: str = "the spots") -> Self:
        """Several spots have the same name."""
        return cls(f"{where} repeat the barcode(s) {_few(list(barcodes))}; each spot needs a name of its own.")

    @classmethod
    def not_counts(cls, section: str, why: str) -> Self:
        """The counts are normalised, negative or not finite."""
        want = (
            "give the unnormalised whole numbers, 0 or more, or state the table_kind of a table that is none of counts"
        )
        return cls(f"The counts of {section} are not raw counts: {why}; {want}.")

    @classmethod
    def not_of_kind(cls, section: str, kind: str, why: str) -> Self:
        """The values of a table are not of its kind."""
        what = "binary" if kind == "binary" else f"one of {kind}" if kind == "proportions" else f"a {kind} one"
        return cls(
            f"The table of {section} is not {what}: {why}; correct it, or state its table_kind: counts, continuous, "
            "proportions or binary."
        )

    @classmethod
    def other_kind(cls, section: str, kind: str, wanted: str, by: str) -> Self:
        """A section holds a table of another kind than the model or the other sections."""
        return cls(
            f"The table of {section} is of kind {kind}, and {by} {wanted}; give sections of one table_kind, or train "
            "a model of this kind."
        )

    @classmethod
    def empty(cls, section: str, spots: int, genes: int) -> Self:
        """A section without spots or without genes."""
        hint = (
            "check that the counts and the spot file use the same spot names"
            if spots == 0
            else "no gene but controls was counted on any spot, so check that this is the table of raw counts"
        )
        return cls(f"{section} holds {spots} spots and {genes} genes after cleaning; {hint}.")

    @classmethod
    def none_shared(cls, left: str, right: str, hint: str = "", shared: int = 0) -> Self:
        """Two lists of genes share none, or so few that the names probably belong to two species."""
        how_many = f"only {shared} gene{'s' if shared > 1 else ''}" if shared else "no genes"
        return cls(f"{left} and {right} share {how_many}. {hint}".strip())

    @classmethod
    def not_measured(cls, section: str, missing: Sequence[str], wanted: int, hint: str = "") -> Self:
        """A section did not measure genes that are asked of it."""
        return cls(
            f"{section} lacks {len(missing)} of the {wanted} genes asked for ({_few(list(missing))}); "
            f"ask only for genes that every section measures. {hint}".strip()
        )


# --- output files and downloads ----------------------------------------------------------------------------------


class OutputExists(CmrcnetError, FileExistsError):
    """The output exists already."""

    def __init__(self, path: object, hint: str = "choose another name or pass --overwrite") -> None:
        super().__init__(f"{path} exists already; {hint}.")


class InUse(CmrcnetError, OSError):
    """Another process is writing the same output or bank."""

    def __init__(self, path: object, why: str = "is being written by another process") -> None:
        super().__init__(f"{path} {why}; wait until that is done and run again.")


class Unwritable(CmrcnetError, PermissionError):
    """The output cannot be written."""

    def __init__(self, path: object, why: str) -> None:
        super().__init__(f"{path} cannot be written: {why}; choose a folder that you may write to.")


class NoSpace(CmrcnetError, OSError):
    """The disk is full, or too small for the output."""

    def __init__(self, path: object) -> None:
        super().__init__(
            f"The disk is full: {path} was not written and nothing half-written is left; free space and run again."
        )


class DownloadFailed(CmrcnetError, OSError):
    """A download failed, or needs an accepted licence or a login first."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"{what} was not fetched: {why}; run the same command again, and files that are whole are kept."
        )

    @classmethod
    def access(cls, repository: str, page: str) -> Self:
        """A repository that admits only users who have asked for access."""
        return cls.from_sentence(
            f"{repository} refused access, because it is gated or the token is missing or wrong; accept its terms at "
            f"{page} while logged in, make a token with read access, and give it by `hf auth login` or in the "
            "environment variable HF_TOKEN."
        )

    @classmethod
    def weights(cls, encoder: str, why: str, hint: str) -> Self:
        """Weights of an encoder that are neither on this machine nor could be fetched."""
        return cls.from_sentence(f"The weights of encoder {encoder} are missing: {why}; {hint}.")


# --- stored models, banks and runs -------------------------------------------------------------------------------


class Damaged(CmrcnetError, ValueError):
    """A stored model, bank, run or prediction is incomplete or was changed."""

    def __init__(self, path: object, why: str, hint: str) -> None:
        super().__init__(f"{path} is incomplete or damaged: {why}; {hint}.")

    @classmethod
    def weights(cls, path: object, why: str) -> Self:
        """Weights of a network that are truncated, changed, or of another network."""
        return cls.from_sentence(f"The weights {path} are damaged or were changed: {why}; fetch or train them again.")


class Incompatible(CmrcnetError, ValueError):
    """A stored artefact is intact, but cannot do what is asked: it belongs to another model, bank, run or version."""

    def __init__(self, what: object, why: str, hint: str) -> None:
        super().__init__(f"{what} cannot be used here: {why}; {hint}.")

    @classmethod
    def format(cls, path: object, found: object, reads: object, hint: str) -> Self:
        """An artefact in a format that this version does not read."""
        return cls.from_sentence(f"{path} has format {found}, and this version reads {reads}; {hint}.")

    @classmethod
    def lacks(cls, what: str, why: str) -> Self:
        """A result that this model, bank or prediction cannot give."""
        return cls.from_sentence(f"There are no {what}: {why}.")

    @classmethod
    def run(cls, path: object, why: str) -> Self:
        """An interrupted run that cannot be continued."""
        return cls.from_sentence(f"The run in {path} cannot be resumed: {why}; pass --overwrite to start afresh.")

    @classmethod
    def bank(cls, bank: object, made_by: str, model: str) -> Self:
        """A bank that another model made."""
        return cls.from_sentence(
            f"The bank {bank} was made by model {made_by[:12]}, not by model {model[:12]}; "
            "their embeddings do not compare. Run: cmrcnet index MODEL COHORT.csv --out BANK"
        )

    @classmethod
    def index(cls, bank: object, why: str) -> Self:
        """A search index that was made for another bank, or is damaged."""
        return cls.from_sentence(
            f"The search index in {bank} does not match its bank: {why}; rebuild it: cmrcnet bank rebuild-index {bank}"
        )


class Leakage(CmrcnetError, ValueError):
    """A model, bank or student was trained on the patient that it would be tested on."""

    def __init__(self, artefact: str, seen: Sequence[str]) -> None:
        super().__init__(
            f"{artefact} has seen {_few(list(seen))} in training, so it cannot be evaluated there; "
            "train it without them (cmrcnet evaluate does so for every fold)."
        )


# --- runs --------------------------------------------------------------------------------------------------------


class WorkerDied(CmrcnetError, ChildProcessError):
    """A worker process ended without a result."""

    def __init__(self, job: str, how: str) -> None:
        super().__init__(
            f"The worker process that ran {job} ended without a result ({how}), most often because "
            "memory ran out or because a script starts workers outside `if __name__ == '__main__':`; run again with "
            "fewer workers (--workers 1) or devices (--devices 1), and --resume keeps what is finished."
        )


class Diverged(CmrcnetError, ArithmeticError):
    """The training loss is no longer finite."""

    def __init__(self, epoch: int) -> None:
        super().__init__(
            f"The training loss is not finite in epoch {epoch}; use a smaller train.learning_rate, a train.clip_norm "
            "above 0, or train.precision float32."
        )
