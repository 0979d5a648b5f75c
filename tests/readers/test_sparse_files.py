"""Files of matrices that lie: indices outside, giants, links to other files; each is refused before it is used."""

from __future__ import annotations

import gzip

import h5py
import numpy as np
import pytest
from scipy import io, sparse

from cmrcnet.errors import BadInput, SectionError
from cmrcnet.readers import sparse_files
from cmrcnet.readers.ann_data import read_h5ad
from cmrcnet.readers.registry import read_section
from cmrcnet.readers.sparse_files import open_h5, read_mtx
from cmrcnet.readers.visium import read_tenx_matrix
from cmrcnet.storage import child_process
from tests.readers.written_formats import ann_data_of, as_visium, made_up, write_image, write_visium


def overwrite(group, name, change):
    values = group[name][:]
    del group[name]
    group[name] = change(values)


def first(value):
    def change(values):
        values[0] = value
        return values

    return change


DAMAGES = {
    "index outside": ("indices", first(10**6), "an index is 1000000, outside"),
    "negative index": ("indices", first(-1), "an index is -1, outside"),
    "pointers": ("indptr", lambda values: values[::-1], "indptr runs from"),
    "falling pointers": ("indptr", lambda v: np.r_[v[0], v[2:0:-1] + 1, v[3:]], "indptr does not ascend"),
    "too few values": ("data", lambda values: values[:-1], "values and"),
    "text": ("data", lambda values: values.astype("S"), "wanted a list of numbers"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("where", ["X", "layers/counts", "raw/X"])
def test_damaged_matrices_of_h5ad_never_reach_compiled_code(tmp_path, damage, where):
    table = ann_data_of(made_up())
    table.layers["counts"] = table.X.copy()
    table.raw = table.copy()
    table.write_h5ad(tmp_path / "S1.h5ad")
    name, change, said = DAMAGES[damage]
    with h5py.File(tmp_path / "S1.h5ad", "r+") as file:
        overwrite(file[where], name, change)
    with pytest.raises(BadInput, match=f"the matrix /{where} is damaged: .*{said}"):
        read_h5ad(tmp_path / "S1.h5ad")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_10x_matrices_never_reach_compiled_code(tmp_path, damage):
    outs = write_visium(tmp_path / "outs", as_visium(made_up()))
    path = outs / "filtered_feature_bc_matrix.h5"
    name, change, said = DAMAGES[damage]
    with h5py.File(path, "r+") as file:
        overwrite(file["matrix"], name, change)
    with pytest.raises(BadInput, match=said):
        read_tenx_matrix(path)


@pytest.mark.parametrize(("value", "said"), [(-5, "are negative"), (2**31 - 1, r"are too large .did they wrap")])
def test_negative_and_wrapped_counts_of_10x_are_refused(tmp_path, value, said):
    made = as_visium(made_up())
    outs = write_visium(tmp_path / "outs", made)
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "r+") as file:
        overwrite(file["matrix"], "data", first(value))
    with pytest.raises(SectionError, match=said):
        read_section(outs, image=write_image(tmp_path / "S1.png", made.image))


def test_giants_and_foreign_storage_are_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"\1" * 800)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones(4)
    layout = h5py.VirtualLayout(shape=(4,), dtype="f8")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "x", shape=(4,))
    makers = {
        "declares 8,000,000,000,000 bytes and holds 0": lambda f: f.create_dataset(
            "g", (10**12,), "f8", chunks=(1000,)
        ),
        "is stored in another file": lambda f: f.create_dataset(
            "e", (100,), "f8", external=[(str(tmp_path / "secret"), 0, 800)]
        ),
        "/v is stored in another file": lambda f: f.create_virtual_dataset("v", layout),
        "/l is a link to another file": lambda f: f.__setitem__("l", h5py.ExternalLink("other.h5", "x")),
        "/a/l is a link to /": lambda f: f.create_group("a").__setitem__("l", h5py.SoftLink("/")),
        "/n is a link to /nowhere": lambda f: f.__setitem__("n", h5py.SoftLink("/nowhere")),
    }
    for number, (said, make) in enumerate(makers.items()):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises(BadInput, match=said), open_h5(path, "a matrix"):
            pass


def test_a_group_that_holds_itself_ends(tmp_path):
    with h5py.File(tmp_path / "loop.h5", "w") as file:
        file["a"] = np.ones(3)
        group = file.create_group("g")
        group["again"] = group
        file["alias"] = h5py.SoftLink("/a")
    with open_h5(tmp_path / "loop.h5", "a matrix") as file:
        assert file["alias"][0] == 1


def test_a_file_that_ends_the_process_that_reads_it_is_refused(tmp_path, monkeypatch):
    for name in ("a.h5", "b.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["x"] = np.ones(3)
    child = sparse_files._child
    child.end()
    monkeypatch.setattr(child, "code", "import os, signal; input(); os.kill(os.getpid(), signal.SIGSEGV)")
    refused = r"a.h5 cannot be read as a matrix: the process that tried .* code -11; the file"
    with pytest.raises(BadInput, match=refused), open_h5(tmp_path / "a.h5", "a matrix"):
        pass
    monkeypatch.undo()
    with open_h5(tmp_path / "b.h5", "a matrix") as file:  # another child has been started
        assert file["x"][0] == 1
    monkeypatch.setattr(child_process.subprocess, "Popen", None)
    child.end()
    with open_h5(tmp_path / "b.h5", "a matrix"):  # read once
        pass


HEAD = "%%MatrixMarket matrix coordinate integer general\n"


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", [np.int64, np.float64])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
def test_a_sound_mtx_is_read_whole(tmp_path, zipped, kind, ends):
    matrix = sparse.random(7, 5, 0.4, format="coo", random_state=0)
    matrix.data = np.arange(1, matrix.nnz + 1).astype(kind)
    io.mmwrite(tmp_path / "m.mtx", matrix, comment="made\n%here")
    path = tmp_path / "matrix.mtx.gz"
    content = (tmp_path / "m.mtx").read_bytes().replace(b"\n", ends)
    path.write_bytes(gzip.compress(content) if zipped else content)
    np.testing.assert_array_equal(read_mtx(path, (7, 5)).toarray(), matrix.toarray())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "2 2 1\n3 1 5\n", "Row index out of bounds"),
        (HEAD + "2 2 1\n0 1 5\n", "Row index out of bounds"),
        (HEAD + "2 2 999999999999\n1 1 5\n", "declares 999,999,999,999 entries of 3 numbers and holds 3 numbers"),
        (HEAD + "999999999999 2 1\n1 1 5\n", r"has 999,999,999,999 x 2 entries, and the lists beside it \(2, 2\)"),
        (HEAD + "2 2 2\n1 1 5\n", "declares 2 entries"),
        (HEAD + "2 2 1\n1 1 5\n1 2 5\n", "declares 1 entries"),
        (HEAD + "2 2 1\n1 1 5.5\n", "its entries hold '.'; wanted integer counts"),
        (HEAD + "2 2 1\n1 1 99999999999999999999999\n", "truncated or damaged"),
        (HEAD.replace("integer", "real") + "2 2 1\n1 1 1,5\n", "its entries hold ','; wanted real counts"),
        (HEAD.replace("integer", "real") + "2 2 1\n1 1 nan\n", "its entries hold 'n'"),
        (HEAD.replace("integer", "real") + "2 2 1\n1 1 5 7\n", "holds 4 numbers"),
        (HEAD.replace("general", "symmetric") + "2 2 1\n1 1 5\n", "it begins with"),
        (HEAD.replace("integer", "pattern") + "2 2 1\n1 1\n", "it begins with"),
        (HEAD + "2 2\n", "its line of sizes is '2 2'"),
        (HEAD + "2 2 -1\n", "its line of sizes"),
        ("", "it begins with ''"),
        ("spot,x\n", "it begins with 'spot,x'"),
    ],
)
def test_an_mtx_that_lies_is_refused(tmp_path, text, said):
    (tmp_path / "matrix.mtx").write_text(text)
    with pytest.raises(BadInput, match=said):
        read_mtx(tmp_path / "matrix.mtx", (2, 2))
