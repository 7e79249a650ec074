"""`msd preview`: contact sheets of datasets and predictions."""

import numpy as np
import pytest

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.prediction_folder import PredictionInfo, Sidecar, write_prediction_info, write_sidecar
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.reading import read_image, read_label
from medsegdiff_cli.imaging.writing import write_label
from medsegdiff_cli.paths import Workspace
from medsegdiff_cli.workflows import preview
from medsegdiff_cli.workflows.convert import convert_dataset, parse_options
from medsegdiff_cli.workflows.phantoms import PhantomSettings, write_phantoms
from medsegdiff_cli.workflows.preview import draw_preview

CLASSES = {"organ": (1,), "nodule": (2,)}


@pytest.fixture
def place(tmp_path):
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def dataset(place, tmp_path):
    source = write_phantoms(tmp_path / "source", PhantomSettings(shape=(12, 24, 20)), labelled=4, unlabelled=1)
    options = parse_options(
        images="images/*.nii.gz", labels="labels/*.nii.gz", label_map=["1:organ", "2:nodule"], test_count=2
    )
    convert_dataset("folder", source, place.raw / "Dataset001_Phantoms", options)
    return place.raw / "Dataset001_Phantoms"


def predict_by_shifting(dataset, folder, part="Ts"):
    """Write predictions: the reference moved by two voxels along the last axis."""
    for path in sorted((dataset / f"labels{part}").iterdir()):
        label, case = read_label(path), path.name.removesuffix(".nii.gz")
        write_label(folder / path.name, np.roll(label.array, 2, axis=-1), label.geometry)
        image = dataset / f"images{part}" / f"{case}_0000.nii.gz"
        write_sidecar(
            folder,
            Sidecar(
                case=case,
                key="",
                input_digests={image.name: atomic.digest_of_file(image)},
                outputs={},
                model_digests=("m",),
                plan_digest="p",
                msd_version="0.1.0",
                command="",
                seed=0,
            ),
        )
    write_prediction_info(
        folder,
        PredictionInfo(
            dataset=dataset.name,
            dataset_path=str(dataset),
            file_ending=".nii.gz",
            classes=CLASSES,
            models=("m",),
            model_digests=("m",),
            method="supervised",
            config="3d",
            msd_version="0.1.0",
            command="",
            seed=0,
            train_cases=2,
        ),
    )
    return folder


def items_of(folder, count=12):
    return preview._items_of_predictions(folder, preview.read_prediction_info(folder), count)


def test_a_dataset_is_drawn_by_its_number_into_its_folder(dataset, place):
    path = draw_preview("1", place)
    assert path == dataset / "preview.png"
    height, width = read_image(path).geometry.shape
    assert min(height, width) > 200


def test_predictions_are_drawn_beside_their_references_on_one_slice(dataset, place, tmp_path):
    folder = predict_by_shifting(dataset, tmp_path / "predictions")
    items = items_of(folder)
    assert [item.title for item in items] == sorted(path.name[:-7] for path in (dataset / "labelsTs").iterdir())
    for item in items:
        predicted, reference = item.panels
        assert np.array_equal(predicted.image, reference.image)
        assert predicted.label is not None
        assert np.array_equal(predicted.label, np.roll(reference.label, 2, axis=-1))
        assert set(np.unique(reference.label)) <= {0, 1, 2}
        assert (predicted.caption.split()[0], reference.caption) == ("prediction,", "reference")
    picture = draw_preview(str(folder), place, output=tmp_path / "overlay.png", count=1)
    assert read_image(picture).array.std() > 10


def test_drawing_twice_gives_equal_bytes_and_its_own_picture_is_no_case(dataset, place, tmp_path):
    folder = predict_by_shifting(dataset, tmp_path / "predictions")
    first = draw_preview(str(folder), place).read_bytes()
    assert draw_preview(str(folder), place).read_bytes() == first


def test_images_without_reference_are_shown_alone(dataset, tmp_path):
    folder = predict_by_shifting(dataset, tmp_path / "predictions")
    for path in (dataset / "labelsTs").iterdir():
        path.unlink()
    assert [len(item.panels) for item in items_of(folder)] == [1, 1]


def test_a_case_whose_image_is_another_one_is_left_out(dataset, tmp_path):
    folder = predict_by_shifting(dataset, tmp_path / "predictions")
    first, second = sorted((dataset / "imagesTs").iterdir())
    second.write_bytes(first.read_bytes())
    assert [item.title for item in items_of(folder)] == [first.name.removesuffix("_0000.nii.gz")]


def test_a_damaged_prediction_is_said_and_the_others_are_shown(dataset, place, tmp_path):
    folder = predict_by_shifting(dataset, tmp_path / "predictions")
    first = sorted(folder.glob("*.nii.gz"))[0]
    first.write_bytes(b"nonsense")
    notes = {item.title: (item.note, len(item.panels)) for item in items_of(folder)}
    assert notes[first.name[:-7]][0].startswith("cannot be read")
    assert sorted(count for _, count in notes.values()) == [0, 2]
    assert draw_preview(str(folder), place).is_file()


def test_predictions_of_unknown_images_are_an_error(dataset, place, tmp_path):
    folder = predict_by_shifting(dataset, tmp_path / "predictions")
    for path in (dataset / "imagesTs").iterdir():
        path.unlink()
    with pytest.raises(InputDataError, match="none of the 2 predictions"):
        draw_preview(str(folder), place)


def test_a_folder_that_is_neither_is_a_usage_error(place, tmp_path):
    with pytest.raises(UsageError, match="neither a dataset nor a prediction folder"):
        draw_preview(str(tmp_path), place)
    with pytest.raises(UsageError, match="no PNG"):
        draw_preview(str(tmp_path), place, output=tmp_path / "sheet.jpg")
