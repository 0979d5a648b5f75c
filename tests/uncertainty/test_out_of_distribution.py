"""The domain alarm: sound tissue stays quiet, and every planted shift is caught and named."""

from __future__ import annotations

import numpy as np
import pytest

from cmrcnet.datasets.synthetic import synthetic_cohort
from cmrcnet.slides.slide import ArraySlide
from cmrcnet.uncertainty.ood import (
    DETAIL_UM,
    SHIFTS,
    SLIDE_FLOOR,
    TRAITS,
    UNTRIED,
    Domain,
    appearance,
    evenly,
    fit_domain,
    looks,
    moves_of,
    traits_of,
)


@pytest.fixture(scope="module")
def sections():
    return list(synthetic_cohort(patients=5, spots=40, genes=30, seed=2))


@pytest.fixture(scope="module")
def domain(sections) -> Domain:
    known = sections[:4]
    return fit_domain(
        [appearance(s.slide, s.spots.centre_px) for s in known],
        [moves_of(s.slide, s.spots.centre_px) for s in known],
        [s.patient for s in known],
    )


def shifted(section, shift) -> np.ndarray:
    """Traits of a section's locations as a shift would show them."""
    patches = np.concatenate(list(looks(section.slide, section.spots.centre_px, shift.scale)))
    return traits_of(shift.change(patches))


def test_traits_of_a_plain_patch_by_hand():
    patch = np.full((1, 64, 64, 3), (99, 49, 199), np.uint8)
    density = -np.log10(np.array([100, 50, 200]) / 256)
    found = dict(zip(TRAITS, traits_of(patch)[0], strict=True))
    assert found["strength"] == pytest.approx(np.log(density.sum() + 1e-3), abs=1e-4)
    assert found["red"] == pytest.approx(density[0] / density.sum(), abs=1e-4)
    assert found["blue"] == pytest.approx(density[2] / density.sum(), abs=1e-4)
    assert all(found[f"detail_{size}_um"] == pytest.approx(np.log(1e-6), abs=1e-3) for size in DETAIL_UM)


def test_detail_is_found_at_its_own_size():
    """Stripes of two pixels vanish in the second halving: all of their detail is there."""
    row = np.tile(np.repeat([60, 180], 2), 16).astype(np.uint8)
    patch = np.broadcast_to(row[None, None, :, None], (1, 64, 64, 3))
    found = traits_of(patch)[0, 4:]
    assert found[1] > found[0] + 5 and found[1] > found[2] + 5


def test_sound_tissue_of_another_patient_is_inside(sections, domain):
    new = sections[4]
    inside, alarm = domain.judge(appearance(new.slide, new.spots.centre_px), "S")
    assert not alarm.raised and alarm.kind == "" and inside.mean() > 0.9
    assert alarm.sentence == "S looks like the 4 sections that the model has learnt from."


@pytest.mark.parametrize("known", [1, 2])
def test_a_model_of_one_or_two_sections_does_not_cry_wolf(sections, known):
    """No section could be held in: nothing is known of how far sound sections lie, and every shift gains a little."""
    traits = [appearance(s.slide, s.spots.centre_px) for s in sections]
    moves = [moves_of(s.slide, s.spots.centre_px) for s in sections[:known]]
    few = fit_domain(traits[:known], moves, [s.patient for s in sections[:known]])
    judged = [few.judge(values)[1] for values in traits[known:]]
    assert max(few.gains(np.median(values, axis=0)).max() for values in traits[known:]) > 0
    assert not any(alarm.raised for alarm in judged)
    caught = [shift.name for shift in SHIFTS if few.judge(shifted(sections[4], shift))[1].raised]
    assert len(caught) >= 3  # what is far off is caught all the same


@pytest.mark.parametrize("shift", SHIFTS, ids=lambda shift: shift.name)
def test_a_planted_shift_is_caught_and_named(sections, domain, shift):
    new = sections[4]
    inside, alarm = domain.judge(shifted(new, shift), "S")
    assert alarm.raised and not inside.any()
    assert alarm.kind == shift.name and alarm.sentence.startswith(f"S looks as if {shift.looks_like}.")


def test_a_wrong_scale_in_the_file_is_the_shift_that_is_planted(sections, domain):
    """The slide says 2 um per px where 1 is true: what is seen is the planted shift `too large`."""
    new = sections[4]
    wrong = ArraySlide(new.slide.read(0, 0, new.slide.width_px, new.slide.height_px), new.slide.mpp * 2)
    _, alarm = domain.judge(appearance(wrong, new.spots.centre_px))
    assert alarm.kind == "too large"


def test_something_else_altogether_is_unlike(domain):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3)).astype(np.uint8)
    locations = np.random.default_rng(1).uniform(100, 800, (30, 2))
    inside, alarm = domain.judge(appearance(ArraySlide(noise, 1.0), locations), "S")
    assert alarm.kind == "unlike" and not inside.any()
    assert alarm.sentence.startswith("S does not look like the 4 sections that the model has learnt from (distance ")


def test_a_single_odd_place_is_outside_on_a_sound_slide(sections, domain):
    new = sections[4]
    traits = appearance(new.slide, new.spots.centre_px)
    traits[7] += 12 * np.sqrt(np.diag(domain.within + domain.between))
    inside, alarm = domain.judge(traits)
    assert not alarm.raised and not inside[7] and inside.sum() >= len(inside) - 4


def test_limits_come_from_validation_units_and_never_fall_below_the_floor():
    rng = np.random.default_rng(3)
    noise = [rng.normal(size=(50, len(TRAITS))) for _ in range(6)]
    moves = [np.full((len(SHIFTS), len(TRAITS)), 40.0)] * 6
    calm = fit_domain(noise, moves, list("ABCDEF"))
    assert calm.slide_limit == SLIDE_FLOOR and calm.gain_limit == 0
    assert calm.facts == {"sections": 6, "units": 6, "unit": "patient", "validation_sections": 6}
    noise[0] = noise[0] + 8 * np.arange(len(TRAITS)) % 5
    wild = fit_domain(noise, moves, list("ABCDEF"))
    assert wild.slide_limit > SLIDE_FLOOR
    one = fit_domain(noise[:1], moves[:1], ["A"])
    assert one.slide_limit == UNTRIED * SLIDE_FLOOR and one.facts["validation_sections"] == 0


def test_a_domain_comes_back_from_plain_values(domain):
    again = Domain.restore(domain.arrays(), domain.to_dict())
    traits = np.random.default_rng(0).normal(size=(9, len(TRAITS)))
    np.testing.assert_array_equal(again.judge(traits)[0], domain.judge(traits)[0])
    assert Domain.restore(domain.arrays(), domain.to_dict() | {"traits": ["others"]}) is None


def test_places_are_picked_evenly():
    centres = np.column_stack([np.arange(100.0), np.zeros(100)])
    np.testing.assert_array_equal(evenly(centres, 4)[:, 0], [0, 33, 66, 99])
    assert len(evenly(centres[:3], 10)) == 3
