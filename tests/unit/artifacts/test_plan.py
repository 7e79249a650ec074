"""Plans are read back as written, edited by people, and compared key by key."""

from typing import Any

import pytest
import yaml

from medsegdiff_cli.artifacts.plan import Plan, changed_keys, read_plan, write_plan
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.prediction.model import task_of


def plan(**changes: Any) -> Plan:
    content: dict[str, Any] = {
        "dataset": "Dataset004_Hippocampus",
        "fingerprint_digest": "0" * 64,
        "file_ending": ".nii.gz",
        "labels": {"background": 0, "whole": [1, 2], "tip": 2, "ignore": 3},
        "regions_class_order": [1, 2],
        "channels": [{"name": "MR", "normalisation": "zscore"}, {"name": "CT", "normalisation": "ct"}],
        "geometry": "spacing",
        "transpose": [1, 0, 2],
        "mirror_axes": [0, 2],
        "default_config": "3d",
        "memory_bytes": 10**9,
        "configurations": {
            "2d": {
                "spacing_mm": [None, 1.0, 0.1 + 0.2],
                "median_shape_voxels": [36, 50, 35],
                "patch_size_voxels": [56, 40],
                "batch_size": 40,
                "strides": [[2, 2], [2, 1]],
                "batch_dice": True,
            },
            "3d": {
                "spacing_mm": [1.0, 1.0, 1.0],
                "median_shape_voxels": [36, 50, 35],
                "patch_size_voxels": [40, 56, 40],
                "batch_size": 2,
                "strides": [[2, 2, 2], [1, 2, 2]],
                "batch_dice": False,
                "store_dtype": "float16",
            },
        },
        "explanation": ["3d, because: a reason with a colon, # and 'quotes'.", "é"],
    }
    return Plan.model_validate({**content, **changes})


def edited(folder, edit) -> Plan:
    write_plan(folder / "plans.yaml", plan())
    content = yaml.safe_load((folder / "plans.yaml").read_text(encoding="utf-8"))
    edit(content)
    (folder / "plans.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return read_plan(folder / "plans.yaml")


def test_a_plan_is_read_back_exactly(tmp_path):
    write_plan(tmp_path / "plans.yaml", plan())
    again = read_plan(tmp_path / "plans.yaml")
    assert again == plan()
    assert again.digest() == plan().digest()
    assert list(again.labels) == ["background", "whole", "tip", "ignore"]
    assert again.label_scheme().class_names == ("whole", "tip")


def test_an_unchanged_plan_has_no_changed_keys(tmp_path):
    assert changed_keys(plan(), edited(tmp_path, lambda content: None)) == []


def test_changed_keys_are_named_by_their_path(tmp_path):
    def edit(content):
        content["crop"] = "none"
        content["configurations"]["3d"]["patch_size_voxels"] = [32, 32, 32]
        content["channels"][0]["use_mask"] = True
        content["explanation"] = ["other words"]

    new = edited(tmp_path, edit)
    assert changed_keys(plan(), new) == ["channels", "configurations.3d.patch_size_voxels", "crop"]
    assert new.digest() != plan().digest()


def test_a_configuration_that_went_away_is_a_changed_key(tmp_path):
    new = edited(tmp_path, lambda content: content["configurations"].pop("2d"))
    assert changed_keys(plan(), new) == ["configurations.2d"]


def test_the_explanation_does_not_change_the_digest():
    assert plan(explanation=[]).digest() == plan().digest()
    assert plan(explanation=[]) != plan()


def test_unknown_keys_are_usage_errors_with_the_nearest_key(tmp_path):
    def edit(content):
        content["geometri"] = "resize"
        content["configurations"]["3d"]["patch_size"] = [1, 2, 3]
        content["channels"][1]["normalization"] = "ct"

    with pytest.raises(UsageError) as error:
        edited(tmp_path, edit)
    assert error.value.exit_code == 2
    assert error.value.where == str(tmp_path / "plans.yaml")
    assert "unknown key 'geometri': did you mean 'geometry'?" in error.value.what
    assert "unknown key 'configurations.3d.patch_size': did you mean 'patch_size_voxels'?" in error.value.what
    assert "unknown key 'channels.1.normalization': did you mean 'normalisation'?" in error.value.what


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transpose": [0, 0, 1]}, "not a permutation"),
        ({"configurations": {}}, "'3d' is not among the configurations"),
        ({"geometry": "stretch"}, "geometry"),
        ({"memory_bytes": "much"}, "memory_bytes"),
    ],
)
def test_values_that_cannot_be_are_usage_errors(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        edited(tmp_path, lambda content: content.update(changes))


def test_a_missing_plan_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"plans\.yaml is missing"):
        read_plan(tmp_path / "plans.yaml")


@pytest.mark.parametrize(("name", "found"), [(None, "3d"), ("3d_fullres", "3d"), ("2d", "2d"), ("3d", "3d")])
def test_configurations_are_found_by_their_names_and_nnunets(name, found):
    config, content = plan().configuration(name)
    assert config == found
    assert content == plan().configurations[found]


def test_an_unknown_configuration_is_a_usage_error():
    with pytest.raises(UsageError, match="no configuration '3d_lowres'"):
        plan().configuration("3d_lowres")


def test_the_task_of_a_plan_is_that_of_its_configuration():
    flat, solid = task_of(plan(), "2d"), task_of(plan(), "3d")
    assert (flat.n_dims, solid.n_dims) == (2, 3)
    assert flat.in_channels == 2
    assert flat.class_names == ("whole", "tip")
    assert not flat.classes_are_exclusive
    assert flat.ignore
    assert flat.n_classes == 2
