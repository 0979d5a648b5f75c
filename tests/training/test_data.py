"""What is collected of a cohort, gathered quickly and batch by batch, equal to gathering it plainly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric

from cmrcnet.errors import BadOption, ShapeMismatch
from cmrcnet.features.extract import extract
from cmrcnet.features.spec import FeatureSpec
from cmrcnet.genes.gene_sets import GenePanel, gene_sets
from cmrcnet.genes.scaling import COUNTS
from cmrcnet.slides.section import Cohort, CohortEntry
from cmrcnet.training import data as data_module
from cmrcnet.training import fit as fit_module
from cmrcnet.training.data import ExpressionSample, TrainingData, as_tensors, epoch_batches, steps_in
from cmrcnet.training.module import augment_patches, on_device
from tests.training.conftest import made_up_pairs


@settings(max_examples=30, deadline=None)
@given(ids=st.lists(st.integers(0, 15), max_size=12), inputs=st.sampled_from(["tokens", "patches"]))
def test_a_batch_is_what_plain_indexing_gives(ids, inputs):
    pairs = made_up_pairs(inputs=inputs)
    tensors, expression = as_tensors(*pairs.gather(np.array(ids, int)))
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
    pairs.gather(np.array([12, 0, 6, 4, 15, 5]))
    assert read == sorted(read)
    assert len(read) == 6


@pytest.mark.parametrize("ids", [[16], [-1], [[0, 1]]])
def test_ids_beyond_the_pairs_are_refused(ids):
    with pytest.raises(BadOption, match="a list of spots, 0 to 15"):
        made_up_pairs().gather(np.array(ids))


def test_inputs_must_fit_the_expression_and_each_other():
    pairs = made_up_pairs()
    with pytest.raises(ShapeMismatch, match="expression has shape"):
        TrainingData(pairs.sections, pairs.patients, pairs.inputs, pairs.expression[:-1])
    other = (*pairs.inputs[:2], np.zeros((8, 5, 4), np.float16))
    with pytest.raises(ShapeMismatch, match="one shape and type"):
        TrainingData(pairs.sections, pairs.patients, other, pairs.expression)


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


def test_token_statistics_do_not_depend_on_the_size_of_chunks():
    pairs = made_up_pairs(lengths=(90, 60), patients="AB")
    whole = pairs.token_statistics(np.arange(150))
    for ours, theirs in zip(pairs.token_statistics(np.arange(150), chunk=7), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_feature_that_never_varies_has_deviation_one():
    pairs = made_up_pairs()
    for array in pairs.inputs:
        array[:, :, 1] = 7
    mean, deviation = pairs.token_statistics(np.arange(16))
    assert (mean[1], deviation[1]) == (7, 1)
    assert deviation[0] != 1


@pytest.fixture(scope="module")
def encoder(cohort):
    return fit_module.create_image_encoder("efficientnet-lite0", blocks=(7,))


def test_collecting_keeps_order_maps_and_expression(cohort, cache, config, encoder):
    panel = GenePanel(cohort.read("P1S1").genes[:20])
    data = TrainingData.collect(cohort, config, encoder, cache, panel=panel)
    assert (data.sections, data.patients) == (cohort.sections, cohort.patients)
    assert len(data) == 72
    assert data.section_of.tolist() == [0] * 24 + [1] * 24 + [2] * 24
    second = cohort.read("P2S1")
    np.testing.assert_array_equal(data.expression[24:48].toarray(), panel.select(second).toarray())
    scored = GenePanel(gene_sets(cohort, panel.scaling, config.evaluation.set_size)["HVG"])
    np.testing.assert_array_equal(data.scored[24:48].toarray(), scored.select(second).toarray())
    tokens = extract(encoder, second.slide, second.spots.centre_px, FeatureSpec(patch=config.patch), cache=cache)
    assert not any(array.flags.writeable for array in data.inputs)  # of the cache, not copies
    np.testing.assert_array_equal(as_tensors(*data.gather(np.array([29])))[0].numpy()[0], tokens[5].astype(np.float32))


def test_every_section_is_read_once_and_its_slide_closed(cohort, cache, plan, encoder):
    class Closing:
        def __init__(self, slide):
            self.slide, self.closed = slide, 0

        def __getattr__(self, name):
            return getattr(self.slide, name)

        def close(self):
            self.closed += 1

    read, slides = [], []

    def entry(original):
        def load():
            section = original.load()
            read.append(section.name)
            slides.append(Closing(section.slide))
            return dataclasses.replace(section, slide=slides[-1])

        return CohortEntry(original.section, original.patient, load)

    watched = Cohort("watched", tuple(map(entry, cohort.entries)))
    data = TrainingData.collect(watched, plan, encoder, cache, limits=True)
    assert read == list(cohort.sections)
    assert [slide.closed for slide in slides] == [1, 1, 1]
    assert len(data.image_statistics) == len(data.perturbation_effects) == 3


def test_the_sample_of_expression_is_what_the_sections_measured(cohort, monkeypatch):
    first, second, third = cohort
    fewer = dataclasses.replace(
        second, genes=second.genes[::2], counts=second.counts[:, ::2], absent_genes="unmeasured"
    )
    monkeypatch.setattr(data_module, "CALIBRATION_SPOTS", 30)
    sample = ExpressionSample.of([first, fewer, third], COUNTS)
    assert sample.genes == first.genes and len(sample.rows) == 30
    assert sample.measured.sum(axis=1).tolist() == [len(first.genes), len(fewer.genes), len(first.genes)]
    inside = (sample.rows >= 24) & (sample.rows < 48)
    wanted = GenePanel(fewer.genes).select(fewer)[sample.rows[inside] - 24]
    np.testing.assert_allclose(sample.expression[inside][:, ::2].toarray(), wanted.toarray(), rtol=1e-6)
    assert sample.expression[inside][:, 1::2].nnz == 0


def test_the_fingerprint_sees_what_is_learnt_from(cohort, cache, config, encoder):
    panel = GenePanel(cohort.read("P1S1").genes[:20])

    def name(sections, chosen):
        return TrainingData.collect(sections, config, encoder, cache, panel=chosen).fingerprint()

    whole = name(cohort, panel)
    assert whole == name(cohort, panel)
    assert whole != name(cohort.without(["P1S1"]), panel)
    assert whole != name(cohort, GenePanel(panel.genes[::-1]))


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 16), batch_size=st.integers(1, 20), seed=st.integers(0, 3))
def test_every_pair_comes_once_in_batches_of_nearly_one_size(count, batch_size, seed):
    pairs = made_up_pairs()
    ids = np.random.default_rng(9).permutation(16)[:count]
    batches = list(epoch_batches(pairs, ids, batch_size, np.random.default_rng(seed)))
    sizes = [len(expression) for _, expression, _ in batches]
    assert len(sizes) == steps_in(count, batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    came = np.concatenate([inputs.reshape(len(inputs), -1) for inputs, _, _ in batches])
    wanted = pairs.gather(ids)[0].reshape(len(ids), -1)
    assert sorted(map(tuple, came.tolist())) == sorted(map(tuple, wanted.tolist()))


def test_each_symmetry_is_drawn_equally_often():
    pairs = made_up_pairs(lengths=(4000, 4000), patients="AB")
    ((*_, drawn),) = epoch_batches(pairs, np.arange(8000), 8000, np.random.default_rng(1))
    assert (np.bincount(drawn, minlength=8) > 850).all()


def test_a_seed_gives_one_order_and_another_seed_another():
    pairs = made_up_pairs(inputs="patches")

    def order(seed):
        rng = np.random.default_rng(seed)
        return np.concatenate([inputs for inputs, *_ in epoch_batches(pairs, np.arange(16), 5, rng)])

    assert np.array_equal(order(1), order(1))
    assert not np.array_equal(order(1), order(2))


def test_inputs_stay_with_their_expression():
    pairs = made_up_pairs()
    known = {tuple(inputs.flatten().tolist()): row for row, inputs in enumerate(pairs.gather(np.arange(16))[0])}
    for inputs, expression, _ in epoch_batches(pairs, np.arange(16), 6, np.random.default_rng(0)):
        rows = [known[tuple(each.flatten().tolist())] for each in inputs]
        np.testing.assert_array_equal(expression, pairs.expression.toarray()[rows])


@pytest.mark.parametrize("inputs", ["tokens", "patches"])
def test_augmentation_turns_and_changes_nothing_else(inputs):
    pairs = made_up_pairs(inputs=inputs)
    prefix = {"tokens": 1, "patches": 0}[inputs]  # 5 tokens: one before a grid of 2 x 2
    batch = next(iter(epoch_batches(pairs, np.arange(16), 16, np.random.default_rng(4))))
    fabric = Fabric(accelerator="cpu", devices=1)
    plain, genes = on_device(fabric, *batch, None)
    turned, same_genes = on_device(fabric, *batch, prefix)
    assert torch.equal(genes, same_genes)
    assert not torch.equal(plain, turned)
    assert torch.equal(plain.flatten(1).sort(dim=1).values, turned.flatten(1).sort(dim=1).values)
    if inputs == "patches":
        ways = [augment_patches(plain, np.full(16, way)) for way in range(8)]
        assert all(torch.equal(turned[i], ways[batch[2][i]][i]) for i in range(16))
