"""The command line: every flag arrives, every refusal is one sentence and exit code 2."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from pathlib import Path

import pytest

from cmrcnet.cli import app
from cmrcnet.cli.options import ConfigOptions
from cmrcnet.errors import BadOption, CmrcnetWarning


def _sample(hint: object) -> tuple[list[str], object]:
    """One value for a parameter: as words of the command line, and as it should arrive."""
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return [str(options[-1])], options[-1]
    if options and typing.get_origin(hint) is not list:
        return _sample(options[0])
    if hint == list[Path]:
        return ["a/b", "c"], [Path("a/b"), Path("c")]
    if hint == list[float]:
        return ["0.5", "2"], [0.5, 2.0]
    if typing.get_origin(hint) is list:
        return ["a.b=1", "c"], ["a.b=1", "c"]
    return {
        Path: (["some/where"], Path("some/where")),
        str: (["word"], "word"),
        int: (["7"], 7),
        float: (["0.25"], 0.25),
        bool: ([], True),
    }[hint]


def arguments_of(verb: str):
    """Every argument of a command as the parser sees it; option groups are flattened to their fields."""
    command = app.make_app()
    for word in verb.split():
        command = command[word]
    return [each for each in command.assemble_argument_collection(parse_docstring=True) if each.name != "*"]


def flattened(bound: inspect.BoundArguments) -> dict[str, object]:
    """Values by option name; the fields of an option group stand for the group."""

    def fields(name: str, value: object) -> dict[str, object]:
        if not dataclasses.is_dataclass(value):
            return {f"--{name.strip('_').replace('_', '-')}": value}
        return {key: one for each in vars(value).items() for key, one in fields(*each).items()}

    return {key: one for each in bound.arguments.items() for key, one in fields(*each).items()}


@pytest.mark.parametrize("verb", app.VERBS)
def test_every_flag_arrives_in_its_function(verb):
    words, wanted = verb.split(), {}
    for argument in arguments_of(verb):
        tokens, value = _sample(argument.hint)
        words += [argument.name, *tokens]
        wanted[argument.name] = value
    function, bound, *_ = app.make_app().parse_args(words, exit_on_error=False, print_error=False)
    assert function is app.VERBS[verb]
    assert flattened(bound) == wanted


@pytest.mark.parametrize("verb", app.VERBS)
def test_help_tells_every_parameter(verb, capsys):
    assert app.main([*verb.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    for argument in arguments_of(verb):
        assert argument.name in shown
        assert len((argument.parameter.help or "").split()) >= 2, f"{verb} {argument.name} has no help"


def test_a_group_of_options_is_the_same_in_every_command():
    of = {verb: {each.name: each.parameter.help for each in arguments_of(verb)} for verb in app.VERBS}
    for verbs, names in (
        (("train", "evaluate", "sweep", "transfer"), ("--config", "--set")),
        (("index", "bank merge", "bank rebuild-index"), ("--search", "--recall")),
        (
            ("evaluate", "sweep", "transfer"),
            ("--group-by", "--seeds", "--engine-workers", "--workers", "--resume", "--overwrite"),
        ),
    ):
        for name in names:
            assert len({of[verb][name] for verb in verbs}) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bogus"], "Unknown command"),
        (["train"], "requires an argument"),
        (["train", "cohort.csv", "--out", "model", "--colour", "blue"], "--colour"),
        (["train", "cohort.csv", "--out", "model", "--config", "nonsense"], "There is no preset 'nonsense'"),
        (["train", "cohort.csv", "--out", "model", "--set", "train.epoch=3"], "'train.epoch', which is not an option"),
        (["train", "cohort.csv", "--out", "model", "--set", "train.epochs"], "KEY=VALUE"),
        (["train", "cohort.csv", "--out", "model", "--set", "train.epochs=many"], "a whole number"),
        (["inspect", "nowhere.csv"], "nowhere.csv"),
        (["predict", "model", "slide.jpg", "--bank", "bank", "--out", "table.csv"], "ends in .h5ad"),
        (["presets", "nonsense"], "There is no preset"),
        (["sweep", "c.csv", "--out", "s", "--over", "head.kk=1"], "'head.kk', which is not an option"),
        (["sweep", "c.csv", "--out", "s", "--over", "head.k="], "values parted by commas"),
        (["sweep", "c.csv", "--out", "s"], "one of --over KEY=a,b,c, --preset NAME and --ablate"),
        (["sweep", "c.csv", "--out", "s", "--preset", "magic"], "There is no sweep preset 'magic'"),
        (["sweep", "c.csv", "--out", "s", "--preset", "k", "--only", "k=11"], "There is no trial 'k=11'"),
        (["index", "m", "c.csv", "--out", "b", "--recall", "1.5"], "recall is 1.5; wanted a share"),
        (["index", "m", "c.csv", "--out", "b", "--search", "exact", "--nprobe", "9"], "nprobe is 9; wanted "),
        (["index", "m", "c.csv", "--out", "b", "--search", "hnsw"], "--search"),
        (["bank", "drop", "nowhere", "P1"], "The bank nowhere does not exist"),
        (["bank", "list", "nowhere"], "The bank nowhere does not exist"),
        (["transfer", "a.csv", "b.csv", "--out", "t"], "a.csv"),
    ],
)
def test_a_refusal_is_one_sentence_and_exit_code_two(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert app.main(words) == app.USER_ERROR
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_has_its_own_exit_code(capsys):
    def verb():
        raise KeyboardInterrupt

    assert app.main(["stop"], verbs={"stop": verb}) == app.INTERRUPTED
    assert "--resume" in capsys.readouterr().err


def test_a_full_disk_is_a_sentence(capsys):
    def verb():
        raise OSError(28, "No space left on device", "somewhere/table.h5ad")

    assert app.main(["write"], verbs={"write": verb}) == app.USER_ERROR
    assert "The disk is full: somewhere/table.h5ad" in capsys.readouterr().err


def test_faults_of_our_own_are_not_disguised():
    def verb():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        app.main(["divide"], verbs={"divide": verb})


def test_problems_found_by_inspect_have_exit_code_one():
    def verb() -> bool:
        return False

    assert app.main(["look"], verbs={"look": verb}) == app.PROBLEMS_FOUND


def test_a_config_that_is_printed_can_be_loaded_again(capsys, tmp_path):
    from cmrcnet.config import Config

    assert app.main(["presets", "paper"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert Config.load(tmp_path / "mine.yaml") == Config.load("paper")


def test_settings_are_read_as_yaml():
    config = ConfigOptions(set_=["head.k=7", "model.blocks=[1, 2]", "train.learning_rate=3e-4"]).load()
    assert (config.head.k, config.model.blocks, config.train.learning_rate) == (7, (1, 2), 3e-4)
    with pytest.raises(BadOption, match="KEY=VALUE"):
        ConfigOptions(set_=["head.k"]).load()


def test_our_warnings_are_plain_lines(capfd):
    import warnings

    def verb():
        warnings.warn("the run only guesses", CmrcnetWarning, stacklevel=1)

    before = warnings.filters[:], warnings.showwarning
    try:
        assert app.main(["warn"], verbs={"warn": verb}) == 0
    finally:
        warnings.filters[:], warnings.showwarning = before
    assert "warning: the run only guesses" in capfd.readouterr().err
