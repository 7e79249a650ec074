"""nnU-Net's own layouts: renumbered labels, regions, ignore, version 1, explicit listings. SimpleITK is the oracle."""

import json

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.workflows.convert import convert_dataset, parse_options


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def image(seed):
    return np.random.default_rng(seed).integers(0, 99, (4, 5, 6)).astype(np.int16)


def label(*values):
    array = np.zeros((4, 5, 6), dtype=np.uint16)
    for row, value in enumerate(values):
        array[1:3, row, 1:4] = value
    return array


def convert(source, **options):
    destination = source.parent / "raw" / "Dataset005_Out"
    report = convert_dataset("nnunet", source, destination, parse_options(**options))
    return destination, report, json.loads((destination / "dataset.json").read_text())


def write(source, **header):
    source.mkdir(parents=True, exist_ok=True)
    base = {"channel_names": {"0": "CT"}, "file_ending": ".nrrd", "numTraining": 1}
    (source / "dataset.json").write_text(json.dumps(base | header))
    return source


def test_values_become_consecutive_and_the_old_ones_are_recorded(tmp_path):
    source = write(tmp_path / "in", labels={"background": 0, "artery": 820, "liver": 205})
    save(source / "imagesTr/a_0000.nrrd", image(1))
    save(source / "labelsTr/a.nrrd", label(205, 820))
    out, _, info = convert(source)
    assert info["labels"] == {"background": 0, "artery": 2, "liver": 1}
    assert info["source_label_values"] == {"background": 0, "artery": 820, "liver": 205}
    np.testing.assert_array_equal(read(out / "labelsTr/a.nii.gz"), label(1, 2))
    np.testing.assert_array_equal(read(out / "imagesTr/a_0000.nii.gz"), image(1))


def test_regions_keep_their_order_and_ignore_comes_last(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 4], "core": [2, 4], "enhancing": [4], "ignore": 9}
    source = write(tmp_path / "in", labels=labels, regions_class_order=[1, 2, 4])
    save(source / "imagesTr/a_0000.nrrd", image(1))
    save(source / "labelsTr/a.nrrd", label(1, 2, 4, 9))
    out, _, info = convert(source)
    assert list(info["labels"].items()) == [
        ("background", 0),
        ("whole", [1, 2, 3]),
        ("core", [2, 3]),
        ("enhancing", [3]),
        ("ignore", 4),
    ]
    assert info["regions_class_order"] == [1, 2, 3]
    np.testing.assert_array_equal(read(out / "labelsTr/a.nii.gz"), label(1, 2, 3, 4))


def test_the_spelling_of_version_1_is_read(tmp_path):
    source = write(
        tmp_path / "Task005_Prostate",
        channel_names=None,
        file_ending=None,
        modality={"0": "T2", "1": "ADC"},
        labels={"0": "background", "1": "PZ", "2": "TZ"},
        training=[],
        test=[],
        numTest=0,
    )
    header = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps({k: v for k, v in header.items() if v is not None}))
    for channel in (0, 1):
        save(source / f"imagesTr/a_{channel:04d}.nii.gz", image(channel))
    save(source / "labelsTr/a.nii.gz", label(1, 2))
    out, _, info = convert(source)
    assert info["channel_names"] == {"0": "T2", "1": "ADC"}
    assert info["labels"] == {"background": 0, "PZ": 1, "TZ": 2}
    np.testing.assert_array_equal(read(out / "imagesTr/a_0001.nii.gz"), image(1))


def test_an_explicit_listing_is_followed(tmp_path):
    save(tmp_path / "elsewhere/x.nrrd", image(1))
    save(tmp_path / "elsewhere/y.nrrd", label(1))
    listing = {"case": {"images": ["../elsewhere/x.nrrd"], "label": "../elsewhere/y.nrrd"}}
    source = write(tmp_path / "in", labels={"background": 0, "liver": 1}, dataset=listing)
    out, report, info = convert(source)
    assert report.n_training == 1
    assert "dataset" not in info
    np.testing.assert_array_equal(read(out / "labelsTr/case.nii.gz"), label(1))


def test_all_parts_observers_masks_groups_and_domains_are_carried_over(tmp_path):
    labels = {"background": 0, "liver": 1}
    extra = {"extra_labels": ["second"], "groups": {"a": "p1"}, "domains": {"a": "siemens"}, "licence": "CC0"}
    source = write(tmp_path / "in", labels=labels, **extra)
    for index, (part, case) in enumerate((("Tr", "a"), ("Ts", "t"), ("Un", "u"))):
        save(source / f"images{part}/{case}_0000.nrrd", image(index))
        save(source / f"masks{part}/{case}.nrrd", label(1))
    for folder, case in (("labelsTr", "a"), ("labelsTr_second", "a"), ("labelsTs", "t")):
        save(source / folder / f"{case}.nrrd", label(1))
    out, report, info = convert(source)
    assert (report.n_training, report.n_test, report.n_test_labelled, report.n_unlabelled) == (1, 1, 1, 1)
    assert {key: info[key] for key in extra} == extra
    folders = ["imagesTr", "imagesTs", "imagesUn", "labelsTr", "labelsTr_second", "labelsTs"]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == [*folders, "masksTr", "masksTs", "masksUn"]


def test_an_undeclared_label_value_is_refused_with_its_count(tmp_path):
    source = write(tmp_path / "in", labels={"background": 0, "liver": 1})
    save(source / "imagesTr/a_0000.nrrd", image(1))
    save(source / "labelsTr/a.nrrd", label(1, 7))
    with pytest.raises(InputDataError, match=r"7 \(6x\)"):
        convert(source)


def test_a_case_that_lacks_a_channel_is_refused_by_name(tmp_path):
    source = write(tmp_path / "in", labels={"background": 0, "liver": 1}, channel_names={"0": "CT", "1": "PET"})
    for case, channels in (("a", 2), ("b", 2), ("c", 1)):
        for channel in range(channels):
            save(source / f"imagesTr/{case}_{channel:04d}.nrrd", image(channel))
        save(source / f"labelsTr/{case}.nrrd", label(1))
    with pytest.raises(InputDataError, match=r"most cases have 2 channels, but not c \(1\)"):
        convert(source)
