"""The workspace's layout, and how a dataset is found by id, name or path."""

from pathlib import Path

import pytest

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.paths import Workspace, dataset_folder_name, find_dataset, open_workspace


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.chdir(tmp_path)
    space = Workspace(tmp_path / "space")
    for name in ("Dataset004_Hippocampus", "Dataset007_Heart", "Dataset1234_Big", "notes"):
        (space.raw / name).mkdir(parents=True)
    return space


@pytest.mark.parametrize("reference", ["4", "004", "Hippocampus", "Dataset004_Hippocampus"])
def test_a_dataset_is_found_by_id_and_name(workspace, reference):
    assert find_dataset(reference, workspace) == workspace.raw / "Dataset004_Hippocampus"


def test_a_dataset_is_found_by_path_wherever_it_lies(workspace, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "mine"
    elsewhere.mkdir(parents=True)
    (elsewhere / "dataset.json").write_text("{}")
    assert find_dataset(str(elsewhere), workspace) == elsewhere
    assert find_dataset("elsewhere/mine", workspace) == elsewhere


def test_a_folder_of_that_name_without_a_dataset_json_does_not_hide_the_dataset(workspace, tmp_path):
    (tmp_path / "4").mkdir()
    assert find_dataset("4", workspace) == workspace.raw / "Dataset004_Hippocampus"


def test_an_unknown_dataset_is_a_usage_error_with_the_nearest_name(workspace):
    with pytest.raises(UsageError, match="did you mean 'Dataset004_Hippocampus'") as error:
        find_dataset("Hipocampus", workspace)
    assert str(workspace.raw) in str(error.value)
    assert error.value.exit_code == 2


def test_an_id_that_two_datasets_have_is_a_usage_error(workspace):
    (workspace.raw / "Dataset004_Other").mkdir()
    with pytest.raises(UsageError, match=r"names 2 datasets: Dataset004_Hippocampus, Dataset004_Other"):
        find_dataset("4", workspace)
    assert find_dataset("Other", workspace).name == "Dataset004_Other"


def test_nnunets_raw_folder_is_searched_after_ours(workspace, tmp_path, monkeypatch):
    foreign = tmp_path / "nnunet"
    for name in ("Dataset004_Hippocampus", "Dataset009_Spleen"):
        (foreign / name).mkdir(parents=True)
    monkeypatch.setenv("nnUNet_raw", str(foreign))
    assert find_dataset("9", workspace) == foreign / "Dataset009_Spleen"
    assert find_dataset("4", workspace) == workspace.raw / "Dataset004_Hippocampus"


def test_an_empty_workspace_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(UsageError, match="msd convert"):
        find_dataset("4", Workspace(tmp_path / "nowhere"))


def test_the_workspace_is_the_option_else_the_variable_else_beside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MSD_WORKSPACE", raising=False)
    assert open_workspace(None).root == tmp_path / "msd_workspace"
    monkeypatch.setenv("MSD_WORKSPACE", str(tmp_path / "by_variable"))
    assert open_workspace(None).root == tmp_path / "by_variable"
    assert open_workspace(Path("by_option")).root == tmp_path / "by_option"
    assert list(tmp_path.iterdir()) == [], "nothing is created"


def test_the_workspace_has_one_place_for_each_thing(tmp_path):
    space = Workspace(tmp_path)
    assert space.plans_file("Dataset004_X") == tmp_path / "preprocessed" / "Dataset004_X" / "plans.yaml"
    assert space.store_folder("Dataset004_X", "wide", "3d") == tmp_path / "preprocessed" / "Dataset004_X" / "wide_3d"
    assert space.results == tmp_path / "results"


def test_dataset_names_are_nnunets():
    assert dataset_folder_name(4, "Hippo-campus_2") == "Dataset004_Hippo-campus_2"


@pytest.mark.parametrize(("number", "name"), [(0, "X"), (1000, "X"), (4, "a b"), (4, "../x"), (4, ""), (4, "_x")])
def test_names_that_shells_stumble_over_are_refused(number, name):
    with pytest.raises(UsageError):
        dataset_folder_name(number, name)
