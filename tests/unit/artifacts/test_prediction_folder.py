"""What is written beside predictions is read back, and damage is not taken for a result."""

import pytest

from medsegdiff_cli.artifacts.prediction_folder import (
    PredictionInfo,
    Sidecar,
    read_prediction_info,
    read_sidecar,
    write_prediction_info,
    write_sidecar,
)
from medsegdiff_cli.errors import InputDataError

SIDECAR = Sidecar(
    case="case_1",
    key="k",
    input_digests={"case_1_0000.nii.gz": "a"},
    outputs={"case_1.nii.gz": "b"},
    model_digests=("m",),
    plan_digest="p",
    msd_version="0",
    command="msd predict",
    seed=3,
    settings={"step_size": 0.5, "mirror_axes": [0, 1]},
    voxels={"organ": 10},
    volumes_ml={"organ": None},
    agreement=0.1 + 0.2,
    member_agreement={"organ": 2 / 3, "nodule": None},
    flags=("empty prediction",),
)
INFO = PredictionInfo(
    dataset="Dataset004_X",
    dataset_path="/data",
    file_ending=".nii.gz",
    classes={"whole": (1, 2), "core": (2,)},
    ignore_value=9,
    source_label_values={"whole": [205, 420]},
    models=("fold_0",),
    model_digests=("m",),
    method="supervised",
    config="3d",
    msd_version="0",
    command="msd predict",
    seed=3,
    settings={"step_size": 0.5, "sampling": {"timesteps": [1, 10]}},
    train_cases=6,
    notes=("seen in pretraining",),
)


def test_a_sidecar_is_read_back_as_written(tmp_path):
    write_sidecar(tmp_path, SIDECAR)
    assert read_sidecar(tmp_path, "case_1") == SIDECAR
    assert read_sidecar(tmp_path, "case_2") is None


def test_what_is_known_of_the_folder_is_read_back_in_order(tmp_path):
    write_prediction_info(tmp_path, INFO)
    again = read_prediction_info(tmp_path)
    assert again == INFO
    assert list(again.classes) == ["whole", "core"]


def test_a_folder_without_predictions_is_an_input_error(tmp_path):
    with pytest.raises(InputDataError, match=r"prediction\.json is missing") as error:
        read_prediction_info(tmp_path)
    assert error.value.where == str(tmp_path)


def test_a_damaged_sidecar_is_an_input_error_that_names_it(tmp_path):
    (tmp_path / "case_1.json").write_text('{"case": "case_1"}')
    with pytest.raises(InputDataError, match="key: field required") as error:
        read_sidecar(tmp_path, "case_1")
    assert error.value.where == str(tmp_path / "case_1.json")
