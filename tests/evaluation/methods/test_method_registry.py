"""The names of the methods, and the way in for a user's own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from cmrcnet.errors import BadOption, UnknownName
from cmrcnet.evaluation.methods import chosen_methods, method_of, shipped_methods
from cmrcnet.evaluation.methods.controls import GeneMean
from cmrcnet.evaluation.protocol.evaluate import evaluate

PAGES = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture
def module_here(tmp_path, monkeypatch):
    """Writes a module into the current folder, and forgets it afterwards."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    yield write
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_the_page_of_methods_names_every_one_in_the_order_of_the_tables():
    page = (PAGES / "concepts" / "methods-compared.md").read_text()
    assert tuple(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) == shipped_methods()


def test_the_class_of_the_how_to_takes_part_in_a_run(module_here, small_cohort, small_config, small_cache):
    page = (PAGES / "how-to" / "own-method.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    module_here("nearest_features", code)
    before = list(sys.path)
    run = evaluate(
        small_cohort, small_config, methods=["nearest_features:NearestFeatures", "random-k"], cache=small_cache
    )
    assert list(run.methods) == ["nearest-features", "random-k"]
    assert run.mean("nearest-features") > run.mean("random-k")
    assert sys.path == before
    assert len(code.strip().splitlines()) <= 20


def test_an_object_ready_made_is_taken_as_it_is(module_here):
    module_here("ready", "class A:\n    name = 'a'\n    about = 'b'\n    def fit(self, training): ...\nmine = A()\n")
    mine = method_of("ready:mine")
    assert mine is sys.modules["ready"].mine
    assert method_of("ready:A").name == "a"
    mine = GeneMean()
    assert chosen_methods([mine, "random-k"])[0] is mine


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere_at_all:Thing", "nowhere_at_all:Thing is not a method: there is no module nowhere_at_all"),
        ("flawed:Missing", "the module flawed has no Missing"),
        ("flawed:", "the module flawed has no object of an empty name"),
        (":Thing", "'' is not the name of a module"),
        ("flawed:Nameless", "its name is None, not a text"),
        ("flawed:Silent", "its about is '  ', not a text"),
        ("flawed:Unfit", "it has no fit"),
        ("flawed:Greedy", "its fit does not take the training data alone"),
        ("flawed:Needy", "it cannot be made without arguments"),
    ],
)
def test_what_is_no_method_is_refused_in_one_sentence(module_here, name, sentence):
    module_here(
        "flawed",
        "class Nameless:\n    about = 'x'\n    def fit(self, training): ...\n"
        "class Silent:\n    name, about = 'x', '  '\n    def fit(self, training): ...\n"
        "class Unfit:\n    name, about = 'x', 'y'\n"
        "class Greedy:\n    name, about = 'x', 'y'\n    def fit(self, training, more): ...\n"
        "class Needy:\n    name, about = 'x', 'y'\n    def __init__(self, a): ...\n    def fit(self, training): ...\n",
    )
    with pytest.raises(BadOption, match=re.escape(sentence)):
        method_of(name)


def test_a_fault_inside_the_users_module_is_not_hidden(module_here):
    module_here("broken", "import a_library_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        method_of("broken:Thing")


def test_names_are_refused_when_unknown_or_double():
    with pytest.raises(UnknownName, match=r"no method 'magic'; known: cmrcnet, cmrcnet-retrieval.*module:object"):
        method_of("magic")
    with pytest.raises(BadOption, match="each named once"):
        chosen_methods(["gene-mean", GeneMean()])
    with pytest.raises(BadOption, match="at least one method"):
        chosen_methods([])


def test_names_are_known_without_waking_torch():
    import subprocess

    line = "import sys; from cmrcnet.evaluation.methods import shipped_methods; shipped_methods(); "
    done = subprocess.run(
        [sys.executable, "-c", line + "print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_depth_reaches_only_a_method_that_says_it_is_a_diagnostic(small_cohort, small_config, small_cache):
    from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
    from cmrcnet.evaluation.methods.method import DiagnosticLocation, Location, location_of

    section = small_cohort.read("P1S1")
    features = PooledFeatures(small_config, small_cache)
    assert type(location_of(section, features)) is Location
    assert type(location_of(section, features, GeneMean())) is Location

    class Sly(GeneMean):
        diagnostic = "yes"

    assert type(location_of(section, features, Sly())) is Location
    told = location_of(section, features, method_of("depth-null"))
    assert type(told) is DiagnosticLocation
    np.testing.assert_allclose(told.log_depth, np.log1p(section.counts.toarray().sum(axis=1)))
    assert set(vars(told)) - set(vars(location_of(section, features))) == {"log_depth"}


def test_the_depth_null_predicts_no_place_without_depth(small_cohort, small_config, small_cache):
    from cmrcnet.evaluation.methods.controls import DepthLine
    from cmrcnet.evaluation.methods.frozen_features import PooledFeatures
    from cmrcnet.evaluation.methods.method import location_of

    line = DepthLine(("a", "b"), 2.0, np.array([1.0, -1.0]), np.array([5.0, 5.0]), {})
    section = small_cohort.read("P1S1")
    with pytest.raises(BadOption, match="a location without depth"):
        line.predict(location_of(section, PooledFeatures(small_config, small_cache)))
