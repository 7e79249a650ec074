"""Trained runs on disk that nobody trained: a tiny U-Net with seeded weights, in the files of a run folder.

With them, `msd` in this process, where a refusal must say what and what to do, and leave nothing behind.
"""

import json
from pathlib import Path

import numpy as np
import SimpleITK
import torch
import yaml
from msd_shell import done, msd

from medsegdiff_cli.artifacts.checkpoint import write_checkpoint
from medsegdiff_cli.artifacts.plan import Plan, digest_as_stored, write_plan
from medsegdiff_cli.artifacts.recipe import ResolvedRecipe, write_resolved_recipe
from medsegdiff_cli.artifacts.run import RunRecord, StageRecord, write_run
from medsegdiff_cli.prediction.model import build_trainable, task_of

DATASET, RUN = "Dataset007_Toy", "supervised__3d"
CASES = ("doe_jane_19550203", "roe_richard_19610714")

PLAN = {
    "dataset": DATASET,
    "fingerprint_digest": "0" * 64,
    "file_ending": ".nii.gz",
    "labels": {"background": 0, "organ": 1, "nodule": 2},
    "channels": [{"name": "MR", "normalisation": "zscore", "training_range": [-1000.0, 1000.0]}],
    "geometry": "spacing",
    "transpose": [0, 1, 2],
    "default_config": "3d",
    "memory_bytes": 1,
    "configurations": {
        "3d": {
            "spacing_mm": [1.0, 1.0, 1.0],
            "median_shape_voxels": [8, 8, 8],
            "patch_size_voxels": [8, 8, 8],
            "batch_size": 2,
            "strides": [],
            "batch_dice": False,
        }
    },
}
RECIPE = {
    "method": "supervised",
    "preset": "recommended",
    "scale": "tiny",
    "patch_size_voxels": [8, 8, 8],
    "batch_size": 2,
    "method_settings": {"model_channels": 8, "channel_mult": [1], "attention_levels": [], "num_res_blocks": 1},
    "training": {"steps": 1},
    "augmentation": {},
    "prediction": {},
}


def write_run_folder(results: Path, folds=("0",), *, plan=PLAN, recipe=RECIPE, change=None) -> Path:
    """Write a finished run with these folds below a workspace's results; return the run's folder.

    Args:
        change: called with the weights by name, which it may replace, before they are written.
    """
    plan, recipe = Plan.model_validate(plan), ResolvedRecipe.model_validate(recipe)
    for number, fold in enumerate(folds):
        folder = results / DATASET / RUN / f"fold_{fold}"
        torch.manual_seed(number)
        weights = {f"model.{k}": v for k, v in build_trainable(recipe, task_of(plan, "3d")).state_dict().items()}
        if change is not None:
            change(weights)
        write_plan(folder / "plan.yaml", plan)
        write_resolved_recipe(folder / "recipe.yaml", recipe)
        state = {"stage": "train", "step": 1, "score": None, "finished": {}}
        record = RunRecord(
            msd_version="0.1.0",
            method=recipe.method,
            dataset=DATASET,
            dataset_path=f"/data/hospital/{CASES[0]}",
            config="3d",
            fold=fold,
            seed=0,
            plan_digest=plan.digest(),
            recipe_digest=recipe.digest(),
            train_cases=CASES[:1],
            val_cases=CASES[1:],
            stages=(StageRecord(name="train", status="finished", steps_done=1, steps=1),),
            command=f"msd train supervised {CASES[0]}",
            weights_digest=write_checkpoint(folder / "checkpoints" / "last", weights, state),
        )
        write_run(folder, record)
    return results / DATASET / RUN


def forge(fold: Path, **documents) -> None:
    """Replace plan or recipe, with digests in run.json that fit: a forger can make them."""
    record = json.loads((fold / "run.json").read_text())
    for name, content in documents.items():
        (fold / f"{name}.yaml").write_text(yaml.safe_dump(content))
        record[f"{name}_digest"] = digest_as_stored(content)
        record["method"] = content.get("method", record["method"])
    (fold / "run.json").write_text(json.dumps(record))


def make_shop(folder: Path) -> Path:
    """Write a run of two folds, its bundle `toy.msd`, and an image in `images`; tests copy what they change."""
    run = write_run_folder(folder / "workspace" / "results", ("0", "1"))
    (folder / "images").mkdir()
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32))
    SimpleITK.WriteImage(image, str(folder / "images" / "case.nii.gz"))
    done("bundle", "export", run, folder / "toy.msd", "--quiet")
    return folder


def refused(code, message, shop, tmp_path, model, *words):
    """Predict with a model that must be refused, into a folder that must not appear."""
    result = msd("predict", model, shop / "images", tmp_path / "out", "--workers", 0, *words)
    assert result.code == code, result.stderr
    assert message in result.stderr
    assert "to do:" in result.stderr
    assert not (tmp_path / "out").exists()
