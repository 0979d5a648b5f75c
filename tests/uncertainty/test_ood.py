"""Out-of-distribution detection: sound tissue is not flagged, and every perturbation is flagged and named."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.slides.patches import crop_patches, crop_scales
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.uncertainty.ood import (
    DETAIL_UM,
    GAIN_FLOOR,
    PERTURBATIONS,
    PERTURBED_LOCATIONS,
    PERTURBED_SCALES,
    SLIDE_FLOOR,
    STATISTIC_NAMES,
    UNTRIED,
    OODDetector,
    evenly,
    fit_ood_detector,
    image_statistics,
    patch_statistics,
    perturbation_effects,
    perturbed_statistics,
)


@pytest.fixture(scope="module")
def sections():
    return list(synthetic_cohort(patients=5, spots=40, genes=30, seed=2))


@pytest.fixture(scope="module")
def detector(sections) -> OODDetector:
    known = sections[:4]
    return fit_ood_detector(
        [image_statistics(s.slide, s.spots.centre_px) for s in known],
        [effects_on(s) for s in known],
        [s.patient for s in known],
    )


def effects_on(section) -> np.ndarray:
    """Effects of the perturbations on a section, measured at some of its locations."""
    picked = section.spots.centre_px[evenly(len(section.spots), PERTURBED_LOCATIONS)]
    return perturbation_effects(perturbed_statistics(crop_scales(section.slide, picked, PERTURBED_SCALES)))


def perturbed(section, kind) -> np.ndarray:
    """Statistics of a section's locations under a perturbation."""
    patches = np.concatenate(list(crop_patches(section.slide, section.spots.centre_px, kind.scale)))
    return patch_statistics(kind.change(patches))


def test_statistics_of_a_plain_patch_by_hand():
    patch = np.full((1, 64, 64, 3), (99, 49, 199), np.uint8)
    density = -np.log10(np.array([100, 50, 200]) / 256)
    found = dict(zip(STATISTIC_NAMES, patch_statistics(patch)[0], strict=True))
    assert found["strength"] == pytest.approx(np.log(density.sum() + 1e-3), abs=1e-4)
    assert found["red"] == pytest.approx(density[0] / density.sum(), abs=1e-4)
    assert found["blue"] == pytest.approx(density[2] / density.sum(), abs=1e-4)
    assert all(found[f"detail_{size}_um"] == pytest.approx(np.log(1e-6), abs=1e-3) for size in DETAIL_UM)


def test_detail_is_found_at_its_own_size():
    """Stripes of two pixels vanish in the second halving: all of their detail is there."""
    row = np.tile(np.repeat([60, 180], 2), 16).astype(np.uint8)
    patch = np.broadcast_to(row[None, None, :, None], (1, 64, 64, 3))
    found = patch_statistics(patch)[0, 4:]
    assert found[1] > found[0] + 5 and found[1] > found[2] + 5


def test_sound_tissue_of_another_patient_is_inside(sections, detector):
    new = sections[4]
    inside, flag = detector.flag(image_statistics(new.slide, new.spots.centre_px), "S")
    assert not flag.raised and flag.kind == "" and inside.mean() > 0.9
    assert flag.sentence == "S looks like the 4 training sections."


@pytest.mark.parametrize("known", [1, 2])
def test_a_model_of_one_or_two_sections_raises_no_false_flag(sections, known):
    """Without a validation section the spread of sound sections is unknown, and every perturbation gains a little."""
    statistics = [image_statistics(s.slide, s.spots.centre_px) for s in sections]
    effects = [effects_on(s) for s in sections[:known]]
    few = fit_ood_detector(statistics[:known], effects, [s.patient for s in sections[:known]])
    judged = [few.flag(values)[1] for values in statistics[known:]]
    assert max(few.gains(np.median(values, axis=0)).max() for values in statistics[known:]) > 0
    assert not any(flag.raised for flag in judged)
    caught = [kind.name for kind in PERTURBATIONS if few.flag(perturbed(sections[4], kind))[1].raised]
    assert len(caught) >= 3  # what is far off is caught all the same


@pytest.mark.parametrize("kind", PERTURBATIONS, ids=lambda kind: kind.name)
def test_a_perturbation_is_caught_and_named(sections, detector, kind):
    statistics = perturbed(sections[4], kind)
    assert PERTURBATIONS[int(detector.gains(np.median(statistics, axis=0)).argmax())] == kind
    inside, flag = detector.flag(statistics, "S")
    if kind.name == "red-blue":  # red and blue are alike in synthetic stain: its gain is too small to tell from chance
        assert not flag.raised
        return
    assert flag.raised and not inside.any()
    assert flag.kind == kind.name and flag.sentence.startswith(f"S looks as if {kind.looks_like}.")


def test_a_wrong_scale_in_the_file_is_the_perturbation(sections, detector):
    """The slide says 2 um per px where 1 is true: what is seen is the perturbation `too large`."""
    new = sections[4]
    wrong = ArraySlide(new.slide.read(0, 0, new.slide.width_px, new.slide.height_px), new.slide.mpp * 2)
    _, flag = detector.flag(image_statistics(wrong, new.spots.centre_px))
    assert flag.kind == "too large"


@pytest.mark.parametrize("factor", [3, 4, 6])
def test_a_scale_that_is_far_too_large_is_not_called_a_matter_of_focus_alone(sections, detector, factor):
    new = sections[4]
    wrong = ArraySlide(new.slide.read(0, 0, new.slide.width_px, new.slide.height_px), new.slide.mpp * factor)
    _, flag = detector.flag(image_statistics(wrong, new.spots.centre_px))
    assert flag.raised and "mpp" in flag.sentence
    assert "out of focus" not in flag.sentence or "check the scale first" in flag.sentence


def test_something_else_altogether_is_unlike(detector):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3)).astype(np.uint8)
    locations = np.random.default_rng(1).uniform(100, 800, (30, 2))
    inside, flag = detector.flag(image_statistics(ArraySlide(noise, 1.0), locations), "S")
    assert flag.kind == "unlike" and not inside.any()
    assert flag.sentence.startswith("S does not look like the 4 training sections (distance ")


def test_a_single_odd_location_is_outside_on_a_sound_slide(sections, detector):
    new = sections[4]
    statistics = image_statistics(new.slide, new.spots.centre_px)
    statistics[7] += 12 * np.sqrt(np.diag(detector.within + detector.between))
    inside, flag = detector.flag(statistics)
    assert not flag.raised and not inside[7] and inside.sum() >= len(inside) - 4


def test_limits_come_from_validation_groups_and_never_fall_below_the_floor():
    rng = np.random.default_rng(3)
    noise = [rng.normal(size=(50, len(STATISTIC_NAMES))) for _ in range(6)]
    effects = [np.full((len(PERTURBATIONS), len(STATISTIC_NAMES)), 40.0)] * 6
    calm = fit_ood_detector(noise, effects, list("ABCDEF"))
    assert calm.slide_limit == SLIDE_FLOOR and calm.gain_limit == GAIN_FLOOR
    assert calm.facts == {"sections": 6, "groups": 6, "group_by": "patient", "validation_sections": 6}
    noise[0] = noise[0] + 8 * np.arange(len(STATISTIC_NAMES)) % 5
    wild = fit_ood_detector(noise, effects, list("ABCDEF"))
    assert wild.slide_limit > SLIDE_FLOOR
    one = fit_ood_detector(noise[:1], effects[:1], ["A"])
    assert one.slide_limit == UNTRIED * SLIDE_FLOOR and one.facts["validation_sections"] == 0


def test_a_domain_comes_back_from_plain_values(detector):
    arrays = {name: getattr(detector, name) for name in ("centre", "between", "within", "effects")}
    again = OODDetector.restore(arrays, detector.to_dict())
    statistics = np.random.default_rng(0).normal(size=(9, len(STATISTIC_NAMES)))
    np.testing.assert_array_equal(again.flag(statistics)[0], detector.flag(statistics)[0])
    assert OODDetector.restore(arrays, detector.to_dict() | {"statistics": ["others"]}) is None


def test_locations_are_picked_evenly():
    np.testing.assert_array_equal(evenly(100, 4), [0, 33, 66, 99])
    assert len(evenly(3, 10)) == 3


def test_perturbed_statistics_are_those_of_each_perturbation_by_itself(sections):
    section = sections[0]
    found = perturbed_statistics(crop_scales(section.slide, section.spots.centre_px, PERTURBED_SCALES))
    np.testing.assert_array_equal(found[:, 0], image_statistics(section.slide, section.spots.centre_px))
    for number, kind in enumerate(PERTURBATIONS, 1):
        np.testing.assert_array_equal(found[:, number], perturbed(section, kind))
    effects = perturbation_effects(found)
    np.testing.assert_array_equal(effects[1], np.median(found[:, 2], axis=0) - np.median(found[:, 0], axis=0))
