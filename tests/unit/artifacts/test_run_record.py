"""run.json marks a run; folds are found by folder."""

import pytest

from medsegdiff_cli.artifacts.run import RunRecord, StageRecord, find_folds, read_run, run_name, write_run
from medsegdiff_cli.errors import IntegrityError, UsageError


def record(fold="0", *stages):
    return RunRecord(
        msd_version="0",
        method="supervised",
        dataset="Dataset004_X",
        dataset_path="/data",
        config="3d",
        fold=fold,
        seed=0,
        plan_digest="p",
        recipe_digest="r",
        train_cases=("a",),
        val_cases=("b",),
        stages=stages,
    )


def run_with(folder, *folds):
    for fold in folds:
        write_run(folder / f"fold_{fold}", record(fold))
    return folder


def test_a_record_is_read_back_as_written(tmp_path):
    written = record("all", StageRecord(name="train", status="running", steps_done=3, steps=10))
    write_run(tmp_path, written)
    assert read_run(tmp_path) == written


@pytest.mark.parametrize(
    ("statuses", "finished"), [((), False), (("finished",), True), (("finished", "running"), False)]
)
def test_a_run_is_finished_when_all_its_stages_are(statuses, finished):
    stages = [StageRecord(name=str(index), status=status) for index, status in enumerate(statuses)]
    assert record("0", *stages).is_finished == finished


def test_a_folder_without_a_record_and_a_damaged_one_are_integrity_errors(tmp_path):
    with pytest.raises(IntegrityError, match=r"run\.json is missing"):
        read_run(tmp_path)
    write_run(tmp_path, record())
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text[: len(text) // 2])
    with pytest.raises(IntegrityError, match="not valid JSON"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(text.replace('"seed"', '"sead"'))
    with pytest.raises(IntegrityError, match="did you mean 'seed'"):
        read_run(tmp_path)


def test_a_parent_stands_for_all_its_folds_or_for_those_wanted(tmp_path):
    parent = run_with(tmp_path, "0", "2", "all")
    (tmp_path / "fold_1").mkdir()  # begun, without a record
    assert [folder.name for folder in find_folds(parent)] == ["fold_0", "fold_2", "fold_all"]
    assert [folder.name for folder in find_folds(parent, ["2", "0"])] == ["fold_2", "fold_0"]


def test_a_fold_stands_for_itself(tmp_path):
    fold = run_with(tmp_path, "0", "1") / "fold_1"
    assert find_folds(fold) == [fold]


def test_a_missing_fold_is_a_usage_error_that_names_those_there_are(tmp_path):
    with pytest.raises(UsageError, match=r"folds \['3'\] are not trained") as error:
        find_folds(run_with(tmp_path, "0", "1"), ["0", "3"])
    assert error.value.fix == "trained: ['0', '1']"


def test_a_folder_without_folds_is_no_model(tmp_path):
    with pytest.raises(UsageError, match="is no trained model"):
        find_folds(tmp_path / "nothing")


def test_a_runs_name_shows_what_differs_from_the_defaults():
    assert run_name("supervised", "3d") == "supervised__3d"
    assert run_name("supervised", "2d", ["n6", "seed1"]) == "supervised__2d__n6__seed1"


@pytest.mark.parametrize("part", ["a__b", "a/b"])
def test_a_part_that_would_break_a_runs_name_is_a_usage_error(part):
    with pytest.raises(UsageError, match="cannot be part"):
        run_name("supervised", "3d", [part])
