"""Several views of a patch: independent ones, and aligned ones that differ in their intensities only."""

import numpy as np
import pytest
import torch
from batching_phantoms import TWO_CLASSES, write_case

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.artifacts.recipe import AugmentationSettings
from medsegdiff_cli.batching.augmentation import Augmenter
from medsegdiff_cli.batching.loader import make_batches
from medsegdiff_cli.errors import UsageError

MOVING = {
    "p_rotation": 1.0,
    "p_scaling": 1.0,
    "p_crop": 1.0,
    "p_border_crop": 0.5,
    "p_translation": 1.0,
    "translation_voxels": 3.0,
}
STILL = {f"p_{name}": 0.0 for name in ("rotation", "scaling", "noise", "blur", "brightness", "contrast")}
STILL |= {"p_low_resolution": 0.0, "p_gamma": 0.0, "p_gamma_inverted": 0.0, "mirror": False}
SHAPES = pytest.mark.parametrize(("grid", "patch"), [((40, 48), (16, 16)), ((20, 24, 28), (8, 12, 12))], ids=str)


def coordinates(tmp_path, grid: tuple[int, ...]) -> PreprocessedStore:
    """Return a store of two cases whose channels say where a voxel is."""
    store = PreprocessedStore(tmp_path / "store")
    image = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij")).astype(np.float16)
    for index in range(2):
        write_case(store, f"case_{index}", None, image + 100 * index)
    return store


def views(store: PreprocessedStore, patch: tuple[int, ...], augmentation: dict, **changes) -> list[Batch]:
    arguments = {
        "scheme": TWO_CLASSES,
        "patch_size": patch,
        "batch_size": 4,
        "seed": 3,
        "augmentation": AugmentationSettings(**{**STILL, **augmentation}),
        "mirror_axes": tuple(range(len(patch))),
        "steps": 3,
        "supervision": "none",
        "views": 2,
        **changes,
    }
    return list(make_batches(store, store.cases(), **arguments))


@SHAPES
def test_aligned_views_show_the_same_places_up_to_their_intensities(tmp_path, grid, patch) -> None:
    store = coordinates(tmp_path, grid)
    moving = {**MOVING, "mirror": True}
    for batch in views(store, patch, moving, aligned=True):
        assert torch.equal(batch.image, batch.views[0])
    for batch in views(store, patch, moving):
        assert not any(torch.equal(a, b) for a, b in zip(batch.image, batch.views[0], strict=True))
    # A number added to each channel, and a factor for each: places are the same up to these.
    for batch in views(store, patch, {**moving, "p_offset": 1.0, "offset": 5.0, "p_brightness": 1.0}, aligned=True):
        for first, second in zip(batch.image.flatten(2), batch.views[0].flatten(2), strict=True):
            for one, other in zip(first.double(), second.double(), strict=True):
                slope, offset = np.polyfit(one, other, 1)
                assert abs(slope - 1) > 1e-4
                torch.testing.assert_close(slope * one + offset, other, rtol=0, atol=2e-3)


def test_mirroring_is_shared_and_happens(tmp_path) -> None:
    store = coordinates(tmp_path, (40, 48))
    seen = set()
    for batch in views(store, (16, 16), {"mirror": True, "p_noise": 1.0}, aligned=True, steps=6):
        for first, second in zip(batch.image, batch.views[0], strict=True):
            signs = [bool(v[0, -1, 0] > v[0, 0, 0]) for v in (first, second)]
            assert signs[0] == signs[1]
            assert not torch.equal(first, second)
            seen.add(signs[0])
    assert seen == {True, False}


@pytest.mark.parametrize("aligned", [False, True])
def test_views_do_not_depend_on_ranks_starts_or_workers_and_the_first_is_that_of_a_single_one(tmp_path, aligned):
    store = coordinates(tmp_path, (40, 48))
    everything = {**MOVING, "mirror": True, "p_noise": 1.0, "p_offset": 0.5}
    whole = views(store, (16, 16), everything, aligned=aligned)
    later = views(store, (16, 16), everything, aligned=aligned, start_step=2)
    assert torch.equal(whole[2].image, later[0].image)
    assert torch.equal(whole[2].views[0], later[0].views[0])
    for rank in (0, 1):
        part = views(store, (16, 16), everything, aligned=aligned, rank=rank, world_size=2)
        for all_items, own in zip(whole, part, strict=True):
            assert torch.equal(all_items.image[rank::2], own.image)
            assert torch.equal(all_items.views[0][rank::2], own.views[0])
    single = views(store, (16, 16), everything, views=1)
    assert torch.equal(single[0].image, whole[0].image) == (not aligned)


def test_views_of_one_patch_a_process_cannot_be_compared(tmp_path) -> None:
    store = coordinates(tmp_path, (40, 48))
    with pytest.raises(UsageError, match="batch of 1 cannot be shared by 1 processes, each of which compares") as error:
        views(store, (16, 16), {}, batch_size=1)
    assert error.value.fix == "use a batch size of at least 2"
    with pytest.raises(UsageError, match="batch of 3 cannot be shared by 2 processes"):
        views(store, (16, 16), {}, batch_size=3, world_size=2)
    assert len(views(store, (16, 16), {}, batch_size=4, world_size=2)) == 3


def test_crops_keep_their_share_of_each_axis_and_begin_where_they_fit() -> None:
    augmenter = Augmenter(AugmentationSettings(**STILL, p_crop=1.0, crop=0.75), (40, 40), ())
    drawn = [np.array(augmenter.draw(np.random.default_rng(seed)).border_crop) for seed in range(400)]
    begins, ends = np.stack(drawn)[..., 0], np.stack(drawn)[..., 1]
    kept = 1 - begins - ends
    assert begins.min() >= 0
    assert ends.min() >= -1e-12
    assert kept.min() >= 0.75
    # Begin b is uniform up to a quarter, what is kept then uniform from three quarters to 1 - b.
    assert begins.mean() == pytest.approx(0.125, abs=0.01)
    assert begins.max() > 0.24
    assert kept.mean() == pytest.approx((0.75 + 0.875) / 2, abs=0.01)
    assert (kept.min(), kept.max()) == (pytest.approx(0.75, abs=0.01), pytest.approx(1, abs=0.03))
    ramp = np.arange(40, dtype=np.float32)[None, :, None].repeat(40, 2)
    draw = augmenter.draw(np.random.default_rng(0))
    image, _ = augmenter(ramp, None, draw, 0)
    (low, high), _ = draw.border_crop
    assert image[0, 20, 0] - image[0, 19, 0] == pytest.approx(1 - low - high, abs=1e-4)
    assert image[0].mean() == pytest.approx(19.5 + (low - high) / 2 * 40, abs=1e-3)


def test_a_crop_within_cropped_borders_stretches_what_both_leave() -> None:
    both = AugmentationSettings(**STILL, p_crop=1.0, crop=0.5, p_border_crop=1.0, border_crop=0.1)
    alone = both.model_copy(update={"p_crop": 0.0})
    for seed in range(20):
        two, one = (Augmenter(s, (16, 16), ()).draw(np.random.default_rng(seed)).border_crop for s in (both, alone))
        assert (np.array(two) >= np.array(one) - 1e-12).all()
        assert (1 - np.sum(two, 1) >= 0.5 * (1 - np.sum(one, 1)) - 1e-12).all()


def test_offsets_are_uniform_and_the_same_all_over_a_channel() -> None:
    augmenter = Augmenter(AugmentationSettings(**STILL, p_offset=0.5, offset=0.3), (4, 4), ())
    plain = augmenter.draw(np.random.default_rng(0))
    image = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)
    added = []
    for seed in range(300):
        moved, _ = augmenter(image.copy(), None, plain, seed)
        assert moved.dtype == np.float32
        difference = moved - image
        assert np.ptp(difference, axis=(1, 2)).max() < 1e-6
        added.append(difference[:, 0, 0])
    values = np.array(added)
    changed = values[np.abs(values).max(1) > 0]
    assert 0.4 < len(changed) / len(values) < 0.6
    assert np.abs(changed).max() == pytest.approx(0.3, abs=0.02)
    assert changed.mean() == pytest.approx(0, abs=0.04)
    assert np.abs(np.corrcoef(changed.T)[0, 1]) < 0.2
