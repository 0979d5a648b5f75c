"""A cohort of Visium HD and Xenium sections: inspected, trained on, indexed, and a slide predicted from its bank."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from cmrcnet.cli import app
from cmrcnet.testing import assert_prediction_table, quick_config
from tests.readers.written_formats import write_image
from tests.readers.written_platforms import made_bins, made_cells, write_visium_hd, write_xenium

pytest.importorskip("pyarrow")


def test_from_platform_folders_to_a_prediction(tmp_path, monkeypatch, capsys):
    import anndata

    monkeypatch.chdir(tmp_path)
    made = made_bins(120, 120, genes=30, mpp=1.0)
    write_visium_hd(tmp_path / "HD" / "outs", made, (2,))
    write_image(tmp_path / "HD.png", made.image)
    write_xenium(tmp_path / "XE", made_cells(genes=30))
    rows = ["section,patient,counts,image,bin_um", "HD,A,HD/outs,HD.png,50", "XE,B,XE,XE/made_he_image.ome.tif,50"]
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(quick_config().to_dict()))
    assert app.main(["inspect", "cohort.csv", "--quick"]) == 0
    assert "30 named in every section" in capsys.readouterr().out
    assert app.main(["train", "cohort.csv", "--config", "quick.yaml", "--out", "model"]) == 0
    assert app.main(["index", "model", "cohort.csv", "--out", "bank"]) == 0
    assert app.main(["predict", "model", "HD.png", "--mpp", "1", "--bank", "bank", "--out", "slide.h5ad"]) == 0
    table = anndata.read_h5ad("slide.h5ad")
    assert_prediction_table(table)
    assert np.isfinite(table.X).all()
