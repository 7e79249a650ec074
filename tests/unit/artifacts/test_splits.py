"""nnU-Net's splits_final.json, read and written."""

import json

import pytest

from medsegdiff_cli.artifacts.splits import Fold, Splits, read_splits, write_splits
from medsegdiff_cli.errors import InputDataError, UsageError

SPLITS = Splits(folds=(Fold(train=("a", "b"), val=("c",)), Fold(train=("c", "a"), val=("b",))))


def test_splits_are_written_as_nnunet_reads_them_and_read_back(tmp_path):
    write_splits(tmp_path / "splits_final.json", SPLITS)
    content = json.loads((tmp_path / "splits_final.json").read_text())
    assert content == [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c", "a"], "val": ["b"]}]
    assert read_splits(tmp_path / "splits_final.json", ["a", "b", "c"]) == SPLITS


def test_folds_are_found_by_number_and_all_trains_on_everything():
    assert SPLITS.fold("1").val == ("b",)
    assert SPLITS.fold("all") == Fold(train=("a", "b", "c"), val=())


@pytest.mark.parametrize("name", ["2", "-1", "every", ""])
def test_a_fold_that_does_not_exist_is_a_usage_error(name):
    with pytest.raises(UsageError, match=f"no fold '{name}'") as error:
        SPLITS.fold(name)
    assert error.value.fix == "choose 0 to 1, or all"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"train": ["a", "zzz"], "val": ["b"]}], r"fold 0: unknown cases \['zzz'\]"),
        ([{"train": ["a"], "val": ["b"]}, {"train": ["a", "b"], "val": ["b"]}], r"fold 1: cases \['b'\] both"),
        ({"train": ["a"]}, "folds"),
        ([{"train": ["a"]}], r"folds\.0\.val: field required"),
        ([{"train": ["a"], "val": [], "test": []}], r"unknown key 'folds\.0\.test'"),
    ],
)
def test_splits_that_cannot_be_are_input_errors(tmp_path, content, message):
    (tmp_path / "splits_final.json").write_text(json.dumps(content))
    with pytest.raises(InputDataError, match=message) as error:
        read_splits(tmp_path / "splits_final.json", ["a", "b", "c"])
    assert error.value.where == str(tmp_path / "splits_final.json")


def test_names_are_not_checked_when_the_cases_are_not_known(tmp_path):
    write_splits(tmp_path / "splits_final.json", SPLITS)
    assert read_splits(tmp_path / "splits_final.json") == SPLITS
