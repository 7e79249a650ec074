"""The target metric of validations, against sums over voxels by hand and by brute force; and what an epoch is."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.recipe import ResolvedRecipe, TrainingSettings, ValidationMetric
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.workflows.fold_validation import grid_overlaps, mean_score
from medsegdiff_cli.workflows.settled import with_epochs_as_steps, with_one_interval

IGNORE = 4


def scheme(*, ignore: bool = True, regions: Any = None) -> Any:
    """Return what the score needs of a label scheme: classes a, b, c at 1, 2, 3 and 4 ignored."""
    return SimpleNamespace(
        foreground_names=("a", "b", "c"),
        regions=regions,
        ignore_value=9 if ignore else None,
        ignore_index=IGNORE,
    )


def brute_force(pairs: list[tuple[np.ndarray, np.ndarray]], classes: range) -> float:
    """Return the mean IoU over the classes that occur, voxel by voxel in plain Python."""
    values = []
    for value in classes:
        both = either = 0
        for predicted, label in pairs:
            for p, r in zip(predicted.ravel().tolist(), label.ravel().tolist(), strict=True):
                if r != IGNORE:
                    both += p == value and r == value
                    either += p == value or r == value
        if either:
            values.append(both / either)
    return sum(values) / len(values)


def test_the_iou_of_a_dataset_equals_a_count_voxel_by_voxel() -> None:
    rng = np.random.default_rng(3)
    # Class 3 is nowhere, and one case lacks class 2; a fifth of the voxels is ignored.
    pairs = [(rng.integers(0, 3, (6, 7)), rng.choice([0, 1, 2, IGNORE], (6, 7))), (rng.integers(0, 2, (5, 3)),) * 2]
    overlaps = [grid_overlaps(predicted, label, scheme()) for predicted, label in pairs]
    value, details = mean_score(overlaps, "dataset_iou")
    assert value == pytest.approx(brute_force(pairs, range(4)))
    assert set(details) == {"background", "a", "b"}


def test_each_metric_of_two_cases_by_hand() -> None:
    """Case 1: a 1 of 3 voxels shared, b perfect. Case 2: a perfect with 2 voxels, b absent. Nothing has c."""
    first = (np.array([1, 1, 0, 2, 0]), np.array([1, 0, 1, 2, 0]))
    second = (np.array([1, 1, 0, 0, 0]), np.array([1, 1, 0, 0, 0]))
    overlaps = [grid_overlaps(*pair, scheme(ignore=False)) for pair in (first, second)]
    by_hand: dict[ValidationMetric, dict[str, float]] = {
        "dice": {"a": (2 / 4 + 1) / 2, "b": 1.0},
        "iou": {"a": (1 / 3 + 1) / 2, "b": 1.0},
        "dataset_iou": {"background": (1 + 3) / (3 + 3), "a": (1 + 2) / (3 + 2), "b": 1.0},
    }
    for metric, expected in by_hand.items():
        value, details = mean_score(overlaps, metric)
        assert details == pytest.approx(expected)
        assert value == pytest.approx(sum(expected.values()) / len(expected))


def test_regions_may_overlap_and_what_is_in_none_is_background() -> None:
    """Regions a = {1, 2}, b = {2}, c = {3}, predicted as bits 1, 2, 4."""
    predicted, label = np.array([3, 1, 0, 0, 4]), np.array([2, 2, 1, 0, 0])
    found = grid_overlaps(predicted, label, scheme(ignore=False, regions=((1, 2), (2,), (3,))))
    counts = {name: (overlap.tp, overlap.fp, overlap.fn) for name, overlap in found.items()}
    assert counts == {"background": (1, 1, 1), "a": (2, 0, 1), "b": (1, 0, 1), "c": (0, 1, 0)}


def test_a_score_of_nothing_is_undefined() -> None:
    empty = np.zeros(4, dtype=int)
    overlaps = [grid_overlaps(empty, empty, scheme())]
    assert math.isnan(mean_score(overlaps, "dice")[0])
    assert mean_score(overlaps, "dataset_iou") == (1.0, {"background": 1.0})


def test_the_real_scheme_has_what_the_score_asks_for() -> None:
    real = LabelScheme(class_names=("background", "a"), values=(0, 5))
    assert grid_overlaps(np.array([0, 1]), np.array([0, 1]), real)["a"].tp == 1


@pytest.mark.parametrize(("n_cases", "batch", "epochs", "steps"), [(20, 12, 1, 2), (24, 12, 1, 2), (25, 12, 3, 9)])
def test_an_epoch_is_as_many_batches_as_hold_the_cases(n_cases: int, batch: int, epochs: int, steps: int) -> None:
    training = TrainingSettings(validate_every_epochs=epochs)
    recipe = ResolvedRecipe.model_construct(training=training, batch_size=batch)
    settled = with_epochs_as_steps(recipe, n_cases).training
    assert (settled.validate_every_steps, settled.validate_every_epochs) == (steps, None)


def test_one_interval_replaces_the_other_and_two_are_refused() -> None:
    both = {"training": {"validate_every_epochs": 1, "validate_every_steps": 0}}
    kept = with_one_interval(both, {"validate_every_steps": "0"})["training"]
    assert kept == {"validate_every_epochs": None, "validate_every_steps": 0}
    kept = with_one_interval(both, {"training.validate_every_epochs": "1", "steps": "4"})["training"]
    assert kept == {"validate_every_epochs": 1, "validate_every_steps": None}
    for overrides in ({}, {"validate_every_epochs": "1", "validate_every_steps": "0"}):
        with pytest.raises(UsageError, match="both say when to validate"):
            with_one_interval(both, overrides)
