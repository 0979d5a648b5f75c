"""Made-up tissue: the right answer is known, and it can be learned from the picture where it should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cmrcnet.datasets.synthetic import (
    PITCH_UM,
    synthetic_cohort,
    synthetic_section,
    synthetic_slide,
    synthetic_truth,
)
from cmrcnet.datasets.synthetic_anatomy import GROUP_SHARES, TRAITS, Anatomy, TissuePlan, in_discs, synthetic_genes
from cmrcnet.datasets.synthetic_image import staining_of
from cmrcnet.errors import BadOption
from cmrcnet.genes.scaling import normalize
from cmrcnet.genes.spatial_stats import pearson_per_gene
from cmrcnet.slides.section import Section
from cmrcnet.testing import assert_section, assert_slide

GOLDEN = Path(__file__).parents[1] / "golden" / "synthetic_counts.json"


@pytest.fixture(scope="module")
def cohort():
    return synthetic_cohort(patients=3, spots=40, seed=1)


def features(section: Section, side_um: float = 112.0) -> np.ndarray:
    """A few plain numbers a patch, standardised in the section: colour, its spread, how much is nucleus or glass."""
    side = round(side_um / section.slide.mpp)
    rows = []
    for x, y in section.spots.centre_px:
        patch = section.slide.read(round(x - side / 2), round(y - side / 2), side, side).astype(float)
        density = -np.log((patch + 1) / 255)
        edges = np.abs(np.diff(density.mean(axis=2), axis=0))
        dark = patch[..., 0] < 130
        glass = (density.mean(axis=2) < 0.12).mean()
        rows.append([*density.mean((0, 1)), *density.std((0, 1)), edges.mean(), edges.std(), dark.mean(), glass])
    table = np.array(rows)
    return (table - table.mean(axis=0)) / table.std(axis=0)


def test_sections_are_whole_and_the_same_spots_are_asked_for_and_given(cohort):
    assert cohort.sections == ("P1S1", "P2S1", "P3S1")
    assert cohort.patients == ("P1", "P2", "P3")
    for section in cohort:
        assert_section(section)
        assert_slide(section.slide)
        assert section.counts.shape == (40, 320)
        assert section.slide.width_px != section.slide.height_px  # so that swapped axes show


@pytest.mark.parametrize("spots", [1, 7, 33])
def test_any_number_of_spots_can_be_had(spots):
    section = synthetic_section(3, patient=0, spots=spots, genes=24, mpp=4.0)
    assert len(section.spots) == spots
    on_grid = section.spots.centre_px * 4.0 / PITCH_UM
    np.testing.assert_allclose(on_grid, on_grid.round(), atol=1e-9)


def test_spots_lie_on_tissue_and_the_tissue_mask_agrees(cohort):
    from cmrcnet.slides.tissue import find_tissue

    section = cohort.read("P1S1")
    anatomy = Anatomy(TissuePlan.from_text(section.metadata["synthetic"]))
    assert (in_discs(anatomy.tissue, section.spots.centre_px, 100.0) > 0.8).all()
    assert find_tissue(section.slide).contains(section.spots.centre_px).mean() > 0.8


def test_equal_seeds_make_equal_tissue_and_others_do_not():
    first, again, other = (synthetic_section(seed, patient=0, spots=6, genes=24) for seed in (5, 5, 6))
    assert first.slide.fingerprint() == again.slide.fingerprint() != other.slide.fingerprint()
    assert (first.counts != again.counts).nnz == 0
    assert (first.counts != other.counts).nnz > 0
    assert first.genes == other.genes


def test_a_cohort_paints_late_and_once(monkeypatch):
    from cmrcnet.datasets import synthetic

    painted = []
    real = synthetic.paint
    monkeypatch.setattr(synthetic, "paint", lambda *given: painted.append(1) or real(*given))
    cohort = synthetic_cohort(patients=2, spots=4, genes=24)
    assert not painted
    assert cohort.read("P1S1") is cohort.read("P1S1")
    assert len(painted) == 1


def test_sections_of_one_patient_share_the_stain_and_patients_do_not():
    def stain(patient, section):
        return staining_of(TissuePlan(0, patient, section, 24, 900, 900))

    assert stain(0, 0).lamp.tolist() == stain(0, 1).lamp.tolist()
    assert stain(0, 0).haematoxylin.tolist() != stain(1, 0).haematoxylin.tolist()
    cohort = synthetic_cohort(patients=1, sections_per_patient=2, spots=4, genes=24)
    assert cohort.sections == ("P1S1", "P1S2")
    assert cohort.read("P1S1").slide.fingerprint() != cohort.read("P1S2").slide.fingerprint()


def test_glass_is_bright_nuclei_are_blue_and_stroma_is_pink(cohort):
    section = cohort.read("P1S1")
    pixels = section.slide.read(0, 0, section.slide.width_px, section.slide.height_px).astype(int)
    assert pixels[:8, :8].min() > 215  # the corner holds no tissue
    red, green, blue = pixels.reshape(-1, 3).T
    nuclei = red < 120
    assert 0.03 < nuclei.mean() < 0.4
    assert (blue[nuclei] > red[nuclei]).mean() > 0.9
    assert (blue[nuclei] > green[nuclei]).mean() > 0.9
    traits = synthetic_truth(section).traits
    spot = section.spots.centre_px[traits[:, TRAITS.index("stroma")].argmax()]
    pink = section.slide.read(int(spot[0]) - 30, int(spot[1]) - 30, 60, 60).reshape(-1, 3).mean(axis=0)
    assert pink[0] > pink[2] > pink[1]


def test_traits_of_a_spot_are_the_mean_over_its_disc(cohort):
    """The Gaussian that stands in for the disc, against the disc itself."""
    section = cohort.read("P2S1")
    anatomy = Anatomy(TissuePlan.from_text(section.metadata["synthetic"]))
    rows, columns = np.indices(anatomy.shape)
    x, y = (columns + 0.5) * 10, (rows + 0.5) * 10
    centres_um = section.spots.centre_px * section.slide.mpp
    for centre, trait in zip(centres_um, synthetic_truth(section).traits, strict=True):
        disc = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 50**2) & (anatomy.tissue > 0.5)
        np.testing.assert_allclose(trait, anatomy.traits[:, disc].mean(axis=1), atol=0.06)


def test_names_and_kinds_of_genes_do_not_depend_on_how_many_are_asked_for():
    few, many = synthetic_genes(80), synthetic_genes(320)
    assert len(many.names) == len(set(many.names)) == 320
    assert [len([each for each in many.kinds if each == kind]) for kind in ("morphology", "hidden", "steady")] == [
        240,
        40,
        40,
    ]
    for column, name in enumerate(few.names):
        there = many.names.index(name)
        assert few.kinds[column] == many.kinds[there]
        np.testing.assert_array_equal(few.traits[column], many.traits[there])


def test_each_group_of_genes_takes_its_share_in_every_spot(cohort):
    truth = synthetic_truth(cohort.read("P1S1"))
    shares = np.expm1(truth.expected) / 1e4
    kinds = np.array(truth.kinds)
    for kind, share in GROUP_SHARES.items():
        np.testing.assert_allclose(shares[:, kinds == kind].sum(axis=1), share, rtol=1e-9)
    assert np.ptp(truth.expected[:, kinds == "steady"], axis=0).max() < 1e-9


def test_counts_have_the_stated_mean_and_spread():
    section = synthetic_section(2, patient=0, spots=400, genes=24, mpp=8.0)
    truth, genes = synthetic_truth(section), synthetic_genes(24)
    counts = section.counts.toarray().astype(float)
    shares = np.expm1(truth.expected) / 1e4
    batch = (
        Anatomy(TissuePlan.from_text(section.metadata["synthetic"])).plan.patient_random("batch").lognormal(0, 0.1, 24)
    )
    depth = counts.sum(axis=1, keepdims=True) / (shares * batch).sum(axis=1, keepdims=True)
    expected = depth * shares * batch
    np.testing.assert_allclose(counts.sum(axis=0) / expected.sum(axis=0), 1, atol=0.1)
    spread = ((counts - expected) ** 2).sum(axis=0) / (expected + expected**2 / genes.dispersion).sum(axis=0)
    assert 0.75 < np.median(spread) < 1.1  # a little below 1: depth was estimated from the same counts


def test_what_the_picture_hides_is_uncorrelated_with_what_it_shows():
    anatomy = Anatomy(TissuePlan(4, 0, 0, 320, 1800, 1500))
    inside = anatomy.tissue > 0.5
    for field in anatomy.hidden:
        for trait in anatomy.traits:
            assert abs(np.corrcoef(field[inside], trait[inside])[0, 1]) < 1e-3
        np.testing.assert_allclose([field[inside].mean(), field[inside].std()], [0, 1], atol=1e-3)


def test_the_picture_tells_morphology_genes_of_an_unseen_patient_and_no_others():
    """Ridge regression on ten plain picture features, trained on three patients, tested on the fourth."""
    from sklearn.linear_model import Ridge

    sections = list(synthetic_cohort(patients=4, spots=90, seed=0))
    pictures = [features(section) for section in sections]
    expression = [normalize(section.counts).toarray() for section in sections]
    truth = synthetic_truth(sections[0])
    kinds, scores, ceilings = np.array(truth.kinds), [], []
    for held in range(4):
        others = [number for number in range(4) if number != held]
        model = Ridge(alpha=10).fit(
            np.vstack([pictures[n] for n in others]),
            np.vstack([expression[n] - expression[n].mean(axis=0) for n in others]),
        )
        scores.append(pearson_per_gene(expression[held], model.predict(pictures[held])))
        ceilings.append(pearson_per_gene(expression[held], synthetic_truth(sections[held]).expected))
    mean = np.mean(scores, axis=0)
    assert mean[kinds == "morphology"].mean() > 0.4
    assert abs(mean[kinds == "hidden"].mean()) < 0.1
    assert abs(mean[kinds == "steady"].mean()) < 0.1
    ceiling = np.mean(ceilings, axis=0)
    assert ceiling[kinds == "hidden"].mean() > 0.6  # they could be told, by someone who knew the field
    assert ceiling[kinds == "morphology"].mean() > mean[kinds == "morphology"].mean()


def test_truth_can_be_asked_anywhere(cohort):
    section = cohort.read("P1S1")
    at_spots = synthetic_truth(section)
    np.testing.assert_array_equal(synthetic_truth(section, section.spots.centre_px[:3]).expected, at_spots.expected[:3])
    assert synthetic_truth(section, np.array([[500.0, 400.0]])).expected.shape == (1, 320)
    assert at_spots.genes_of("hidden")[0] == "HIDDEN001"


def test_the_unseen_slide_is_of_a_patient_whom_no_cohort_holds():
    slide, section = synthetic_slide(1, spots=6), synthetic_section(1, spots=6)
    assert slide.name == "unseen"
    assert slide.fingerprint() == section.slide.fingerprint()
    assert section.patient not in synthetic_cohort(patients=9, seed=1).patients


def test_senseless_wishes_are_refused(cohort):
    with pytest.raises(BadOption, match="patients is 0"):
        synthetic_cohort(patients=0)
    with pytest.raises(BadOption, match="genes is 5"):
        synthetic_cohort(genes=5)
    section = cohort.read("P1S1")
    real = Section(section.name, "P", section.slide, section.spots, section.counts, section.genes)
    with pytest.raises(BadOption, match="made-up section"):
        synthetic_truth(real)


def summary(section: Section) -> dict:
    """A few rounded numbers that change when the tissue, the genes or the counts do."""
    counts, truth = section.counts.toarray(), synthetic_truth(section)
    pixels = section.slide.read(0, 0, section.slide.width_px, section.slide.height_px)
    groups = sorted({gene.rstrip("0123456789") for gene in section.genes})
    share = {
        group: round(float(counts[:, [g.startswith(group) for g in section.genes]].sum() / counts.sum()), 4)
        for group in groups
    }
    return {
        "size_px": [section.slide.width_px, section.slide.height_px],
        "median_depth": round(float(np.median(counts.sum(axis=1)))),
        "share_of_counts": share,
        "mean_traits": [round(float(value), 3) for value in truth.traits.mean(axis=0)],
        "mean_colour": [round(float(value), 1) for value in pixels.mean(axis=(0, 1))],
        "first_barcodes": list(section.spots.barcodes[:4]),
    }


def test_the_tissue_is_the_one_that_documents_and_benchmarks_speak_of(cohort):
    """Golden numbers. After a change that is meant: `python -m tests.datasets.test_synthetic` writes them anew."""
    golden = json.loads(GOLDEN.read_text())
    for section in cohort:
        ours, theirs = summary(section), golden[section.name]
        assert ours["size_px"] == theirs["size_px"]
        assert ours["first_barcodes"] == theirs["first_barcodes"]
        assert ours["median_depth"] == pytest.approx(theirs["median_depth"], rel=0.01)
        assert ours["share_of_counts"] == pytest.approx(theirs["share_of_counts"], abs=0.003)
        assert ours["mean_traits"] == pytest.approx(theirs["mean_traits"], abs=0.002)
        assert ours["mean_colour"] == pytest.approx(theirs["mean_colour"], abs=0.5)


if __name__ == "__main__":
    sections = {section.name: summary(section) for section in synthetic_cohort(patients=3, spots=40, seed=1)}
    GOLDEN.write_text(json.dumps(sections, indent=1) + "\n")


def test_structures_finer_than_a_spot_and_their_truth():
    """Traits over small discs average to those of the spot, and vary within it only where structures are small."""
    steps = np.linspace(-30, 30, 7)
    apart = np.array([(x, y) for x in steps for y in steps if x**2 + y**2 < 40**2])
    within = {}
    for structure in (0.25, 1.0):
        section = synthetic_section(4, spots=20, genes=24, mpp=2.0, structure=structure)
        centres = (section.spots.centre_px[:, None] + apart / 2.0).reshape(-1, 2)
        fine = synthetic_truth(section, centres, diameter_um=20.0).traits.reshape(20, len(apart), -1)
        whole = synthetic_truth(section)
        np.testing.assert_allclose(fine.mean(axis=1), whole.traits, atol=0.15)
        within[structure] = fine.std(axis=1).mean()
        again = TissuePlan.from_text(section.metadata["synthetic"])
        assert again.structure == structure and again.to_text() == section.metadata["synthetic"]
    assert within[0.25] > 2 * within[1.0]
    with pytest.raises(BadOption, match="structure"):
        synthetic_cohort(structure=0.0)
