"""DICOM series to volumes; pydicom-free: SimpleITK writes the series, nibabel reads the result."""

import importlib
import json

import nibabel as nib
import numpy as np
import pytest

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.workflows.convert import convert_dataset, parse_options


@pytest.fixture
def source(tmp_path):
    importlib.import_module("medsegdiff_cli.dataset_conversion.dicom").make_fake_source(tmp_path / "in")
    return tmp_path / "in"


def convert(source, **options):
    destination = source.parent / "raw" / "Dataset021_Liver"
    report = convert_dataset("dicom", source, destination, parse_options(**options))
    return destination, report, json.loads((destination / "dataset.json").read_text())


def test_each_folder_with_a_series_becomes_a_volume_named_by_its_path(source):
    out, report, info = convert(source, label_map=["1:liver"])
    assert info["channel_names"] == {"0": "CT"}
    assert (report.n_training, report.n_unlabelled) == (1, 1)
    written = nib.load(out / "imagesUn" / "patient2_ct_0000.nii.gz")
    assert written.shape == (12, 16, 5)
    np.testing.assert_allclose(written.header.get_zooms(), (0.7, 0.7, 2.5), rtol=1e-6)
    assert np.asarray(written.dataobj).min() >= -100
    assert (out / "labelsTr" / "patient1_ct.nii.gz").is_file()


def test_no_text_of_the_dicom_header_reaches_the_volume(source):
    out, _, _ = convert(source)
    header = nib.load(out / "imagesTr" / "patient1_ct_0000.nii.gz").header
    texts = [bytes(header[key].tobytes()).strip(b"\0") for key in ("descrip", "aux_file", "intent_name", "db_name")]
    assert texts == [b"", b"", b"", b""]


def test_a_missing_slice_is_refused(source):
    (source / "patient2" / "ct" / "slice02.dcm").unlink()
    with pytest.raises(InputDataError, match="uneven slices"):
        convert(source)


def test_two_series_in_one_folder_are_refused(source):
    for index in range(5):
        file = source / "patient2" / "ct" / f"slice{index:02d}.dcm"
        file.rename(source / "patient1" / "ct" / f"other{index:02d}.dcm")
    with pytest.raises(InputDataError, match="2 DICOM series"):
        convert(source)


def test_a_folder_without_series_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputDataError, match="no DICOM series"):
        convert(tmp_path / "in")
