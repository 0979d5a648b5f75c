"""A cohort's localisation: predictions and truth meet by section, and the verb says it in words."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from cmrcnet.analysis.localisation import localisation_text, localise_cohort
from cmrcnet.cli import app
from cmrcnet.errors import CmrcnetWarning, SectionError, TooFew, UnknownName
from cmrcnet.export.table_file import seal_table
from cmrcnet.genes.markers import markers
from cmrcnet.genes.table import FORMAT
from cmrcnet.readers.annotations import read_cohort_regions
from cmrcnet.readers.cohort import read_cohort
from cmrcnet.storage.names import file_name
from tests.readers.written_formats import made_up, write_legacy

GENES = ["ERBB2", "GRB7", "MIEN1", "CD3D", "CD8A", "KRT8", "ACTB", "GAPDH", "RPLP0", "TPT1", "B2M", "EEF2"]

NOTHING = anndata.AnnData()


@pytest.fixture
def csv(tmp_path):
    """Two sections whose left half is cancer: ERBB2 and its neighbours are high there, CD3D and CD8A elsewhere."""
    rows = ["section,patient,format,counts,spots,image,mpp,spot_diameter_um,regions,disease"]
    for seed, name in enumerate(("S1", "S2")):
        made = made_up(columns=6, rows=6, genes=len(GENES), seed=seed)
        left = made.array_xy[:, 0] <= 3
        counts = np.random.default_rng(seed).poisson(5, made.counts.shape)
        counts[left, :3] += 15
        counts[~left, 3:5] += 15
        made.counts[:] = counts
        made.genes[:] = GENES
        write_legacy(tmp_path, made, name)
        labels = np.where(left, "cancer 1", "immune : T-cell")
        pairs = [f"{spot}\t{label}" for spot, label in zip(made.barcodes, labels, strict=True)]
        (tmp_path / f"{name}_regions.tsv").write_text("\n".join(["spot\tregion", *pairs]))
        files = f"{name}_counts.tsv.gz,{name}_spots.tsv,{name}.png,4.0,100,{name}_regions.tsv"
        rows.append(f"{name},P{seed},legacy_st,{files},breast cancer")
    path = tmp_path / "cohort.csv"
    path.write_text("\n".join(rows))
    return path


def predicted(cohort, noise=0.0, genes=GENES):
    tables = {}
    for section in cohort:
        columns = [section.genes.index(gene) for gene in genes]
        values = np.log1p(section.counts.toarray()[:, columns])
        values = values + noise * np.random.default_rng(0).normal(size=values.shape)
        table = anndata.AnnData(values.astype(np.float32))
        table.obs_names, table.var_names = list(section.spots.barcodes), genes
        table.uns["cmrcnet"] = {"format": FORMAT}
        table.obsm["spatial"] = section.spots.centre_px
        tables[section.name] = table
    return tables


def test_every_predicted_and_labelled_section_with_its_ceiling(csv):
    cohort, regions = read_cohort(csv), read_cohort_regions(csv)
    found = localise_cohort(
        predicted(cohort, noise=1.5), cohort, regions, markers("breast"), merge=True, n_bootstrap=100
    )
    assert list(found.columns[:4]) == ["section", "patient", "region", "signature"]
    assert set(found.section) == {"S1", "S2"} and set(found.region) == {"cancer", "immune"}
    her2 = found[(found.region == "cancer") & (found.signature == "her2_amplicon")]
    assert her2.expected.all() and (her2.ceiling > 0.95).all() and (her2.auc > 0.6).all()
    assert (her2.auc < her2.ceiling).all() and (her2.n_genes == 3).all()
    t_cells = found[(found.region == "cancer") & (found.signature == "t_cells")]
    assert not t_cells.expected.any() and (t_cells.ceiling < 0.1).all()


def test_the_ceiling_is_of_the_predicted_genes_only(csv):
    cohort, regions = read_cohort(csv), read_cohort_regions(csv)
    tables = predicted(cohort, genes=["ERBB2", "CD3D", "ACTB", "GAPDH", "RPLP0"])
    found = localise_cohort(tables, cohort, regions, markers("breast"), n_bootstrap=0)
    assert (found[found.signature == "her2_amplicon"].ceiling_genes == 1).all()
    assert "epithelium" not in set(found.signature)


def test_words_for_one_section_and_for_several(csv):
    cohort, regions = read_cohort(csv), read_cohort_regions(csv)
    tables = predicted(cohort)
    both = localisation_text(localise_cohort(tables, cohort, regions, markers("breast"), merge=True, n_bootstrap=50))
    assert both.startswith("Mean over patients (2 sections)")
    one = localise_cohort({"S2": tables["S2"]}, cohort, regions, markers("breast"), n_bootstrap=50)
    text = localisation_text(one)
    assert text.startswith("Section S2, 95 % interval over spots.") and "her2_amplicon" in text
    assert "plasma" not in text and "t_cells" in text
    nothing = localisation_text(one.assign(expected=False))
    assert "No signature of this organ is expected" in nothing


def test_labels_name_spots_by_numbers(csv):
    cohort, regions = read_cohort(csv), read_cohort_regions(csv)
    tables, options = predicted(cohort, noise=1.5), {"merge": True, "n_bootstrap": 0}
    plain = localise_cohort(tables, cohort, regions, markers("breast"), **options)
    written = {}
    for name, labels in regions.items():
        written[name] = labels.copy()
        written[name].index = [
            f"{float(a):.3f}x{float(b):.1f}" for a, b in (str(spot).split("x") for spot in labels.index)
        ]
    again = localise_cohort(tables, cohort, written, markers("breast"), **options)
    pd.testing.assert_frame_equal(plain, again)


def test_nothing_to_compare(csv):
    cohort, regions = read_cohort(csv), read_cohort_regions(csv)
    with pytest.raises(UnknownName, match=r"no section 'S9'; known: S1, S2. The prediction names it"):
        localise_cohort({"S9": NOTHING}, cohort, regions, markers("breast"))
    with (
        pytest.raises(TooFew, match=r"0 sections are both predicted and labelled"),
        pytest.warns(CmrcnetWarning, match=r"Left out: S1 "),
    ):
        localise_cohort({"S1": NOTHING}, cohort, {"S2": regions["S2"]}, markers("breast"))
    tables = predicted(cohort, genes=["ACTB", "GAPDH", "RPLP0"])
    with pytest.raises(SectionError, match=r"The breast markers and the prediction of S1"):
        localise_cohort(tables, cohort, regions, markers("breast"))


def test_odd_names_of_sections_come_back_from_the_run_folder(csv, tmp_path, capsys):
    odd = {"S1": "S24/01187", "S2": '"Müller, A"'}
    text = csv.read_text()
    for plain, name in odd.items():
        text = text.replace(f"\n{plain},", f"\n{name},")
    csv.write_text(text, encoding="utf-8")
    cohort = read_cohort(csv)
    assert cohort.sections == ("S24/01187", "Müller, A")
    run = tmp_path / "run" / "predictions"
    run.mkdir(parents=True)
    for name, table in predicted(cohort).items():
        table.write_h5ad(run / f"{file_name(name)}.h5ad")
        (run / f"._{file_name(name)}.h5ad").write_bytes(b"\0" * 40)
    out = tmp_path / "found.csv"
    assert app.main(["localise", str(run.parent), str(csv), "--merge", "--out", str(out)]) == 0
    assert "Mean over patients (2 sections)" in capsys.readouterr().out
    assert set(pd.read_csv(out).section) == set(cohort.sections)
    assert app.main(["localise", str(run.parent), str(csv), "--merge", "--section", "S24/01187"]) == 0
    assert "Section S24/01187" in capsys.readouterr().out
    assert app.main(["localise", str(run / f"{file_name('Müller, A')}.h5ad"), str(csv)]) == 0
    assert "Section Müller, A" in capsys.readouterr().out


def test_the_verb_reads_one_table_or_a_run_folder(csv, tmp_path, capsys):
    tables = predicted(read_cohort(csv))
    for name, table in tables.items():
        (tmp_path / "run" / "predictions").mkdir(parents=True, exist_ok=True)
        table.write_h5ad(tmp_path / "run" / "predictions" / f"{name}.h5ad")
    out = tmp_path / "found.csv"
    assert app.main(["localise", str(tmp_path / "run"), str(csv), "--merge", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert (
        "Mean over patients (2 sections)" in said and "Markers: breast, version 1." in said and "Staaf J et al." in said
    )
    assert set(pd.read_csv(out).section) == {"S1", "S2"}
    one = tmp_path / "run" / "predictions" / "S1.h5ad"
    seal_table(one)
    assert app.main(["localise", str(one), str(csv)]) == 0
    assert "Section S1" in capsys.readouterr().out
    content = bytearray(one.read_bytes())
    content[len(content) // 2] ^= 1
    one.write_bytes(content)
    assert app.main(["localise", str(one), str(csv)]) == app.USER_ERROR
    assert "S1.h5ad is incomplete or damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere.h5ad"], "The prediction table nowhere.h5ad does not exist"),
        (["."], "The prediction tables of the run in"),
        (["cohort.csv"], "cannot be read as a prediction table"),
        (["nowhere.h5ad", "--out", "x.txt"], "ends in .csv"),
    ],
)
def test_what_the_verb_refuses(csv, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(csv.parent)
    assert app.main(["localise", words[0], "cohort.csv", *words[1:]]) == app.USER_ERROR
    assert sentence in capsys.readouterr().err
