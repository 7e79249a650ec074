"""Folds and label budgets."""

import itertools
import json
from pathlib import Path

import pytest
from sklearn.model_selection import KFold

from medsegdiff_cli.artifacts.dataset_folder import open_dataset
from medsegdiff_cli.artifacts.splits import Fold, Splits, read_splits, write_splits
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.planning.splits import explain_splits, limit_cases, make_splits, splits_of


def _ungrouped(n: int) -> dict[str, str]:
    return {f"case_{index:03d}": f"case_{index:03d}" for index in range(n)}


@pytest.mark.parametrize("n", [5, 6, 7, 9, 10, 23, 48, 60, 131])
def test_folds_are_those_of_scikit_learn_and_so_of_nnunet(n: int) -> None:
    cases = sorted(_ungrouped(n))
    expected = KFold(5, shuffle=True, random_state=12345).split(cases)
    folds = make_splits(_ungrouped(n)).folds
    for fold, (train, val) in zip(folds, expected, strict=True):
        assert ([cases[i] for i in train], [cases[i] for i in val]) == (list(fold.train), list(fold.val))


def test_the_order_in_which_cases_are_given_does_not_matter() -> None:
    reversed_cases = dict(reversed(_ungrouped(12).items()))
    assert make_splits(_ungrouped(12)) == make_splits(reversed_cases)


def test_no_patient_is_on_both_sides_and_each_validates_once() -> None:
    groups = {f"slice_{index:02d}": f"patient_{index % 8}" for index in range(40)}
    folds = make_splits(groups).folds
    for fold in folds:
        assert not {groups[case] for case in fold.train} & {groups[case] for case in fold.val}
    assert sorted(groups) == sorted(case for fold in folds for case in fold.val)
    assert [len(fold.val) for fold in folds] == [5 * 2, 5 * 2, 5 * 2, 5 * 1, 5 * 1]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_fewer_cases_than_folds_leave_one_out_each(n: int) -> None:
    folds = make_splits(_ungrouped(n)).folds
    assert n == len(folds)
    assert all(len(fold.val) == 1 and len(fold.train) == n - 1 for fold in folds)


@pytest.mark.fault("F89")
def test_a_single_case_trains_and_nothing_validates() -> None:
    splits = make_splits({"only": "only"})
    assert [(fold.train, fold.val) for fold in splits.folds] == [(("only",), ())]
    assert "validates on none" in explain_splits(splits, {"only": "only"})[0]


def test_folds_of_the_users_own_file_are_named_as_such() -> None:
    splits = Splits(folds=(Fold(train=("a", "b"), val=("c",)),))
    first, second = explain_splits(splits, {name: name for name in "abc"})
    assert "one fold of at most 1 validation" in first
    assert "splits_final.json" in second


def test_without_a_labelled_case_the_error_says_what_unlabelled_images_are_for() -> None:
    with pytest.raises(InputDataError, match="pretrain"):
        make_splits({})


def test_smaller_budgets_are_nested_in_larger_ones() -> None:
    groups = _ungrouped(20)
    budgets = [limit_cases(groups, groups, n, seed=3) for n in range(1, 21)]
    for smaller, larger in itertools.pairwise(budgets):
        assert smaller == larger[:-1]
    assert sorted(groups) == sorted(budgets[-1])
    assert budgets[5] != limit_cases(groups, groups, 6, seed=4)


def test_a_budget_keeps_its_draw_order_when_cases_are_taken_away() -> None:
    groups = _ungrouped(20)
    all_drawn = limit_cases(groups, groups, 20, seed=0)
    without_first = [case for case in groups if case != all_drawn[0]]
    assert all_drawn[1:7] == limit_cases(without_first, groups, 6, seed=0)


def test_groups_count_as_one_unless_cases_are_counted() -> None:
    groups = {f"slice_{index:02d}": f"patient_{index % 4}" for index in range(20)}
    two_patients = limit_cases(groups, groups, 2)
    assert len(two_patients) == 2 * 5
    assert len({groups[case] for case in two_patients}) == 2
    assert len(limit_cases(groups, groups, 2, count="cases")) == 2


def test_more_labels_than_there_are_is_a_usage_error() -> None:
    groups = _ungrouped(4)
    with pytest.raises(UsageError, match="choose 1 to 4"):
        limit_cases(groups, groups, 5)


def _write_dataset(folder: Path, n: int) -> None:
    for kind, suffix in (("imagesTr", "_0000"), ("labelsTr", "")):
        (folder / kind).mkdir(parents=True)
        for index in range(n):
            (folder / kind / f"c{index}{suffix}.png").touch()
    content = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "a": 1}, "numTraining": n}
    (folder / "dataset.json").write_text(json.dumps({**content, "file_ending": ".png"}))


def test_the_users_splits_win_over_ours(tmp_path: Path) -> None:
    _write_dataset(tmp_path / "raw", 6)
    dataset = open_dataset(tmp_path / "raw")
    assert len(splits_of(dataset, tmp_path).folds) == 5
    own = [{"train": ["c0", "c1", "c2", "c3"], "val": ["c4", "c5"]}]
    (tmp_path / "raw" / "splits_final.json").write_text(json.dumps(own))
    assert [fold.val for fold in splits_of(dataset, tmp_path).folds] == [("c4", "c5")]


def test_folds_that_we_wrote_follow_when_cases_come(tmp_path: Path) -> None:
    _write_dataset(tmp_path / "raw", 8)
    dataset = open_dataset(tmp_path / "raw")
    older = {f"c{index}": f"c{index}" for index in range(7)}
    write_splits(tmp_path / "splits_final.json", make_splits(older))
    assert make_splits({**older, "c7": "c7"}) == splits_of(dataset, tmp_path)


def test_splits_return_unchanged_from_the_disk(tmp_path: Path) -> None:
    splits = make_splits(_ungrouped(11))
    write_splits(tmp_path / "splits_final.json", splits)
    assert splits == read_splits(tmp_path / "splits_final.json", list(_ungrouped(11)))
    with pytest.raises(InputDataError, match="unknown cases"):
        read_splits(tmp_path / "splits_final.json", list(_ungrouped(10)))
