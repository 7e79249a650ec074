"""`msd runs`: listing and deleting run folders."""

import json

import pytest

from medsegdiff_cli.artifacts.run import RunRecord, StageRecord, write_run
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.paths import Workspace
from medsegdiff_cli.workflows.runs import delete_run, list_runs


@pytest.fixture
def place(tmp_path):
    return Workspace(tmp_path / "workspace")


def make_run(place, run="supervised__3d", fold="0", dataset="Dataset004_Hippocampus", status="finished", done=300):
    folder = place.results / dataset / run / f"fold_{fold}"
    write_run(
        folder,
        RunRecord(
            msd_version="0.1.0",
            method="supervised",
            dataset=dataset,
            dataset_path="/data",
            config="3d",
            fold=fold,
            seed=0,
            plan_digest="p",
            recipe_digest="r",
            train_cases=("a",),
            val_cases=("b",),
            stages=(StageRecord(name="train", status=status, steps_done=done, steps=300),),
        ),
    )
    return folder


def validate(folder, dice):
    (folder / "validation").mkdir()
    (folder / "validation" / "summary.json").write_text(json.dumps({"foreground_mean": {"Dice": dice}}))


def test_a_workspace_without_results_has_no_runs(place):
    assert list_runs(place) == []


def test_each_fold_is_a_row_with_state_score_and_size(place):
    folder = make_run(place)
    validate(folder, 0.875)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.safetensors").write_bytes(b"x" * 5000)
    make_run(place, fold="1", status="planned", done=0)
    first, second = list_runs(place)
    assert (first["dataset"], first["run"], first["fold"]) == ("Dataset004_Hippocampus", "supervised__3d", "0")
    assert (first["state"], first["steps"], first["dice"]) == ("finished", "300/300", 0.875)
    assert first["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert first["size"] == f"{first['bytes'] / 1024:.0f} KB"
    assert (second["state"], second["steps"], second["dice"]) == ("planned", "0/300", None)


def test_a_training_under_way_shows_the_steps_of_its_journal(place):
    folder = make_run(place, status="planned", done=0)
    lines = [json.dumps({"stage": "train", "step": step, "loss": 1.0}) for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"stage": "train", "st']))
    (row,) = list_runs(place)
    assert (row["state"], row["steps"]) == ("running", "20/300")


def test_a_training_that_was_stopped_early_shows_its_checkpoint(place):
    folder = make_run(place, status="planned", done=0)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step_00000007.json").write_text("{}")
    (row,) = list_runs(place)
    assert (row["state"], row["steps"]) == ("running", "7/300")


def test_a_damaged_run_is_listed_as_such(place):
    (make_run(place) / "run.json").write_text("{")
    (row,) = list_runs(place)
    assert row["state"] == "damaged"


def test_only_runs_of_the_dataset_asked_for_are_listed(place):
    make_run(place)
    make_run(place, dataset="Dataset005_Lungs")
    raw = place.raw / "Dataset005_Lungs"
    raw.mkdir(parents=True)
    (raw / "dataset.json").write_text("{}")
    assert [row["dataset"] for row in list_runs(place, "5")] == ["Dataset005_Lungs"]


def test_folders_without_run_json_and_links_are_no_runs(place, tmp_path):
    (place.results / "Dataset004_Hippocampus" / "notes" / "fold_0").mkdir(parents=True)
    elsewhere = make_run(Workspace(tmp_path / "other"))
    (place.results / "Dataset004_Hippocampus" / "linked").symlink_to(elsewhere.parent)
    assert list_runs(place) == []


def test_deleting_a_run_removes_all_its_folds_and_nothing_else(place):
    first, kept = make_run(place), make_run(place, run="supervised__2d")
    make_run(place, fold="1")
    folder, size = delete_run("supervised__3d", place)
    assert folder == first.parent
    assert size.endswith("KB")
    assert not first.parent.exists()
    assert kept.is_dir()


def test_one_fold_can_be_deleted_by_its_name_or_path(place):
    first, second, third = (make_run(place, fold=fold) for fold in "012")
    delete_run("supervised__3d/fold_0", place)
    delete_run(str(second), place)
    assert [row["fold"] for row in list_runs(place)] == ["2"]
    assert not first.exists()
    assert third.is_dir()


def test_nothing_is_deleted_when_the_answer_is_no(place):
    folder, questions = make_run(place), []

    def refuse(text):
        questions.append(text)
        return False

    assert delete_run("supervised__3d", place, confirm=refuse) == (folder.parent, "")
    assert str(folder.parent) in questions[0]
    assert folder.is_dir()


def test_links_inside_a_run_are_removed_but_never_followed(place, tmp_path):
    folder = make_run(place)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data.txt").write_text("keep me" * 1000)
    (folder / "images").symlink_to(precious)
    (row,) = list_runs(place)
    assert row["bytes"] < 7000
    delete_run("supervised__3d", place)
    assert (precious / "data.txt").is_file()


def test_a_link_to_a_run_elsewhere_is_not_deleted(place, tmp_path):
    elsewhere = make_run(Workspace(tmp_path / "other"))
    link = place.results / "Dataset004_Hippocampus" / "supervised__3d"
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere.parent)
    for name in ("supervised__3d", str(link), str(elsewhere.parent)):
        with pytest.raises(UsageError):
            delete_run(name, place)
    assert elsewhere.is_dir()


def test_an_unknown_run_names_the_nearest_one(place):
    make_run(place)
    with pytest.raises(UsageError) as error:
        delete_run("supervized__3d", place)
    assert "did you mean 'supervised__3d'?" in str(error.value)


def test_a_name_that_several_runs_share_is_refused(place):
    make_run(place)
    make_run(place, dataset="Dataset005_Lungs")
    with pytest.raises(UsageError, match="names 2 runs"):
        delete_run("supervised__3d", place)
    delete_run("Dataset005_Lungs/supervised__3d", place)
    assert [row["dataset"] for row in list_runs(place)] == ["Dataset004_Hippocampus"]
