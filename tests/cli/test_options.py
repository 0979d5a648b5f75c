"""Lists on the command line: by name, or in a file however it was written."""

from __future__ import annotations

import pytest

from cmrcnet.cli.options import read_genes
from cmrcnet.errors import BadInput

GENES = ["Mbp", "Fth1", "Ä1"]


@pytest.mark.parametrize("text", ["Mbp\nFth1\nÄ1\n", "Mbp\rFth1\rÄ1", "Mbp, Fth1,Ä1\r\n", "Mbp\tFth1\n\nÄ1"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_of_genes_in_every_encoding(tmp_path, text, encoding):
    path = tmp_path / "genes.txt"
    path.write_bytes(text.encode(encoding))
    assert read_genes([str(path)]) == GENES


def test_genes_by_name_also_when_there_are_many(tmp_path):
    assert read_genes(None) is None
    assert read_genes(["Mbp,Fth1", "Ä1"]) == GENES
    many = [f"Gene{i}" for i in range(200)]  # longer than the name of any file
    assert read_genes([",".join(many)]) == many


def test_a_list_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_bytes("Mbp\nÄ1".encode("latin-1"))
    with pytest.raises(BadInput, match=r"line 2 is no UTF-8 text"):
        read_genes([str(path)])
