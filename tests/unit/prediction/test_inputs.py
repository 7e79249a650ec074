"""Finding the images to predict: names, channels, lists, folders, and words about what was left out."""

from pathlib import Path

import pytest

from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.prediction.inputs import InputCase, find_inputs, shard


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def names_of(found) -> dict[str, list[str]]:
    return {case.case: [path.name for path in case.images] for case in found.cases}


def test_files_with_nnunets_names_are_the_channels_of_a_case(tmp_path):
    make(tmp_path, "b_0001.nii.gz", "b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz")
    found = find_inputs(tmp_path, 2, ".nii.gz")
    expected = {name: [f"{name}_0000.nii.gz", f"{name}_0001.nii.gz"] for name in "ab"}
    assert names_of(found) == expected
    assert found.skipped == ()


def test_a_single_channel_needs_no_suffix(tmp_path):
    make(tmp_path, "a.nii.gz", "b_0000.nii.gz")
    assert names_of(find_inputs(tmp_path, 1, ".nii.gz")) == {"a": ["a.nii.gz"], "b": ["b_0000.nii.gz"]}


def test_files_that_are_not_the_channels_are_skipped_with_a_reason(tmp_path):
    make(tmp_path, "a_0000.nii.gz", "a_0002.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", "c_0000.nii.gz", "c.nii.gz")
    found = find_inputs(tmp_path, 2, ".nii.gz")
    assert list(names_of(found)) == ["b"]
    assert {path.name: reason[:8] for path, reason in found.skipped} == {
        "a_0000.nii.gz": "case 'a'",
        "a_0002.nii.gz": "case 'a'",
        "c_0000.nii.gz": "case 'c'",
        "c.nii.gz": "case 'c'",
    }


def test_images_of_the_training_format_win_in_a_mixed_folder(tmp_path):
    make(tmp_path, "a.nii.gz", "overview.png", "notes.txt", ".hidden.nii.gz")
    found = find_inputs(tmp_path, 1, ".nii.gz")
    assert list(names_of(found)) == ["a"]
    assert sorted(path.name for path, _ in found.skipped) == ["notes.txt", "overview.png"]


def test_another_format_is_taken_when_it_is_the_only_one(tmp_path):
    make(tmp_path, "a.mha", "b.mha")
    assert list(names_of(find_inputs(tmp_path, 1, ".nii.gz"))) == ["a", "b"]


@pytest.mark.parametrize("name", ["prediction", "summary"])
def test_a_case_whose_sidecar_would_replace_a_file_of_the_output_is_skipped(tmp_path, name):
    make(tmp_path, f"{name}.nii.gz", "a.nii.gz")
    found = find_inputs(tmp_path, 1, ".nii.gz")
    assert list(names_of(found)) == ["a"]
    assert "rename" in found.skipped[0][1]


@pytest.mark.fault("F84")
def test_two_images_of_one_name_are_not_mixed_up(tmp_path):
    make(tmp_path, "one/a.nii.gz", "two/a.nii.gz", "two/b.nii.gz")
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join(str(tmp_path / name) for name in ("one/a.nii.gz", "two/a.nii.gz", "two/b.nii.gz")))
    assert list(names_of(find_inputs(listing, 1, ".nii.gz"))) == ["b"]
    assert list(names_of(find_inputs(listing, 2, ".nii.gz"))) == ["b"]


def test_a_file_and_a_list_of_files_are_inputs_too(tmp_path):
    make(tmp_path, "a.nii.gz", "b.nii.gz")
    assert names_of(find_inputs(tmp_path / "a.nii.gz", 1, ".nii.gz")) == {"a": ["a.nii.gz"]}
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'b.nii.gz'}\n\n{tmp_path / 'a.nii.gz'}\n")
    assert list(names_of(find_inputs(tmp_path / "list.txt", 1, ".nii.gz"))) == ["a", "b"]
    (tmp_path / "list.txt").write_text(str(tmp_path / "c.nii.gz"))
    with pytest.raises(InputDataError, match=r"1 listed files don't exist.*c\.nii\.gz"):
        find_inputs(tmp_path / "list.txt", 1, ".nii.gz")


def test_a_folder_of_folders_without_known_images_is_taken_for_dicom(tmp_path):
    make(tmp_path, "first/IM1", "first/IM2", "second/IM1")
    assert names_of(find_inputs(tmp_path, 1, ".nii.gz")) == {"first": ["first"], "second": ["second"]}
    series = find_inputs(tmp_path / "first", 1, ".nii.gz")
    assert names_of(series) == {"first": ["first"]}
    assert series.skipped == ()


def test_what_cannot_be_predicted_is_refused_with_words(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputDataError, match="no image to predict"):
        find_inputs(tmp_path / "empty", 1, ".nii.gz")
    with pytest.raises(UsageError, match="does not exist"):
        find_inputs(tmp_path / "nowhere", 1, ".nii.gz")
    make(tmp_path, "raw/dataset.json", "raw/imagesTr/a_0000.nii.gz")
    with pytest.raises(UsageError, match="imagesTs"):
        find_inputs(tmp_path / "raw", 1, ".nii.gz")


def test_shards_are_disjoint_and_together_everything():
    cases = [InputCase(case=f"c{number}", images=()) for number in (3, 1, 2, 0, 4)]
    shards = [shard(cases, 3, number) for number in range(3)]
    assert [[case.case for case in part] for part in shards] == [["c0", "c3"], ["c1", "c4"], ["c2"]]
    for wrong in ((0, 0), (3, 3), (3, -1)):
        with pytest.raises(UsageError):
            shard(cases, *wrong)
