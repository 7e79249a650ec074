"""The digest of a frozen plan is that of its file, so that later versions of the plan's model can read it."""

import yaml

from medsegdiff_cli.artifacts.plan import Plan, read_plan, stored_digest, write_plan

CONTENT = {
    "dataset": "Dataset001_Toy",
    "fingerprint_digest": "0" * 64,
    "file_ending": ".nii.gz",
    "labels": {"background": 0, "organ": 1},
    "channels": [{"name": "T1", "normalisation": "zscore", "training_range": [1e-05, 0.1]}],
    "geometry": "spacing",
    "transpose": [0, 1],
    "default_config": "2d",
    "memory_bytes": 1,
    "configurations": {
        "2d": {
            "spacing_mm": [1.0, 1.0],
            "median_shape_voxels": [8, 8],
            "patch_size_voxels": [8, 8],
            "batch_size": 2,
            "strides": [[2, 2]],
            "batch_dice": True,
        }
    },
    "explanation": ["because"],
}


def test_a_written_plan_has_the_digest_that_it_had_in_memory(tmp_path):
    plan = Plan.model_validate(CONTENT)
    write_plan(tmp_path / "plan.yaml", plan)
    assert plan.digest() == stored_digest(tmp_path / "plan.yaml")


def test_a_file_of_an_earlier_version_without_a_later_setting_keeps_its_digest(tmp_path):
    plan = Plan.model_validate(CONTENT)
    write_plan(tmp_path / "plan.yaml", plan)
    earlier = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    del earlier["channels"][0]["training_range"]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(earlier))
    before = stored_digest(tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml").channels[0].training_range is None
    assert before == stored_digest(tmp_path / "plan.yaml")


def test_an_edit_changes_the_digest(tmp_path):
    write_plan(tmp_path / "plan.yaml", Plan.model_validate(CONTENT))
    before = stored_digest(tmp_path / "plan.yaml")
    text = (tmp_path / "plan.yaml").read_text()
    (tmp_path / "plan.yaml").write_text(text.replace("batch_size: 2", "batch_size: 3"))
    assert before != stored_digest(tmp_path / "plan.yaml")
