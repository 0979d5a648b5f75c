"""Every error is a sentence that says what to do, and an exception that a library user would expect to catch."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from cmrcnet import errors

CLASSES = [
    kind for _, kind in sorted(vars(errors).items()) if inspect.isclass(kind) and issubclass(kind, errors.CmrcnetError)
]
LEAVES = [kind for kind in CLASSES if kind is not errors.CmrcnetError]
MAKERS = [
    (kind, name)
    for kind in LEAVES
    for name, member in vars(kind).items()
    if name == "__init__" or isinstance(member, classmethod)
]
"""Every class with every constructor of its own: `__init__` and class methods."""

# One value for each annotation that the constructors use; a new annotation needs a line here.
EXAMPLES = {
    "str": "apple",
    "object": "pear.csv",
    "int": 17,
    "float": 0.25,
    "Sequence[str]": ("plum", "cherry"),
    "tuple[int, int]": (640, 480),
}


def example(kind: type[errors.CmrcnetError], maker: str) -> tuple[errors.CmrcnetError, dict]:
    make = kind if maker == "__init__" else getattr(kind, maker)
    given = {}
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            continue
        assert parameter.annotation in EXAMPLES, f"{kind.__name__}({name}: {parameter.annotation}) has no example"
        given[name] = EXAMPLES[parameter.annotation]
    return make(**given), given


def test_there_is_one_class_for_each_thing_to_do_and_no_more():
    assert 15 <= len(LEAVES) <= 19


@pytest.mark.parametrize("kind", CLASSES)
def test_each_explains_itself(kind):
    assert kind.__doc__
    assert kind.__doc__.split("\n\n")[0].strip().endswith(".")
    assert kind.__module__ == "cmrcnet.errors"


@pytest.mark.parametrize("kind", LEAVES)
def test_each_has_a_constructor_of_its_own(kind):
    assert any(each is kind for each, _ in MAKERS)


@pytest.mark.parametrize("kind", LEAVES)
def test_each_is_also_a_builtin_that_users_catch(kind):
    builtin = [base for base in kind.__mro__ if base.__module__ == "builtins"]
    assert set(builtin) - {Exception, BaseException, object}


@pytest.mark.parametrize(("kind", "maker"), MAKERS)
def test_each_is_one_sentence_on_one_line(kind, maker):
    sentence = str(example(kind, maker)[0])
    assert "\n" not in sentence
    assert "  " not in sentence
    assert sentence[0] not in "'\"", "a repr, not a sentence"
    last = sentence.rsplit(": ", 1)[-1]
    assert sentence.endswith(".") or last.startswith(("cmrcnet ", "pip install ")), sentence
    assert len(sentence.split()) >= 5, "too short to say what was wanted, what came and what to do"


@pytest.mark.parametrize(("kind", "maker"), MAKERS)
def test_each_names_what_it_was_told(kind, maker):
    error, given = example(kind, maker)
    told = [value for value in given.values() if isinstance(value, str)]
    told += [item for value in given.values() if isinstance(value, tuple) for item in value if isinstance(item, str)]
    assert all(word in str(error) for word in told), str(error)


@pytest.mark.parametrize(("kind", "maker"), MAKERS)
def test_each_survives_copying_and_another_process(kind, maker):
    error, _ = example(kind, maker)
    assert type(error) is kind
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is kind
        assert str(again) == str(error)


@pytest.mark.parametrize("kind", LEAVES)
def test_each_can_say_a_sentence_of_its_own(kind):
    error = kind.from_sentence("The plum is unripe; wait.")
    assert type(error) is kind
    assert str(error) == "The plum is unripe; wait."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_long_lists_are_cut_and_counted():
    sentence = str(errors.SectionError.repeated_barcodes([f"b{i}" for i in range(12)]))
    assert "b4" in sentence
    assert "b5" not in sentence
    assert "and 7 more" in sentence


def test_a_key_error_is_not_printed_as_a_repr():
    assert str(errors.UnknownName("section", "X9", ("A1", "B2"))) == "There is no section 'X9'; known: A1, B2."
