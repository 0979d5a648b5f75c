"""A student on a slide: the same table in memory and on disk, whatever the blocks, and behind a stop."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

from cmrcnet.analysis.attribution import attribution
from cmrcnet.errors import BadOption, Incompatible, SectionError, TooFew, UnknownName
from cmrcnet.export.nuclei import Nuclei, nuclei_table
from cmrcnet.export.stored_prediction import StoredPrediction
from cmrcnet.export.table_file import TableFile
from cmrcnet.features import resumable
from cmrcnet.features.extract import extract
from cmrcnet.features.spec import FeatureSpec
from cmrcnet.inference import predict as predict_module
from cmrcnet.inference.predict import LOCK, predict, predict_to_file
from cmrcnet.inference.predictor import PredictOptions, make_predictor
from cmrcnet.inference.slide_batch import SlidePredictor, predict_slides
from cmrcnet.retrieval.bank import build_bank
from cmrcnet.slides.section import Spots
from cmrcnet.storage.atomic import file_lock, make_partial
from cmrcnet.testing import assert_prediction_table
from cmrcnet.workers import WorkerOptions
from tests.inference.small_model import noise_slide, small_cohort, small_model
from tests.models.test_student import GENES, small_student

SIDE = 800
GRID_UM = 66.0


@pytest.fixture(scope="module")
def student():
    return small_student()


@pytest.fixture(scope="module")
def slide():
    return noise_slide(3, side=SIDE)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(resumable, "CHUNK", 16)
    monkeypatch.setattr(predict_module, "chunk_size", lambda genes: 16)


def predictor_of(student):
    return make_predictor(student, None, PredictOptions(grid_um=GRID_UM))


def test_it_equals_the_obvious_path(student, slide):
    """All tokens at once, their mean, reduced, through the head, onto the genes."""
    table = predict(student, slide, grid_um=GRID_UM)
    spec = FeatureSpec.of(student.config, student.encoder)
    tokens = np.asarray(extract(student.encoder, slide, table.obsm["spatial"], spec), np.float32)
    wanted = student.predict(tokens.mean(axis=1), np.arange(len(GENES)))
    np.testing.assert_allclose(table.X, wanted, atol=1e-3)
    assert list(table.var_names) == list(GENES)


def test_the_file_holds_the_table_that_is_returned(student, slide, tmp_path):
    table = predict(student, slide, grid_um=GRID_UM)
    assert predict_to_file(predictor_of(student), slide, tmp_path / "p.h5ad") == table.shape
    written = anndata.read_h5ad(tmp_path / "p.h5ad")
    assert_prediction_table(written)
    np.testing.assert_array_equal(written.X, table.X)
    np.testing.assert_array_equal(written.obs.to_numpy(), table.obs.to_numpy())
    assert dict(written.uns["cmrcnet"]) == dict(table.uns["cmrcnet"])
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad"]


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_blocks_change_no_number(student, slide, monkeypatch, block):
    whole = predict(student, slide, grid_um=GRID_UM)
    monkeypatch.setattr(predict_module, "chunk_size", lambda genes: block)
    np.testing.assert_allclose(predict(student, slide, grid_um=GRID_UM).X, whole.X, atol=1e-4)


def test_a_table_states_the_window_that_its_values_are_for_whatever_the_pitch(student, slide, tmp_path):
    """Else nuclei would take the pitch of the grid for it."""
    predict_to_file(predictor_of(student), slide, tmp_path / "p.h5ad")
    with StoredPrediction(tmp_path / "p.h5ad") as stored:
        assert stored.facts["spot_diameter_um"] == GRID_UM
        (x, y), mpp = stored.centre_px[0], float(stored.facts["mpp"])
        nuclei = Nuclei(("in", "out"), np.array([[x - 39.9 / mpp, y], [x - 40.1 / mpp, y]]))
        table = nuclei_table(stored, nuclei)
    assert table["window_um"].tolist() == [80.0, 80.0]  # a patch of 160 px at 0.5 um
    assert (table["location"] != "").tolist() == [True, False]


def test_chosen_genes_are_those_of_all(student, slide):
    whole = predict(student, slide, grid_um=GRID_UM)
    some = predict(student, slide, grid_um=GRID_UM, genes=["GENE7", "GENE2"])
    assert list(some.var_names) == ["GENE7", "GENE2"]
    np.testing.assert_allclose(some.X, whole[:, ["GENE7", "GENE2"]].X, atol=1e-5)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_stopped_at_any_block_it_goes_on_behind_it(student, slide, tmp_path, monkeypatch, at):
    out, write, written, seen = tmp_path / "p.h5ad", TableFile.write, [], []

    def stops(self, rows, *given, **named):
        if len(written) == at:
            raise KeyboardInterrupt
        written.append(rows)
        write(self, rows, *given, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TableFile, "write", stops)
        predict_to_file(predictor_of(student), slide, out)
    assert not out.exists() and (tmp_path / "p.h5ad.partial").is_dir()
    prepare = type(student.encoder).prepare
    monkeypatch.setattr(type(student.encoder), "prepare", lambda self, given: seen.append(1) or prepare(self, given))
    predict_to_file(predictor_of(student), slide, out)
    assert seen == []  # nothing is encoded twice
    np.testing.assert_array_equal(anndata.read_h5ad(out).X, predict(student, slide, grid_um=GRID_UM).X)


def test_the_state_of_another_student_is_never_gone_on_with(student, slide, tmp_path, monkeypatch):
    out, write = tmp_path / "p.h5ad", TableFile.write

    def stops(self, rows, *given, **named):
        if rows.start:
            raise KeyboardInterrupt
        write(self, rows, *given, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TableFile, "write", stops)
        predict_to_file(predictor_of(small_student(seed=1)), slide, out)
    predict_to_file(predictor_of(student), slide, out)
    np.testing.assert_array_equal(anndata.read_h5ad(out).X, predict(student, slide, grid_um=GRID_UM).X)


def test_there_is_no_attribution(student, slide):
    table = predict(student, slide, grid_um=200)
    with pytest.raises(Incompatible, match="predict with MODEL and --bank"):
        attribution(table, table.obs_names[0])
    with pytest.raises(UnknownName):
        attribution(table, "nowhere")


def test_many_slides_share_a_student(student, tmp_path):
    from PIL import Image

    (tmp_path / "slides").mkdir()
    for seed, name in enumerate(("one", "two")):
        Image.fromarray(noise_slide(seed).read(0, 0, 400, 400)).save(tmp_path / "slides" / f"{name}.png")
    slides = sorted((tmp_path / "slides").iterdir())

    def statuses(of=student) -> list[str]:
        predictor = SlidePredictor(lambda: predictor_of(of), tmp_path / "out", mpp=0.5)
        done = predict_slides(predictor, slides, WorkerOptions())
        return [outcome.problem or outcome.status for outcome in done.outcomes]

    assert statuses() == ["predicted", "predicted"]
    assert statuses() == ["done before", "done before"]
    (tmp_path / "out" / "one.h5ad").unlink()
    work = tmp_path / "out" / "one.h5ad.partial"
    make_partial(work, ["table.h5ad"])
    with file_lock(work / LOCK):
        in_use, done = statuses()
    assert "is being written by another process" in in_use and done == "done before"
    assert statuses() == ["predicted", "done before"]
    assert all("student_fingerprint" in each for each in statuses(small_student(seed=1)))


def test_a_bank_and_its_options_are_refused(student, slide):
    for option in ({"k": 3}, {"head": "ridge"}, {"intervals": True}, {"abstain": 0.2}, {"weighting": "mean"}):
        with pytest.raises(BadOption, match="wanted nothing with a student, which has no bank"):
            predict(student, slide, **option)
    with pytest.raises(BadOption, match="bank is 'bank'; wanted nothing with a student"):
        predict(student, slide, bank=build_bank(small_model(), small_cohort()))


def test_what_cannot_be_predicted_is_refused(student, slide):
    with pytest.raises(UnknownName):
        predict(student, slide, genes=["NOBODY"])
    with pytest.raises(TooFew):
        predict(student, slide, genes=[])
    with pytest.raises(SectionError):
        predict(student, slide, spots=Spots(("far",), np.array([[9000.0, 10.0]]), 55.0))
