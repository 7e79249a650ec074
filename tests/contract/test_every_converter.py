"""Every converter, on the fake source it brings along, writes what nnU-Net's own verification accepts.

nnU-Net's rules are stated again here by hand, with SimpleITK as the only reader.
"""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.workflows.convert import available_formats, convert_dataset, parse_options

FORMATS = sorted(available_formats())


def module_of(format_name):
    package = "medsegdiff_cli.dataset_conversion"
    files = Path(importlib.import_module(package).__path__[0]).glob("*.py")
    modules = [importlib.import_module(f"{package}.{file.stem}") for file in files if file.stem != "__init__"]
    return next(module for module in modules if getattr(getattr(module, "FORMAT", None), "name", "") == format_name)


@pytest.fixture(params=FORMATS)
def converted(request, tmp_path):
    source, destination = tmp_path / "source", tmp_path / "raw" / "Dataset007_Fake"
    options = module_of(request.param).make_fake_source(source)
    before = bytes_of(source)
    report = convert_dataset(request.param, source, destination, options)
    assert bytes_of(source) == before, "a source is never modified"
    return request.param, source, destination, options, report


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cases_in(folder, ending):
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(ending))
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    assert all(pattern.fullmatch(name) for name in names), names
    return sorted({pattern.fullmatch(name)[1] for name in names})


def test_nnunet_would_accept_what_a_converter_writes(converted):
    _, _, folder, _, _ = converted
    info = json.loads((folder / "dataset.json").read_text())
    assert {"labels", "channel_names", "numTraining", "file_ending"} <= set(info)
    ending = info["file_ending"]
    training = cases_in(folder / "imagesTr", ending)
    assert len(training) == info["numTraining"]
    assert sorted(path.name for path in (folder / "labelsTr").iterdir()) == [f"{case}{ending}" for case in training]
    declared, ignore = declared_values(info)
    assert declared == list(range(len(declared))), "consecutive from 0"
    assert ignore is None or ignore == len(declared)
    allowed = {*declared, *([] if ignore is None else [ignore])}
    for part in ("Tr", "Ts", "Un"):
        for case in cases_in(folder / f"images{part}", ending):
            assert_images_and_label_fit(folder, part, case, info, allowed)


def declared_values(info):
    labels = dict(info["labels"])
    assert labels["background"] == 0
    ignore = labels.pop("ignore", None)
    regions = [value for value in labels.values() if isinstance(value, list)]
    if regions:
        assert len(info["regions_class_order"]) == len(labels) - 1
    flat = {v for value in labels.values() for v in (value if isinstance(value, list) else [value])}
    return sorted(flat), ignore


def assert_images_and_label_fit(folder, part, case, info, allowed):
    ending = info["file_ending"]
    images = [sitk.ReadImage(str(path)) for path in sorted((folder / f"images{part}").glob(f"{case}_????{ending}"))]
    assert sum(image.GetNumberOfComponentsPerPixel() for image in images) == len(info["channel_names"])
    for image in images:
        assert np.isfinite(sitk.GetArrayFromImage(image)).all()
        assert same_grid(image, images[0])
    for path in folder.glob(f"labels{part}*/{case}{ending}"):
        label = sitk.ReadImage(str(path))
        assert label.GetPixelID() == sitk.sitkUInt8
        assert same_grid(label, images[0])
        assert set(np.unique(sitk.GetArrayFromImage(label)).tolist()) <= allowed


def same_grid(first, second):
    return first.GetSize() == second.GetSize() and all(
        np.allclose(getattr(first, name)(), getattr(second, name)())
        for name in ("GetSpacing", "GetOrigin", "GetDirection")
    )


def test_the_report_counts_what_is_on_the_disk(converted):
    name, _, folder, _, report = converted
    counts = {part: len(cases_in(folder / f"images{part}", report.file_ending)) for part in ("Tr", "Ts", "Un")}
    assert counts == {"Tr": report.n_training, "Ts": report.n_test, "Un": report.n_unlabelled}
    assert report.format == name
    json.dumps(report.to_json(), allow_nan=False)


def test_converting_again_gives_the_same_bytes_and_only_with_overwrite(converted):
    name, source, folder, options, _ = converted
    first = bytes_of(folder)
    with pytest.raises(UsageError, match="exists already"):
        convert_dataset(name, source, folder, options)
    convert_dataset(name, source, folder, options.model_copy(update={"overwrite": True, "workers": 3}))
    assert bytes_of(folder) == first
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing is left beside it"


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_describes_itself_and_its_example_names_it(name):
    info = available_formats()[name]
    assert info.name == name
    assert info.title
    assert len(info.reads.split()) > 15
    assert info.example.startswith(f"msd convert {name} ")


@pytest.mark.parametrize("name", FORMATS)
def test_an_option_that_a_format_would_ignore_is_refused_by_its_flag(name, tmp_path):
    info = available_formats()[name]
    source = tmp_path / "source"
    source.mkdir()
    flags = {"test_as_unlabelled": True, "images": "*.png", "group_regex": "x"}
    foreign = {key: value for key, value in flags.items() if key not in info.options}
    assert foreign, "no converter understands everything"
    for key, value in foreign.items():
        with pytest.raises(UsageError, match="--" + key.removesuffix("_regex").replace("_", "-")):
            convert_dataset(name, source, tmp_path / "out", parse_options(**{key: value}))
