"""What is kept of a label beside its voxels."""

import numpy as np
import pytest

from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.preprocessed_store import ANNOTATED
from medsegdiff_cli.preprocessing.foreground import (
    class_voxels,
    foreground_slices,
    foreground_table,
    n_sampled_voxels,
)

PLAIN = LabelScheme(class_names=("background", "a", "b"), values=(0, 5, 7))
REGIONS = LabelScheme(
    class_names=("whole", "core"), values=(0, 1, 2), regions=((1, 2), (2,)), region_values=(1, 2), ignore_value=9
)
LABEL = np.array([[[0, 1], [1, 2]], [[0, 0], [0, 0]], [[3, 3], [0, 2]]], np.uint8)


@pytest.mark.parametrize(
    ("n_voxels", "expected"), [(0, 0), (7, 7), (10_000, 10_000), (500_000, 10_000), (2_000_001, 20_001)]
)
def test_a_class_keeps_ten_thousand_voxels_or_one_percent(n_voxels: int, expected: int) -> None:
    assert n_sampled_voxels(n_voxels) == expected


def test_all_voxels_of_small_classes_are_listed_by_class() -> None:
    label = np.where(LABEL == 3, 0, LABEL)
    table = foreground_table(label, PLAIN, seed=1)
    assert table.dtype == np.int32
    assert table.tolist() == [[1, 0, 0, 1], [1, 0, 1, 0], [2, 0, 1, 1], [2, 2, 1, 1]]
    assert class_voxels(label, PLAIN) == {"a": 2, "b": 2}
    assert foreground_slices(label, PLAIN) == [0, 2]


def test_regions_overlap_and_annotated_voxels_are_a_class_of_their_own() -> None:
    table = foreground_table(LABEL, REGIONS, seed=1)
    index, counts = np.unique(table[:, 0], return_counts=True)
    assert dict(zip(index.tolist(), counts.tolist(), strict=True)) == {ANNOTATED: 10, 0: 4, 1: 2}
    assert class_voxels(LABEL, REGIONS) == {"whole": 4, "core": 2}


def test_a_large_class_is_sampled_without_repeats_and_by_seed() -> None:
    label = np.ones((300, 400), np.uint8)
    first, same, other = (foreground_table(label, PLAIN, seed=seed) for seed in (1, 1, 2))
    assert first.shape == (10_000, 3)
    assert len(np.unique(first, axis=0)) == 10_000
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_label_without_foreground_gives_an_empty_table() -> None:
    table = foreground_table(np.zeros((2, 3, 4), np.uint8), PLAIN, seed=1)
    assert table.shape == (0, 4)
    assert table.dtype == np.int32
