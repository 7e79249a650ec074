"""Generative runs on disk that nobody trained, with the training images they claim to have seen."""

from pathlib import Path

import numpy as np
import torch
from msd_shell import write_volume
from scipy.ndimage import gaussian_filter

from medsegdiff_cli.artifacts.checkpoint import write_checkpoint
from medsegdiff_cli.artifacts.dataset_folder import DatasetJson, write_dataset_json
from medsegdiff_cli.artifacts.plan import Plan, write_plan
from medsegdiff_cli.artifacts.recipe import ResolvedRecipe, write_resolved_recipe
from medsegdiff_cli.artifacts.run import RunRecord, StageRecord, write_run
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.writing import write_image
from medsegdiff_cli.prediction.model import build_trainable, task_of

SMALL = {"model_channels": 8, "channel_mult": [1], "attention_levels": [], "num_res_blocks": 1, "schedule": {"T": 20}}
LABELS = {"background": 0, "organ": 3, "nodule": 7}
# Axes to the patient's right, front and head: not the plain grid's.
DIRECTION = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def smooth(shape: tuple[int, ...], number: int) -> np.ndarray:
    """Return a random image with large structures, about 40 to 220."""
    noise = gaussian_filter(np.random.default_rng(number).normal(size=shape), 2)
    return np.asarray(130 + 30 * (noise - noise.mean()) / noise.std()).clip(0, 255)


def write_training_images(workspace: Path, name: str, n_dims: int, count: int = 5) -> Path:
    """Write a dataset of images of 12 voxels an edge (3D: anisotropic, turned axes); labels are not needed here."""
    folder = workspace / "raw" / name
    for number in range(count):
        if n_dims == 2:
            array = smooth((12, 12), number).round().astype(np.uint8)[None]
            image = Image(array=array, geometry=Geometry.plain((12, 12), has_physical_spacing=False))
            write_image(folder / "imagesUn" / f"case_{number}_0000.png", image)
        else:
            path = folder / "imagesUn" / f"case_{number}_0000.nii.gz"
            write_volume(path, smooth((12, 12, 12), number).astype(np.int16), (1.0, 1.5, 2.0), DIRECTION)
    ending = ".png" if n_dims == 2 else ".nii.gz"
    info = DatasetJson(channel_names={"0": "scan"}, labels=LABELS, numTraining=0, file_ending=ending)
    write_dataset_json(folder, info)
    return folder


def write_generator(
    workspace: Path, dataset: Path, n_dims: int, *, method: str = "pretrain-hybrid", parent=None, **of_plan
) -> Path:
    """Write a finished run below the workspace's results; return its folder.

    Its output layer is not zero, as a new one would be, so that all classes occur.
    """
    edges = [8, 12] if n_dims == 2 else [8, 12, 4]
    config = {
        "spacing_mm": None if n_dims == 2 else [2.0, 1.5, 1.0],
        "size_voxels": edges if n_dims == 2 else None,
        "median_shape_voxels": edges,
        "patch_size_voxels": edges,
        "batch_size": 2,
        "strides": [],
        "batch_dice": False,
    }
    content = {
        "dataset": dataset.name,
        "fingerprint_digest": "0" * 64,
        "file_ending": ".png" if n_dims == 2 else ".nii.gz",
        "labels": LABELS,
        "channels": [{"name": "scan", "normalisation": "zscore", "training_range": [0.0, 255.0]}],
        "geometry": "resize" if n_dims == 2 else "spacing",
        "transpose": list(range(n_dims)),
        "crop": "none",
        "default_config": f"{n_dims}d",
        "memory_bytes": 1,
        "configurations": {f"{n_dims}d": config},
    }
    plan = Plan.model_validate({**content, **of_plan})
    recipe = ResolvedRecipe.model_validate(
        {
            "method": method,
            "preset": "recommended",
            "scale": "tiny",
            "patch_size_voxels": edges,
            "batch_size": 2,
            "method_settings": SMALL,
            "training": {"steps": 1},
            "augmentation": {"mirror": False},
            "prediction": {},
        }
    )
    folder = workspace / "results" / dataset.name / f"{method}__{n_dims}d" / "fold_0"
    torch.manual_seed(0)
    state = build_trainable(recipe, task_of(plan, f"{n_dims}d")).state_dict()
    weights = {f"model.{key}": 0.5 * torch.randn_like(value) for key, value in state.items()}
    write_plan(folder / "plan.yaml", plan)
    write_resolved_recipe(folder / "recipe.yaml", recipe)
    record = RunRecord(
        msd_version="0.1.0",
        method=method,
        dataset=dataset.name,
        dataset_path=str(dataset),
        config=f"{n_dims}d",
        fold="0",
        seed=0,
        plan_digest=plan.digest(),
        recipe_digest=recipe.digest(),
        train_cases=tuple(path.name.split("_0000")[0] for path in sorted((dataset / "imagesUn").iterdir())),
        val_cases=(),
        parent=parent or {},
        stages=(StageRecord(name="pretrain", status="finished", steps_done=1, steps=1),),
        weights_digest=write_checkpoint(folder / "checkpoints" / "last", weights, {"finished": {}}),
    )
    write_run(folder, record)
    return folder.parent
