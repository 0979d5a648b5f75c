"""A slide predicted into a file: the same table as in memory, whatever happened on the way."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import anndata
import numpy as np
import pytest

from cmrcnet.errors import BadInput, InUse, NoSpace, OutputExists
from cmrcnet.export.table_file import TableFile
from cmrcnet.features import dense, resumable
from cmrcnet.features import extract as extract_module
from cmrcnet.features.extract import extract
from cmrcnet.features.spec import FeatureSpec
from cmrcnet.inference import predict as predict_module
from cmrcnet.inference.location_features import LocationEncoder, LocationFeatures
from cmrcnet.inference.predict import LOCK, predict, predict_to_file
from cmrcnet.inference.predictor import BankPredictor, PredictOptions, make_predictor
from cmrcnet.models.encoders import create_image_encoder
from cmrcnet.retrieval.bank import build_bank
from cmrcnet.search.exact import ExactSearch
from cmrcnet.slides.section import Spots
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.storage.atomic import file_lock, make_partial
from cmrcnet.storage.ownership import MARKER
from cmrcnet.testing import assert_prediction_table
from tests.inference.small_model import locations, noise_slide, small_cohort, small_model

SIDE = 800
GRID_UM = 66.0
LOCATIONS = 36


@pytest.fixture(scope="module")
def pixels():
    """Tissue for 36 locations 66 um apart: three parts of features, three blocks of the table."""
    return noise_slide(3, side=SIDE).read(0, 0, SIDE, SIDE)


@pytest.fixture
def slide(pixels):
    return ArraySlide(pixels, 0.5, "slide")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(resumable, "CHUNK", 16)
    monkeypatch.setattr(predict_module, "chunk_size", lambda genes: 16)


@pytest.fixture
def table(model, bank, slide):
    """What `predict` returns."""
    return predict(model, slide, bank=bank, grid_um=GRID_UM)


@pytest.fixture
def encoded(model, monkeypatch) -> list[int]:
    """How many patches the encoder has seen, call by call."""
    seen, prepare = [], type(model.encoder).prepare

    def counting(self, patches):
        seen.append(len(patches))
        return prepare(self, patches)

    monkeypatch.setattr(type(model.encoder), "prepare", counting)
    return seen


def predictor_of(model, bank, **options):
    return make_predictor(model, bank, PredictOptions(grid_um=GRID_UM, **options))


def written_by(model, bank, slide, out, **options):
    predict_to_file(predictor_of(model, bank, **options), slide, out)
    return anndata.read_h5ad(out)


def assert_same(written, table) -> None:
    """Every number and every word of two prediction tables."""
    np.testing.assert_array_equal(written.X, table.X)
    np.testing.assert_array_equal(written.layers["neighbour_std"], table.layers["neighbour_std"])
    for name in table.obsm:
        np.testing.assert_array_equal(written.obsm[name], table.obsm[name])
    np.testing.assert_array_equal(written.obs.to_numpy(), table.obs.to_numpy())
    assert list(written.obs_names) == list(table.obs_names) and list(written.var_names) == list(table.var_names)
    ours, theirs = dict(written.uns["cmrcnet"]), dict(table.uns["cmrcnet"])
    assert ours.pop("neighbour_spots").equals(theirs.pop("neighbour_spots"))
    assert ours == theirs


def test_the_file_holds_the_table_that_predict_returns(model, bank, slide, table, tmp_path):
    predictor = predictor_of(model, bank)
    assert LOCATIONS > resumable.CHUNK
    assert predict_to_file(predictor, slide, tmp_path / "p.h5ad") == (LOCATIONS, len(bank.genes))
    written = anndata.read_h5ad(tmp_path / "p.h5ad")
    assert_prediction_table(written)
    assert_same(written, table)
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad"]


def test_views_neighbourhood_and_standardisation_are_those_of_the_whole_slide(slide, tmp_path, encoded):
    """The obvious path: all tokens of all locations in memory, embedded, and the same bank searched."""
    model = small_model(views=True)
    bank = build_bank(model, small_cohort())
    predictor = predictor_of(model, bank)
    predict_to_file(predictor, slide, tmp_path / "p.h5ad")
    assert sum(encoded) == 2 * LOCATIONS
    found = anndata.read_h5ad(tmp_path / "p.h5ad")
    assert_same(found, predict(model, slide, bank=bank, grid_um=GRID_UM))
    tokens = extract(model.encoder, slide, found.obsm["spatial"], FeatureSpec.of(model.config, model.encoder))
    wanted = ExactSearch(bank.vectors).nearest(model.embed_tokens(tokens), predictor.config.k)
    np.testing.assert_allclose(found.obsm["neighbour_similarity"], wanted.similarity, atol=1e-5)


def test_stopped_between_views_it_goes_on(slide, tmp_path, monkeypatch, encoded):
    model = small_model(views=True)
    bank = build_bank(model, small_cohort())
    predictor, out = predictor_of(model, bank), tmp_path / "p.h5ad"
    keep, kept = resumable.ResumableFeatures.keep, []

    def stops(self, rows, *given):
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(rows)
        keep(self, rows, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resumable.ResumableFeatures, "keep", stops)
        predict_to_file(predictor, slide, out)
    before = sum(encoded)
    predict_to_file(predictor, slide, out)
    assert sum(encoded) - before == 2 * LOCATIONS - 3 * resumable.CHUNK
    assert_same(anndata.read_h5ad(out), predict(model, slide, bank=bank, grid_um=GRID_UM))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_stopped_at_any_block_it_goes_on_behind_it(model, bank, slide, table, tmp_path, monkeypatch, encoded, at):
    predictor, out = predictor_of(model, bank), tmp_path / "p.h5ad"
    write, rows = TableFile.write, []

    def stops(self, block, *given, **named):
        if len(rows) == at:
            raise KeyboardInterrupt
        rows.append(block)
        write(self, block, *given, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TableFile, "write", stops)
        predict_to_file(predictor, slide, out)
    assert not out.exists() and sum(encoded) == LOCATIONS
    later = []
    monkeypatch.setattr(
        TableFile, "write", lambda self, block, *a, **b: (later.append(block), write(self, block, *a, **b))
    )
    predict_to_file(predictor_of(model, bank), slide, out)
    assert sum(encoded) == LOCATIONS  # none twice
    assert [block.start for block in rows + later] == list(range(0, LOCATIONS, 16))
    assert_same(anndata.read_h5ad(out), table)


def test_stopped_while_encoding_no_finished_part_is_encoded_again(
    model, bank, slide, table, tmp_path, monkeypatch, encoded
):
    predictor, out = predictor_of(model, bank), tmp_path / "p.h5ad"
    keep = resumable.ResumableFeatures.keep

    def stops(self, rows, *given):
        keep(self, rows, *given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resumable.ResumableFeatures, "keep", stops)
        predict_to_file(predictor, slide, out)
    assert sum(encoded) == resumable.CHUNK
    predict_to_file(predictor, slide, out)
    assert sum(encoded) == LOCATIONS
    assert_same(anndata.read_h5ad(out), table)


def test_a_draft_of_other_genes_keeps_the_features_and_of_another_slide_nothing(
    model, bank, slide, tmp_path, monkeypatch, encoded
):
    def stops(self, frame):
        raise KeyboardInterrupt

    out = tmp_path / "p.h5ad"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TableFile, "finish", stops)
        predict_to_file(predictor_of(model, bank), slide, out)
    once = sum(encoded)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TableFile, "finish", stops)
        predict_to_file(predictor_of(model, bank, genes=["GENE3", "GENE1"]), slide, out)
    assert sum(encoded) == once
    other = noise_slide(4, side=SIDE)
    predict_to_file(predictor_of(model, bank, genes=["GENE3", "GENE1"]), other, out)
    assert sum(encoded) > once
    assert_same(anndata.read_h5ad(out), predict(model, other, bank=bank, grid_um=GRID_UM, genes=["GENE3", "GENE1"]))


@pytest.mark.parametrize("where", ["reserve", "_to_disk"])
def test_a_full_disk_leaves_no_table_and_keeps_what_was_encoded(
    model, bank, slide, table, tmp_path, monkeypatch, encoded, where
):
    predictor, out = predictor_of(model, bank), tmp_path / "p.h5ad"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(NoSpace, match=r"The disk is full: .* was not written"):
        patch.setattr(f"cmrcnet.export.table_file.{where}", full)
        predict_to_file(predictor, slide, out)
    assert not out.exists() and not list(tmp_path.rglob("table.h5ad"))
    predict_to_file(predictor, slide, out)
    assert sum(encoded) == LOCATIONS
    assert_same(anndata.read_h5ad(out), table)


def test_a_disk_that_is_too_small_is_told_before_anything_is_encoded(
    model, bank, slide, tmp_path, monkeypatch, encoded
):
    predictor = predictor_of(model, bank)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(NoSpace, match=r"p\.h5ad takes about .* GB while it is made, and 0\.0 GB are free there"):
        predict_to_file(predictor, slide, tmp_path / "p.h5ad")
    assert encoded == [] and list(tmp_path.iterdir()) == []


def test_what_another_process_is_writing_is_left_to_it(model, bank, slide, tmp_path, encoded):
    work = tmp_path / "p.h5ad.partial"
    make_partial(work, ["table.h5ad"])
    (work / "table.h5ad").touch()
    with file_lock(work / LOCK), pytest.raises(InUse, match=r"p\.h5ad is being written by another process; wait"):
        predict_to_file(predictor_of(model, bank), slide, tmp_path / "p.h5ad")
    assert encoded == [] and sorted(path.name for path in work.iterdir()) == [MARKER, LOCK, "table.h5ad"]


def test_a_slide_that_breaks_on_the_way_leaves_nothing(model, bank, slide, tmp_path, monkeypatch):
    predictor = predictor_of(model, bank)
    read = slide.read

    def broken(x, y, *size):
        if y > SIDE // 2:
            raise BadInput("slide.svs", "a slide", "its pixels cannot be decoded")
        return read(x, y, *size)

    monkeypatch.setattr(slide, "read", broken)
    with pytest.raises(BadInput, match="its pixels cannot be decoded"):
        predict_to_file(predictor, slide, tmp_path / "p.h5ad")
    assert list(tmp_path.iterdir()) == []


def test_further_layers_and_columns_of_a_chunk_reach_the_table(model, bank, slide, tmp_path, monkeypatch):
    """The same in memory and on disk."""
    plain = BankPredictor.predict_chunk

    def with_more(self, features):
        chunk = plain(self, features)
        chunk.layers["low"] = chunk.mean - chunk.layers["neighbour_std"]
        chunk.obs["first"] = chunk.mean[:, 0]
        chunk.obsm["patient_weights"] = np.column_stack([chunk.obs["first"]] * 3)
        return chunk

    monkeypatch.setattr(BankPredictor, "predict_chunk", with_more)
    written = written_by(model, bank, slide, tmp_path / "p.h5ad")
    np.testing.assert_array_equal(written.layers["low"], written.X - written.layers["neighbour_std"])
    np.testing.assert_array_equal(written.obs["first"], written.X[:, 0])
    np.testing.assert_array_equal(written.obsm["patient_weights"][:, 2], written.X[:, 0])
    assert_same(written, predict(model, slide, bank=bank, grid_um=GRID_UM))


def test_a_folder_of_the_users_named_as_our_partial_is_neither_used_nor_removed(model, bank, slide, tmp_path):
    theirs = tmp_path / "p.h5ad.partial"
    theirs.mkdir()
    (theirs / "lock").write_text("theirs, longer than any lock")
    with pytest.raises(OutputExists, match=r"p\.h5ad\.partial exists already; it is a folder that cmrcnet did not"):
        predict_to_file(predictor_of(model, bank), slide, tmp_path / "p.h5ad")
    (tmp_path / "q.h5ad.partial").symlink_to(theirs)
    with pytest.raises(OutputExists, match=r"q\.h5ad\.partial exists already; it is a link"):
        predict_to_file(predictor_of(model, bank), slide, tmp_path / "q.h5ad")
    (tmp_path / "r.h5ad").symlink_to(theirs / "lock")
    with pytest.raises(OutputExists, match=r"r\.h5ad exists already; it is a link"):
        predict_to_file(predictor_of(model, bank), slide, tmp_path / "r.h5ad")
    assert [path.name for path in theirs.iterdir()] == ["lock"]
    assert (theirs / "lock").read_text() == "theirs, longer than any lock"


@pytest.mark.parametrize(
    "where, constant",
    [
        *((dense, each) for each in ("DENSE_FORMAT", "TILE_PX", "HALO_PX", "BLOCK_PX", "ALIGN_PX")),
        (extract_module, "CROP_FORMAT"),
        (extract_module, "_STATISTICS_FORMAT"),
    ],
)
def test_features_made_another_way_are_neither_continued_nor_taken_from_the_cache(slide, tmp_path, where, constant):
    at = locations(3)
    resnet = create_image_encoder("timm:test_resnet", weights="random")
    spec = FeatureSpec(scales_um=(112.0,), method="dense", engine="torch", precision="float32", device="cpu")
    encoder = LocationEncoder(resnet, spec, np.asarray, resnet.dim, "name")
    layer = extract_module.STATISTICS if constant == "_STATISTICS_FORMAT" else 0

    def names() -> list[str]:
        made_by = extract_module._made_by(resnet, spec, slide)
        entry = extract_module._layer_name(slide, at.centre_px, spec, layer, made_by)
        return [LocationFeatures(encoder, slide, at).name, entry]

    before = names()
    assert names() == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, constant, 2 * getattr(where, constant))
        assert not set(before) & set(names())


def test_regions_with_other_members_are_not_continued(slide):
    """The same locations in the same order, shared among the regions in another way."""
    at = np.random.default_rng(0).uniform(100, 300, (10, 2))
    encoder = LocationEncoder.of_model(small_model(views=True))
    regions = [Spots(("a", "b"), at[[0, 5]], 55.0, (at[:cut], at[cut:])) for cut in (2, 3)]
    assert len({LocationFeatures(encoder, slide, each).name for each in regions}) == 2
