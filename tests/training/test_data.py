"""Pairs: gathered quickly, equal to gathering them plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.features.extract import FeatureSpec, extract
from cmrcnet.genes.gene_sets import GenePanel
from cmrcnet.training.data import Pairs, read_pairs
from tests.training.conftest import made_up_pairs


@settings(max_examples=30, deadline=None)
@given(ids=st.lists(st.integers(0, 15), max_size=12), inputs=st.sampled_from(["tokens", "patches"]))
def test_a_batch_is_what_plain_indexing_gives(ids, inputs):
    pairs = made_up_pairs(inputs=inputs)
    tensors, expression = pairs.batch(np.array(ids, int))
    stacked = np.concatenate(pairs.inputs)
    plain = stacked[ids] if ids else stacked[:0]
    np.testing.assert_array_equal(tensors.numpy(), plain)
    np.testing.assert_array_equal(expression.numpy(), pairs.expression.toarray()[ids] if ids else np.zeros((0, 7)))
    assert tensors.dtype == (torch.float32 if inputs == "tokens" else torch.uint8)
    assert expression.dtype == torch.float32


def test_the_disk_is_read_in_ascending_order(monkeypatch):
    pairs = made_up_pairs()
    read = []

    class Watched:
        def __init__(self, array, section):
            self.array, self.section, self.shape, self.dtype = array, section, array.shape, array.dtype

        def __getitem__(self, row):
            read.append((self.section, row))
            return self.array[row]

    watched = tuple(Watched(array, number) for number, array in enumerate(pairs.inputs))
    object.__setattr__(pairs, "inputs", watched)
    pairs.batch(np.array([12, 0, 6, 4, 15, 5]))
    assert read == sorted(read)
    assert len(read) == 6


@pytest.mark.parametrize("ids", [[16], [-1], [[0, 1]]])
def test_ids_beyond_the_pairs_are_refused(ids):
    with pytest.raises(BadOption, match="a list of pairs, 0 to 15"):
        made_up_pairs().batch(np.array(ids))


def test_inputs_must_fit_the_expression_and_each_other():
    pairs = made_up_pairs()
    with pytest.raises(ShapeMismatch, match="expression has shape"):
        Pairs(pairs.sections, pairs.patients, pairs.inputs, pairs.expression[:-1])
    other = (*pairs.inputs[:2], np.zeros((8, 5, 4), np.float16))
    with pytest.raises(ShapeMismatch, match="one shape and type"):
        Pairs(pairs.sections, pairs.patients, other, pairs.expression)


@settings(max_examples=20, deadline=None)
@given(ids=st.sets(st.integers(0, 15), min_size=1), scale=st.sampled_from([0.01, 1.0, 500.0]))
def test_token_statistics_equal_those_of_all_tokens_at_once(ids, scale):
    pairs = made_up_pairs()
    object.__setattr__(pairs, "inputs", tuple((array * scale + 3 * scale).astype(np.float16) for array in pairs.inputs))
    chosen = np.array(sorted(ids))
    mean, deviation = pairs.token_statistics(chosen)
    tokens = np.concatenate(pairs.inputs)[chosen].astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(mean.numpy(), tokens.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(deviation.numpy(), tokens.std(axis=0), rtol=1e-4)


def test_token_statistics_do_not_depend_on_the_size_of_blocks(monkeypatch):
    from cmrcnet.training import pairs as module

    pairs = made_up_pairs(lengths=(90, 60), patients="AB")
    whole = pairs.token_statistics(np.arange(150))
    monkeypatch.setattr(module.Pairs.blocks, "__defaults__", (7,))
    for ours, theirs in zip(pairs.token_statistics(np.arange(150)), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_feature_that_never_varies_has_deviation_one():
    pairs = made_up_pairs()
    for array in pairs.inputs:
        array[:, :, 1] = 7
    mean, deviation = pairs.token_statistics(np.arange(16))
    assert (mean[1], deviation[1]) == (7, 1)
    assert deviation[0] != 1


def test_reading_a_cohort_keeps_maps_and_order(cohort, cache):
    panel = GenePanel(cohort.read("P1S1").genes[:20])
    scored = GenePanel(cohort.read("P1S1").genes[30:35])
    made = []

    def inputs_of(section):
        tokens = np.memmap(cache.folder / section.name, np.float16, "w+", shape=(len(section.spots), 4, 2))
        tokens[:] = len(made)
        made.append(tokens)
        return tokens

    cache.folder.mkdir(exist_ok=True)
    pairs = read_pairs(cohort, panel, inputs_of, scored=scored)
    assert pairs.sections == cohort.sections
    assert pairs.patients == cohort.patients
    assert len(pairs) == 72
    assert [np.shares_memory(a, b) for a, b in zip(pairs.inputs, made, strict=True)] == [True] * 3
    assert pairs.section_of.tolist() == [0] * 24 + [1] * 24 + [2] * 24
    second = cohort.read("P2S1")
    np.testing.assert_array_equal(pairs.expression[24:48].toarray(), panel.select(second).toarray())
    np.testing.assert_array_equal(pairs.scored[24:48].toarray(), scored.select(second).toarray())
    inputs, _ = pairs.batch(np.array([70, 3, 30]))
    assert inputs[:, 0, 0].tolist() == [2, 0, 1]


def test_slides_are_closed_once_read(cohort):
    class Closing:
        def __init__(self, slide):
            self.slide, self.closed = slide, 0
            self.mpp = slide.mpp

        def fingerprint(self):
            return self.slide.fingerprint()

        def close(self):
            self.closed += 1

    section = cohort.read("P1S1")
    slide = Closing(section.slide)
    one = type(cohort).of([type(section)(*[*vars(section).values()][:2], slide, *[*vars(section).values()][3:])])
    read_pairs(one, GenePanel(section.genes), lambda s: np.zeros((len(s.spots), 1, 1), np.float16))
    assert slide.closed == 1


def test_the_fingerprint_sees_what_is_learnt_from(cohort, cache):
    panel = GenePanel(cohort.read("P1S1").genes[:20])

    def inputs_of(section):
        return np.zeros((len(section.spots), 1, 1), np.float16)

    whole = read_pairs(cohort, panel, inputs_of).fingerprint()
    assert whole == read_pairs(cohort, panel, inputs_of).fingerprint()
    assert whole != read_pairs(cohort.without(["P1S1"]), panel, inputs_of).fingerprint()
    assert whole != read_pairs(cohort, GenePanel(panel.genes[::-1]), inputs_of).fingerprint()


def test_tokens_of_a_cohort_arrive_as_they_were_encoded(cohort, cache, config):
    from cmrcnet.models.encoders import create_image_encoder

    encoder = create_image_encoder("efficientnet-lite0", blocks=(4,))
    sections = cohort.only(["P3S1"])

    def inputs_of(section):
        return extract(encoder, section.slide, section.spots.centre_px, FeatureSpec(patch=config.patch), cache=cache)

    pairs = read_pairs(sections, GenePanel(sections.read("P3S1").genes), inputs_of)
    np.testing.assert_array_equal(
        pairs.batch(np.array([5]))[0].numpy()[0], inputs_of(sections.read("P3S1"))[5].astype(np.float32)
    )
