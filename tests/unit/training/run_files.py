"""The files that mark a folder as a finished run, beside its weights."""

from pathlib import Path
from typing import Any

from medsegdiff_cli.artifacts.plan import ChannelPlan, Configuration, Plan, write_plan
from medsegdiff_cli.artifacts.recipe import (
    AugmentationSettings,
    PredictionSettings,
    ResolvedRecipe,
    TrainingSettings,
    write_resolved_recipe,
)
from medsegdiff_cli.artifacts.run import RunRecord, StageRecord, write_run


def write_run_files(
    folder: Path,
    method: str,
    *,
    method_settings: dict[str, Any] | None = None,
    training: TrainingSettings | None = None,
    stages: tuple[StageRecord, ...] = (StageRecord(name="train", status="finished", steps_done=1, steps=1),),
    n_classes: int = 2,
    regions: bool = False,
) -> None:
    """Write plan, recipe and record of a 2D run.

    Args:
        n_classes: outputs, with background unless the classes are `regions`.
    """
    labels: dict[str, int | tuple[int, ...]] = {"background": 0}
    if regions:
        labels |= {f"class{k}": tuple(range(k + 1, n_classes + 1)) for k in range(n_classes)}
    else:
        labels |= {f"class{k}": k for k in range(1, n_classes)}
    configuration = Configuration(
        spacing_mm=(1.0, 1.0),
        median_shape_voxels=(8, 8),
        patch_size_voxels=(8, 8),
        batch_size=4,
        strides=((2, 2),),
        batch_dice=False,
    )
    plan = Plan(
        dataset="D",
        fingerprint_digest="",
        file_ending=".png",
        labels=labels,
        regions_class_order=tuple(range(1, n_classes + 1)) if regions else None,
        channels=(ChannelPlan(name="grey", normalisation="zscore"),),
        geometry="spacing",
        transpose=(0, 1),
        default_config="2d",
        memory_bytes=10**9,
        configurations={"2d": configuration},
    )
    write_plan(folder / "plan.yaml", plan)
    recipe = ResolvedRecipe(
        method=method,
        preset="recommended",
        scale="tiny",
        patch_size_voxels=(8, 8),
        batch_size=4,
        method_settings=method_settings or {},
        training=training or TrainingSettings(),
        augmentation=AugmentationSettings(),
        prediction=PredictionSettings(),
    )
    write_resolved_recipe(folder / "recipe.yaml", recipe)
    names = {"dataset": "D", "dataset_path": "D", "plan_digest": "", "recipe_digest": ""}
    cases = {"train_cases": ("a",), "val_cases": ()}
    record = RunRecord(msd_version="0", method=method, config="2d", fold="0", seed=0, stages=stages, **cases, **names)
    write_run(folder, record)
