"""nnU-Net's raw folders are read as they are: listings, v1 spelling, hidden files, channel order."""

import json
import re

import pytest

from medsegdiff_cli.artifacts.dataset_folder import DatasetJson, images_by_case, open_dataset, write_dataset_json
from medsegdiff_cli.errors import InputDataError

INFO = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "organ": 1},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def dataset(folder, files=(), **changes):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "dataset.json").write_text(json.dumps({**INFO, **changes}))
    return folder


def test_cases_have_their_channels_in_order_and_their_label_mask_group_and_domain(tmp_path):
    files = [
        "imagesTr/b_0001.nii.gz",
        "imagesTr/b_0000.nii.gz",
        "imagesTr/a_1_0000.nii.gz",
        "imagesTr/a_1_0001.nii.gz",
        "labelsTr/b.nii.gz",
        "masksTr/b.nii.gz",
        "imagesUn/u_0000.nii.gz",
    ]
    opened = open_dataset(dataset(tmp_path, files, groups={"b": "patient"}, domains={"b": "site"}))
    first, second = opened.cases("Tr")
    assert (first.case, second.case) == ("a_1", "b")
    assert [path.name for path in second.images] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert (second.label, second.mask) == (tmp_path / "labelsTr" / "b.nii.gz", tmp_path / "masksTr" / "b.nii.gz")
    assert (second.group, second.domain) == ("patient", "site")
    assert (first.label, first.mask, first.group, first.domain) == (None, None, "a_1", "")
    assert [case.case for case in opened.cases("Un")] == ["u"]
    assert opened.cases("Ts") == []


def test_hidden_and_foreign_files_are_left_out(tmp_path):
    names = [
        "a_0000.nii.gz",
        "._a_0000.nii.gz",
        ".b_0000.nii.gz",
        "c.nii.gz",
        "d_0000.nii",
        "e_000.nii.gz",
        "notes.txt",
    ]
    for name in names:
        (tmp_path / name).touch()
    assert list(images_by_case(tmp_path, ".nii.gz")) == ["a"]
    assert images_by_case(tmp_path / "missing", ".nii.gz") == {}


def test_the_dot_of_a_file_ending_is_a_dot(tmp_path):
    (tmp_path / "a_0000xpng").touch()
    assert images_by_case(tmp_path, ".png") == {}


def test_an_explicit_listing_replaces_the_training_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "other"))
    listing = {
        "z": {"images": ["../files/z_t1.nii.gz", "$ELSEWHERE/z_t2.nii.gz"], "label": "../files/z_label.nii.gz"},
        "a": {"images": ["../files/a.nii.gz"]},
    }
    folder = tmp_path / "data"
    dataset(folder, ["imagesTr/ignored_0000.nii.gz", "imagesTs/t_0000.nii.gz"], dataset=listing)
    first, second = open_dataset(folder).cases("Tr")
    assert (first.case, first.label) == ("a", None)
    assert second.images == (tmp_path / "files" / "z_t1.nii.gz", tmp_path / "other" / "z_t2.nii.gz")
    assert second.label == tmp_path / "files" / "z_label.nii.gz"
    assert [case.case for case in open_dataset(folder).cases("Ts")] == ["t"]


@pytest.mark.parametrize("listing", [["a"], {"a": {"label": "x"}}, {"a": "x.nii.gz"}, {"a": {"images": "x.nii.gz"}}])
def test_a_listing_of_another_form_is_an_input_error(tmp_path, listing):
    folder = dataset(tmp_path, dataset=listing)
    with pytest.raises(InputDataError, match="dataset"):
        open_dataset(folder).cases("Tr")


def test_v1s_modality_is_read_as_channel_names(tmp_path):
    content = {key: value for key, value in INFO.items() if key != "channel_names"}
    (tmp_path / "dataset.json").write_text(json.dumps({**content, "modality": {"0": "CT"}}))
    assert open_dataset(tmp_path).info.channel_names == {"0": "CT"}


def test_foreign_keys_are_kept_when_dataset_json_is_written_again(tmp_path):
    dataset(tmp_path, overwrite_image_reader_writer="SimpleITKIO", labels={"background": 0, "z": [1, 2], "a": 2})
    info = open_dataset(tmp_path).info
    write_dataset_json(tmp_path / "copy", info)
    written = (tmp_path / "copy" / "dataset.json").read_text()
    assert json.loads(written)["overwrite_image_reader_writer"] == "SimpleITKIO"
    assert list(json.loads(written)["labels"]) == ["background", "z", "a"]
    assert open_dataset(tmp_path / "copy").info == info


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "dataset.json is missing"),
        ("{", "not valid JSON"),
        ("[1]", "should be a valid dictionary"),
        ('{"labels": {"background": "zero"}}', "labels.background"),
        (json.dumps({**INFO, "labels": {"a": 1}}), "need 'background': 0"),
    ],
)
def test_a_wrong_dataset_json_is_an_input_error_that_names_it(tmp_path, content, message):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputDataError, match=re.escape(message)) as error:
        open_dataset(tmp_path).label_scheme()
    assert str(tmp_path) in str(error.value)


def test_all_missing_keys_are_named_at_once(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(InputDataError) as error:
        open_dataset(tmp_path)
    assert all(key in str(error.value) for key in INFO)


def test_the_label_scheme_is_that_of_dataset_json(tmp_path):
    folder = dataset(tmp_path, labels={"background": 0, "b": 2, "a": 1, "ignore": 3})
    assert open_dataset(folder).label_scheme().class_names == ("background", "a", "b")
    assert open_dataset(folder).name == tmp_path.name


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps(INFO), encoding="utf-8-sig")
    assert isinstance(open_dataset(tmp_path).info, DatasetJson)
