"""A dataset folder exists if and only if it is complete, and nothing foreign is ever deleted."""

import importlib

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nifti_files import VOXELS_XYZ, write_sheared
from PIL import Image as Pil

from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.workflows.convert import available_formats, convert_dataset, parse_options


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").mkdir()
    Pil.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(tmp_path / "in" / "a.png")
    return tmp_path / "in"


def test_an_unknown_format_is_answered_with_the_nearest(source, tmp_path):
    with pytest.raises(UsageError, match="did you mean 'decathlon'"):
        convert_dataset("decatlon", source, tmp_path / "out", parse_options())


def test_the_four_layouts_are_found_by_listing_the_package():
    assert {"decathlon", "dicom", "folder", "nnunet"} <= set(available_formats())


def test_a_new_layout_is_one_file(tmp_path, monkeypatch, source):
    package = importlib.import_module("medsegdiff_cli.dataset_conversion")
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "newcomer.py").write_text(
        "from medsegdiff_cli.dataset_conversion import folder\n"
        "from medsegdiff_cli.dataset_conversion.contract import FormatInfo\n"
        "FORMAT = FormatInfo(name='newcomer', title='t', reads='r', example='e')\n"
        "convert = folder.convert\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "extra")])
    report = convert_dataset("newcomer", source, tmp_path / "raw" / "Dataset001_A", parse_options())
    assert report.n_unlabelled == 1


def test_a_folder_that_is_no_dataset_is_never_overwritten(source, tmp_path):
    destination = tmp_path / "thesis"
    destination.mkdir()
    (destination / "chapter1.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UsageError):
            convert_dataset("folder", source, destination, parse_options(overwrite=overwrite))
    assert (destination / "chapter1.tex").read_text() == "precious"


def test_a_failed_overwrite_leaves_the_old_dataset(source, tmp_path):
    destination = tmp_path / "raw" / "Dataset001_A"
    convert_dataset("folder", source, destination, parse_options())
    before = (destination / "imagesUn" / "a_0000.png").read_bytes()
    (source / "a.png").write_bytes(b"broken")
    with pytest.raises(InputDataError):
        convert_dataset("folder", source, destination, parse_options(overwrite=True))
    assert (destination / "imagesUn" / "a_0000.png").read_bytes() == before
    assert [path.name for path in destination.parent.iterdir()] == [destination.name]


def test_a_destination_around_the_source_is_refused(source):
    with pytest.raises(UsageError, match="contains the source"):
        convert_dataset("folder", source, source.parent, parse_options(overwrite=True))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"label_map": ["lung"]}, "'lung' is not VALUE:NAME"),
        ({"label_map": ["big:lung"]}, "label_map"),
        ({"extra_labels": ["second"]}, "OBSERVER=SUFFIX"),
        ({"label_map": ["1:a", "1:b"]}, "given twice"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"test_count": -1}, "test_count"),
    ],
)
def test_malformed_words_are_usage_errors(words, match):
    with pytest.raises(UsageError, match=match):
        parse_options(**words)


def test_a_missing_test_list_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="--test-list"):
        parse_options(test_list=tmp_path / "nothing.txt")


@pytest.mark.fault("F34")
def test_sheared_images_are_converted_on_demand_only(tmp_path, caplog):
    source = tmp_path / "source"
    label = np.ones(VOXELS_XYZ.shape, np.uint8)
    write_sheared(source / "img" / "a.nii.gz", 0.8)
    write_sheared(source / "lab" / "a.nii.gz", 0.8, label)
    options = {"images": "img/*", "labels": "lab/*", "label_map": ["1:organ"]}
    with pytest.raises(InputDataError, match=r"0\.8 degrees off"):
        convert_dataset("folder", source, tmp_path / "Dataset001_A", parse_options(**options))
    convert_dataset("folder", source, tmp_path / "Dataset001_A", parse_options(**options, fix_affine=1.0))
    assert "a shear of 0.8 degrees was taken away" in caplog.text
    image = sitk.ReadImage(str(tmp_path / "Dataset001_A" / "imagesTr" / "a_0000.nii.gz"))
    direction = np.reshape(image.GetDirection(), (3, 3))
    assert np.allclose(direction.T @ direction, np.eye(3), atol=1e-6)
