"""The attribution of one location: the spots that were averaged, honest words, and a sheet that draws with what
there is."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from cmrcnet.analysis.attribution import attribution, matched_tissue
from cmrcnet.analysis.attribution_sheet import attribution_sheet
from cmrcnet.errors import Damaged, UnknownName
from cmrcnet.genes.scaling import normalize
from cmrcnet.inference.predict import predict
from cmrcnet.retrieval.bank import build_bank
from cmrcnet.slides.patches import crop_patches
from cmrcnet.slides.slide import ArraySlide, PatchScale
from tests.inference.small_model import GENES, locations, noise_slide, small_cohort, small_model


@pytest.fixture(scope="module")
def bank():
    return build_bank(small_model(), small_cohort())


@pytest.fixture
def table(bank):
    return predict(small_model(), noise_slide(9), bank=bank, spots=locations(6, seed=3))


def size_of(picture: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(picture)).size


def test_it_lists_the_spots_that_were_averaged(table, bank):
    found = attribution(table, "spot2")
    assert list(found.spots.columns) == ["section", "patient", "barcode", "x", "y", "similarity", "weight"]
    for number, row in enumerate(table.obsm["neighbour_ids"][2]):
        assert list(found.spots.iloc[number, :5]) == list(bank.spots.iloc[row])
    expression = bank.expression.toarray()[table.obsm["neighbour_ids"][2]]
    measured_by_all = bank.measured.all(axis=0)
    np.testing.assert_allclose(
        (found.spots["weight"].to_numpy() @ expression)[measured_by_all], table.X[2][measured_by_all], rtol=1e-4
    )
    assert sum(found.patient_weights.values()) == pytest.approx(1, rel=1e-5)
    assert list(found.patient_weights.values()) == sorted(found.patient_weights.values(), reverse=True)


def test_it_says_how_much_of_the_prediction_it_explains(table):
    assert attribution(table, "spot0").sentence == "The prediction is the weighted mean of these spots."
    table.uns["cmrcnet"]["head_weights"] = json.dumps({"retrieval": 0.4, "ridge": 0.25, "kernel": 0.35})
    assert attribution(table, "spot0").sentence == (
        "These spots account for the retrieval, 40% of the prediction. The rest (25% ridge regression and 35% kernel "
        "ridge regression) was fitted on all training spots together and is not attributable to single spots."
    )
    table.uns["cmrcnet"]["head_weights"] = json.dumps({"ridge": 1.0})
    assert attribution(table, "spot0").sentence.startswith("The prediction is 100% ridge regression, fitted on all")


def test_an_unknown_place_and_an_old_table_are_refused(table):
    with pytest.raises(UnknownName, match=r"There is no location in the prediction 'spot9'; known: spot0, spot1"):
        attribution(table, "spot9")
    del table.obsm["neighbour_weight"]
    with pytest.raises(Damaged, match=r"it lacks neighbour_weight, so nothing can be explained; predict again"):
        attribution(table, "spot0")


def test_patches_and_values_are_those_of_the_cohort(table):
    cohort, found = small_cohort(), attribution(table, "spot1")
    genes = [GENES[0], "NEW1"]
    tissue = matched_tissue(table, found, genes, cohort=cohort, slide=None, shown=2)
    for number in range(2):
        spot = found.spots.iloc[number]
        section = cohort.read(spot["section"])
        centre = np.array([[spot["x"], spot["y"]]])
        wanted = next(iter(crop_patches(section.slide, centre, PatchScale(size_px=160, mpp=0.5))))[0]
        np.testing.assert_array_equal(tissue.patches[number], wanted)
    for number, spot in enumerate(found.spots.itertuples()):
        section = cohort.read(spot.section)
        row = section.spots.barcodes.index(spot.barcode)
        values = dict(zip(section.genes, normalize(section.counts, 10_000.0).toarray()[row], strict=True))
        assert tissue.expression[number, 0] == pytest.approx(values[GENES[0]])
        new = values.get("NEW1", 0.0 if section.absent_genes == "zero" else np.nan)
        np.testing.assert_allclose(tissue.expression[number, 1], new)
    assert tissue.patch is None and tissue.missing == (
        "The patch of the location needs the slide slide: a cohort that holds it, or --slide.",
    )


def test_what_is_missing_is_said(table):
    found = attribution(table, "spot1")
    nothing = matched_tissue(table, found, ["GENE1"], cohort=None, slide=None, shown=3)
    assert nothing.patches == [None] * 3 and np.isnan(nothing.expression).all()
    assert "Patches and measured values of the matches need their cohort: --cohort COHORT.csv." in nothing.missing
    other = matched_tissue(table, found, ["GENE1"], cohort=None, slide=noise_slide(5, name="other"), shown=3)
    assert "other is not the slide that was predicted (slide)." in other.missing and other.patch is None
    right = matched_tissue(table, found, ["GENE1"], cohort=None, slide=noise_slide(9), shown=3)
    assert right.patch.shape == (160, 160, 3)
    pixels = noise_slide(9).read(0, 0, 400, 400)
    rescaled = matched_tissue(table, found, ["GENE1"], cohort=None, slide=ArraySlide(pixels, 0.9), shown=3)
    np.testing.assert_array_equal(rescaled.patch, right.patch)  # what the prediction saw, whatever is said now
    apart = small_cohort().only(["A1"])
    others = [name for name in dict.fromkeys(found.spots["section"]) if name != "A1"]
    partly = matched_tissue(table, found, ["GENE1"], cohort=apart, slide=None, shown=3)
    assert others and all(f"small has no section {name}." in partly.missing for name in others)


def test_a_sheet_grows_with_its_genes_and_draws_without_pictures(table):
    whole = attribution_sheet(table, "spot0", genes=list(GENES[:5]), cohort=small_cohort(), slide=noise_slide(9))
    bare = attribution_sheet(table, "spot0", genes=list(GENES[:2]))
    assert size_of(whole)[0] == size_of(bare)[0] == 1820
    assert size_of(whole)[1] > size_of(bare)[1]
    assert attribution_sheet(table, "spot0", genes=list(GENES[:2])) == bare
    assert size_of(attribution_sheet(table, "spot0")) > (0, 0)  # those most predicted, where none is graded
    with pytest.raises(UnknownName, match="There is no gene in the prediction 'TP53'"):
        attribution_sheet(table, "spot0", genes=["TP53"])
