"""Loading trained models: run folder -> method with its prediction weights, plan and provenance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.checkpoint import checkpoint_exists, read_checkpoint
from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.plan import Plan, read_plan, stored_digest
from medsegdiff_cli.artifacts.recipe import ResolvedRecipe, read_resolved_recipe
from medsegdiff_cli.artifacts.run import RunRecord, find_folds, read_run
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.errors import IntegrityError, UsageError
from medsegdiff_cli.methods.base import Method, Trainable
from medsegdiff_cli.methods.registry import find_trainable
from medsegdiff_cli.paths import CHECKPOINTS, RUN_PLAN, RUN_RECIPE

CheckpointName = Literal["best", "last"]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """One fold, ready to predict.

    Attributes:
        digest: sha256 of the weights' file; the model's name in provenance.
        checkpoint: which weights: "best" or "last".
    """

    folder: Path
    method: Method
    run: RunRecord
    plan: Plan
    recipe: ResolvedRecipe
    digest: str
    checkpoint: str


def task_of(plan: Plan, config: str) -> Task:
    """Return the task that a plan's configuration poses."""
    scheme = plan.label_scheme()
    return Task(
        n_dims=len(plan.configuration(config)[1].patch_size_voxels),
        in_channels=len(plan.channels),
        class_names=scheme.class_names,
        classes_are_exclusive=scheme.classes_are_exclusive,
        ignore=scheme.ignore_value is not None,
    )


def build_trainable(recipe: ResolvedRecipe, task: Task) -> Trainable:
    """Build the untrained method or pretraining objective that a resolved recipe describes.

    Raises:
        UsageError: unknown method or settings.
    """
    method_class = find_trainable(recipe.method).load()
    settings = validate(method_class.Settings, recipe.method_settings, f"settings of method '{recipe.method}'")
    return method_class(task, settings)


def build_method(recipe: ResolvedRecipe, task: Task) -> Method:
    """Build the untrained method that a resolved recipe describes.

    Raises:
        UsageError: unknown method or settings, or a pretraining, which cannot predict.
    """
    built = build_trainable(recipe, task)
    if not isinstance(built, Method):
        raise UsageError(
            f"'{recipe.method}' is a pretraining, which cannot predict",
            where="MODEL",
            fix="train a method on it: msd finetune METHOD DATASET --from RUN",
        )
    return built


def load_models(
    models: Sequence[Path], *, folds: Sequence[str] = (), checkpoint: CheckpointName | None = None, device: torch.device
) -> list[LoadedModel]:
    """Load every fold of every model; they must agree on task and preprocessing to be averaged.

    Args:
        models: run folders (a fold, or its parent).
        folds: fold names wanted of each parent; empty takes those found.
        checkpoint: None takes what the run selects by.

    Raises:
        UsageError: no such model, or models of different tasks.
        IntegrityError: weights that are damaged or don't fit the recorded settings.
    """
    loaded = [_load(folder, checkpoint, device) for model in models for folder in find_folds(model, folds)]
    first = loaded[0]
    for other in loaded[1:]:
        if other.method.task.class_names != first.method.task.class_names or other.plan.labels != first.plan.labels:
            raise UsageError(
                f"{other.folder} and {first.folder} predict different classes", fix="average models of one dataset"
            )
        if other.run.config != first.run.config or other.plan.digest() != first.plan.digest():
            raise UsageError(
                f"{other.folder} and {first.folder} were trained on different plans or configurations",
                fix="predict with each into a folder of its own",
            )
    return loaded


def _load(folder: Path, wanted: CheckpointName | None, device: torch.device) -> LoadedModel:
    run = read_run(folder)
    recipe = read_resolved_recipe(folder / RUN_RECIPE)
    plan = read_plan(folder / RUN_PLAN)
    if stored_digest(folder / RUN_PLAN) != run.plan_digest or stored_digest(folder / RUN_RECIPE) != run.recipe_digest:
        raise IntegrityError(
            "plan.yaml or recipe.yaml was changed after training", where=str(folder), fix="restore the files"
        )
    name = wanted or recipe.training.selection
    path = folder / CHECKPOINTS / name
    if not checkpoint_exists(path):
        trained = [n for n in ("best", "last") if checkpoint_exists(folder / CHECKPOINTS / n)]
        raise UsageError(
            f"no checkpoint '{name}'",
            where=str(folder),
            fix=f"available: {trained}" if trained else "run the same `msd train` again to finish the training",
        )
    content = read_checkpoint(path)
    method = build_method(recipe, task_of(plan, run.config))
    try:
        method.load_state_dict(content.part("model"))
    except RuntimeError as error:
        raise IntegrityError(f"the weights do not fit the recorded settings ({error})", where=str(path)) from None
    return LoadedModel(
        folder=folder,
        method=method.to(device).eval(),
        run=run,
        plan=plan,
        recipe=recipe,
        digest=atomic.digest_of_file(path.with_suffix(".safetensors")),
        checkpoint=name,
    )
