"""Iterative methods over whole images: in windows and on a shared canvas, with steps, draws, mirroring, early ends."""

import pytest
import torch
from toy_walks import SCHEDULE, ToyWalk

from medsegdiff_cli.diffusion.gaussian import q_sample
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.inference import prepared_windows
from medsegdiff_cli.inference.fusion import RunningFusion, label_map
from medsegdiff_cli.inference.volume import InferenceSettings, StepRecord, predict_volume
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.methods.iterative import Prepared


def image_of(*shape, seed=0):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def walked(method, image, *, case="case", init=None, record=None, sampling=None, keep=False, **changes):
    settings = InferenceSettings(sampling=sampling or Sampling(), **changes)
    return predict_volume(
        [method], image, case, settings, init=init, record=record, keep_labels=keep, keep_variance=True
    )


def by_hand(method, image, noise, sampling=None, init=None):
    """Walk over the whole image (1, *grid) at once."""
    prepared = Prepared(tuple(image.shape[1:]), {"blocks": [image[None]]} if method.widened else image[None])
    start = None if init is None else init[None]
    return [step.probabilities[0] for step in method.steps(prepared, noise, sampling or Sampling(), start)]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
@pytest.mark.parametrize("memory", [0.0, 1.5])
@pytest.mark.parametrize("exclusive", [True, False])
def test_windows_on_a_shared_canvas_walk_as_the_whole_image_does(sampler, memory, exclusive):
    image, sampling = image_of(9, 14), Sampling(sampler=sampler, steps=4)
    method = ToyWalk(memory=memory, exclusive=exclusive)
    found = walked(method, image, patch_size=(4, 8), canvas="shared", sampling=sampling, seed=3).mean
    *_, expected = by_hand(method, image, NoiseSource([(3, "case", "canvas", 0)]), sampling)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_one_window_is_the_same_alone_and_on_a_canvas_but_for_the_name_of_its_noise():
    image, sampling = image_of(6, 7), Sampling(steps=4)
    shared = walked(ToyWalk(), image, patch_size=(6, 7), canvas="shared", sampling=sampling).mean
    *_, alone = by_hand(ToyWalk(), image, NoiseSource([(0, "case", 0, 0)]), sampling)
    torch.testing.assert_close(walked(ToyWalk(), image, patch_size=(6, 7), sampling=sampling).mean, alone)
    assert not torch.equal(shared, alone)
    *_, expected = by_hand(ToyWalk(), image, NoiseSource([(0, "case", "canvas", 0)]), sampling)
    torch.testing.assert_close(shared, expected)


@pytest.mark.parametrize("canvas", ["window", "shared"])
@pytest.mark.parametrize("stop_change", [None, 0.3])
def test_the_number_of_windows_per_call_changes_no_byte(canvas, stop_change):
    image, sampling = image_of(13, 11), Sampling(steps=6, stop_change=stop_change)
    results, taken = [], []
    for window_batch in (1, 2, 100):
        record = StepRecord()
        fusion = walked(
            ToyWalk(),
            image,
            patch_size=(8, 8),
            canvas=canvas,
            sampling=sampling,
            window_batch=window_batch,
            mirror_axes=(1,),
            draws=2,
            record=record,
        )
        results.append(fusion.mean)
        taken.append(sorted(record.steps_taken))
    assert all(torch.equal(results[0], other) for other in results)
    assert taken[0] == taken[1] == taken[2]


def test_draws_and_cases_have_canvases_of_their_own_whatever_their_order():
    image = torch.zeros(1, 6, 6)
    three = walked(ToyWalk(), image, patch_size=(4, 4), canvas="shared", draws=3)
    alone = []
    for draw in (2, 0, 1):
        noise = NoiseSource([(0, "case", "canvas", draw)])
        alone.append(by_hand(ToyWalk(), image, noise)[-1])
    torch.testing.assert_close(three.mean, torch.stack(alone).mean(0))
    assert three.variance.max() > 1e-3
    other = walked(ToyWalk(), image, patch_size=(4, 4), canvas="shared", case="other")
    assert not torch.equal(other.mean, alone[1])


@pytest.mark.parametrize("canvas", ["window", "shared"])
def test_slices_of_a_volume_are_walked_by_a_2d_method(canvas):
    image, calm = image_of(3, 6, 6), ToyWalk(state=0.0)
    found = walked(calm, image, patch_size=(4, 4), slices=True, canvas=canvas, mirror_axes=(2,)).mean
    expected = calm.denoise(Prepared((3, 6, 6), {"blocks": [image[None]]}), torch.zeros(1, 3, 3, 6, 6), 0, None)[0]
    torch.testing.assert_close(found, expected)
    moved = walked(ToyWalk(), image, patch_size=(4, 4), slices=True, canvas=canvas).mean
    assert not torch.allclose(moved, expected, atol=0.01)


def test_mirrored_versions_of_a_shared_canvas_are_averaged_at_every_step():
    """A method that prefers one side of its window sees the canvas mirrored, and what it estimates is turned back."""

    class OneSided(ToyWalk):
        def denoise(self, prepared, x_t, t, before):
            side = torch.linspace(0, 2, x_t.shape[-1])
            return (super().denoise(prepared, x_t, t, before).log() * side).softmax(1)

    class BothSides(OneSided):
        def denoise(self, prepared, x_t, t, before):
            turned = Prepared(prepared.shape, {"blocks": [b.flip(-1) for b in prepared.features["blocks"]]})
            there = super().denoise(turned, x_t.flip(-1), t, before)
            return (super().denoise(prepared, x_t, t, before) + there.flip(-1)) / 2

    image, sampling = image_of(5, 8), Sampling(steps=5)
    mirrored = walked(OneSided(), image, patch_size=(5, 8), canvas="shared", mirror_axes=(1,), sampling=sampling)
    expected = by_hand(BothSides(), image, NoiseSource([(0, "case", "canvas", 0)]), sampling)[-1]
    torch.testing.assert_close(mirrored.mean, expected)


@pytest.mark.parametrize("widened", [0, 3])
@pytest.mark.parametrize("limit", [0, 700, 1 << 30])
@pytest.mark.parametrize("canvas", ["window", "shared"])
def test_each_mirrored_window_is_prepared_once_whatever_steps_and_draws(monkeypatch, widened, limit, canvas):
    """Kept in memory, partly in memory and all in a file give the same bytes, too."""
    monkeypatch.setattr(prepared_windows, "KEPT_BYTES", limit)
    image, method = image_of(12, 10), ToyWalk(widened=widened)
    found = walked(
        method,
        image,
        patch_size=(8, 8),
        canvas=canvas,
        draws=4,
        window_batch=2,
        mirror_axes=(0, 1),
        sampling=Sampling(steps=5),
    )
    # An image that is its own preparation costs nothing to cut again.
    assert method.prepared_windows == 4 * 4
    plain = ToyWalk(widened=0 if widened else 2)
    again = walked(
        plain,
        image,
        patch_size=(8, 8),
        canvas=canvas,
        draws=4,
        window_batch=2,
        mirror_axes=(0, 1),
        sampling=Sampling(steps=5),
    )
    assert torch.equal(found.mean, again.mean)


@pytest.mark.parametrize("canvas", ["window", "shared"])
@pytest.mark.parametrize("draws", [1, 3])
def test_every_step_is_fused_over_draws_and_the_last_one_is_the_prediction(canvas, draws):
    image, sampling, record = image_of(9, 9), Sampling(steps=4), StepRecord(keep_steps=True, keep_labels=True)
    fusion = walked(
        ToyWalk(), image, patch_size=(6, 6), canvas=canvas, draws=draws, sampling=sampling, record=record, keep=True
    )
    assert list(record.fusions) == [100, 67, 33, 0]
    assert torch.equal(record.fusions[0].mean, fusion.mean)
    assert [one.count for one in record.fusions.values()] == [draws] * 4
    for number in range(draws):
        assert torch.equal(record.fusions[0].member_labels[number], fusion.member_labels[number])
    plain = walked(ToyWalk(), image, patch_size=(6, 6), canvas=canvas, draws=draws, sampling=sampling)
    assert torch.equal(plain.mean, fusion.mean)
    if canvas == "shared":
        every = [by_hand(ToyWalk(), image, NoiseSource([(0, "case", "canvas", d)]), sampling) for d in range(draws)]
        for step, one in enumerate(record.fusions.values()):
            torch.testing.assert_close(one.mean, torch.stack([draw[step] for draw in every]).mean(0))


@pytest.mark.parametrize("canvas", ["window", "shared"])
def test_a_settled_walk_ends_and_stands_still_for_the_steps_it_did_not_take(canvas):
    image, calm = 3 * image_of(9, 9).sign(), ToyWalk(state=0.01)
    record, method = StepRecord(keep_steps=True), calm
    sampling = Sampling(steps=8, stop_change=0.01)
    walked(method, image, patch_size=(6, 6), canvas=canvas, sampling=sampling, record=record)
    assert record.mean_steps_taken == 2  # the second step changed no label
    assert len(record.fusions) == 8
    steps = [one.mean for one in record.fusions.values()]
    assert all(torch.equal(steps[1], later) for later in steps[2:])
    assert not torch.equal(steps[0], steps[1])
    assert len(method.denoised_at) == 2 * 4


def test_a_canvas_settles_as_a_whole_where_windows_settle_one_by_one():
    """One corner keeps changing: its window goes on, and with it the whole canvas."""
    image = torch.full((1, 4, 16), 3.0)
    image[..., -4:] = 0.0
    record, shared = StepRecord(), StepRecord()
    sampling = Sampling(steps=6, stop_change=0.05)
    walked(ToyWalk(state=8.0), image, patch_size=(4, 4), step_size=1.0, sampling=sampling, record=record)
    walked(
        ToyWalk(state=8.0),
        image,
        patch_size=(4, 4),
        step_size=1.0,
        sampling=Sampling(steps=6, stop_change=0.0),
        canvas="shared",
        record=shared,
    )
    assert len(record.steps_taken) == 4
    assert shared.steps_taken == [6]
    assert record.mean_steps_taken < 6


@pytest.mark.parametrize("canvas", ["window", "shared"])
def test_a_warm_start_begins_at_the_segmentation_noised_to_its_timestep(canvas):
    image, sampling = image_of(5, 6), Sampling(steps=3, start=20)
    init = torch.nn.functional.one_hot(torch.randint(0, 3, (5, 6)), 3).movedim(-1, 0).float()
    found = walked(ToyWalk(), image, patch_size=(5, 6), canvas=canvas, sampling=sampling, init=init).mean
    name = "canvas" if canvas == "shared" else 0
    expected = by_hand(ToyWalk(), image, NoiseSource([(0, "case", name, 0)]), sampling, init)[-1]
    torch.testing.assert_close(found, expected)
    # With hardly any noise, the segmentation itself decides.
    stubborn = ToyWalk(state=50.0)
    kept = walked(
        stubborn, image, patch_size=(4, 8), canvas=canvas, sampling=Sampling(steps=1, start=0), init=init
    ).mean
    assert torch.equal(label_map(kept, True), label_map(init, True))
    noised = q_sample(2 * init[None] - 1, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3, 5, 6), SCHEDULE)
    assert (noised - (2 * init[None] - 1)).abs().max() < 0.1


def test_the_means_of_draws_do_not_share_memory_with_the_means_of_steps():
    record = StepRecord(keep_steps=True)
    fusion = walked(ToyWalk(), image_of(6, 6), patch_size=(6, 6), draws=2, record=record)
    assert isinstance(fusion, RunningFusion)
    assert fusion.mean.untyped_storage().data_ptr() != record.fusions[0].mean.untyped_storage().data_ptr()
