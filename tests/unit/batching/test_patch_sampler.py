"""Positions of patches, and cutting them."""

import numpy as np
import pytest

from medsegdiff_cli.artifacts.preprocessed_store import ANNOTATED, StoredCase
from medsegdiff_cli.batching.patch_sampler import OpenCase, choose_patch, cut, index_foreground, is_forced_foreground


def opened(label: np.ndarray, classes: dict[int, tuple[int, ...]]) -> OpenCase:
    """An open case whose foreground table holds every voxel of every class."""
    rows = [
        np.column_stack([np.full(np.isin(label, members).sum(), index), np.argwhere(np.isin(label, members))])
        for index, members in classes.items()
    ]
    slices = [z for z in range(len(label)) if np.isin(label[z], (1, 2)).any()]
    return index_foreground(
        StoredCase(
            case="a",
            image=np.zeros((1, *label.shape), np.float32),
            label=label,
            foreground=np.concatenate(rows).astype(np.int32),
            properties={"foreground_slices": slices},
        )
    )


def two_boxes(shape: tuple[int, ...] = (10, 20, 30)) -> OpenCase:
    label = np.zeros(shape, np.uint8)
    label[1:3, 2:4, 2:4] = 1
    label[6:9, 10:18, 15:28] = 2
    return opened(label, {1: (1,), 2: (2,)})


def test_a_box_inside_is_copied_and_what_sticks_out_is_zero() -> None:
    array = np.arange(1, 13).reshape(1, 3, 4)
    assert np.array_equal(cut(array, (1, 2), (2, 2)), [[[7, 8], [11, 12]]])
    assert np.array_equal(cut(array, (-1, 3), (3, 2)), [[[0, 0], [4, 0], [8, 0]]])
    assert np.array_equal(cut(array, (5, 0), (2, 2)), np.zeros((1, 2, 2)))


@pytest.mark.parametrize(
    ("batch_size", "share", "expected"), [(2, 0.33, [1]), (9, 0.33, [6, 7, 8]), (3, 0.0, []), (2, 1.0, [0, 1])]
)
def test_the_last_patches_of_the_global_batch_are_forced(batch_size: int, share: float, expected: list[int]) -> None:
    assert [p for p in range(batch_size) if is_forced_foreground(p, batch_size, share)] == expected


def test_a_forced_patch_holds_a_foreground_voxel_and_stays_inside() -> None:
    case, rng = two_boxes(), np.random.default_rng(0)
    assert case.stored.label is not None
    for _ in range(50):
        start = choose_patch(case, (4, 6, 8), rng, force_foreground=True).start
        assert all(0 <= s <= n - p for s, n, p in zip(start, (10, 20, 30), (4, 6, 8), strict=True))
        assert cut(case.stored.label[None], start, (4, 6, 8)).any()


def test_a_small_class_is_chosen_as_often_as_a_large_one() -> None:
    case, rng = two_boxes(), np.random.default_rng(0)
    starts = [choose_patch(case, (1, 1, 1), rng, force_foreground=True).start for _ in range(400)]
    # Class 1 has 8 voxels in slices 1 and 2, class 2 has 312; a fair coin lands within 200 +- 40 (4 sigma).
    assert 160 <= sum(start[0] < 3 for start in starts) <= 240


def test_random_positions_reach_every_place_with_equal_chance() -> None:
    case, rng = two_boxes(), np.random.default_rng(0)
    first = [choose_patch(case, (8, 20, 30), rng, force_foreground=False).start for _ in range(300)]
    counts = np.bincount([start[0] for start in first])
    assert {start[1:] for start in first} == {(0, 0)}
    assert len(counts) == 3
    assert counts.min() > 60


def test_a_patch_larger_than_the_grid_is_centred_on_it() -> None:
    case = two_boxes()
    start = choose_patch(case, (14, 21, 30), np.random.default_rng(0), force_foreground=False).start
    assert start == (-2, 0, 0)


def test_a_slice_is_that_of_the_foreground_voxel() -> None:
    case, rng = two_boxes(), np.random.default_rng(0)
    found = [choose_patch(case, (6, 8), rng, force_foreground=True, slices_2d=True) for _ in range(60)]
    assert {position.slice_index for position in found} == {1, 2, 6, 7, 8}
    assert all(len(position.start) == 2 for position in found)


def test_dropping_empty_slices_leaves_slices_with_foreground() -> None:
    case, rng = two_boxes(), np.random.default_rng(0)

    def slices(drop: bool) -> set[int | None]:
        positions = [
            choose_patch(case, (6, 8), rng, force_foreground=False, slices_2d=True, drop_empty_slices=drop)
            for _ in range(150)
        ]
        return {position.slice_index for position in positions}

    assert slices(drop=True) == {1, 2, 6, 7, 8}
    assert slices(drop=False) == set(range(10))


def test_where_few_voxels_are_annotated_random_patches_are_centred_on_those() -> None:
    label = np.full((10, 20, 30), 3, np.uint8)
    label[4, 9, 11] = 0
    label[5, 12, 20] = 1
    case, rng = opened(label, {ANNOTATED: (0, 1), 1: (1,)}), np.random.default_rng(0)
    starts = {choose_patch(case, (1, 1, 1), rng, force_foreground=False).start for _ in range(40)}
    assert starts == {(4, 9, 11), (5, 12, 20)}
    forced = {choose_patch(case, (1, 1, 1), rng, force_foreground=True).start for _ in range(40)}
    assert forced == {(5, 12, 20)}


def test_a_case_without_foreground_gives_random_patches() -> None:
    label = np.zeros((4, 4, 4), np.uint8)
    case = opened(label, {1: (1,)})
    assert case.rows == {}
    assert choose_patch(case, (4, 4, 4), np.random.default_rng(0), force_foreground=True).start == (0, 0, 0)
