"""Setting up a run: from a command line to a run folder whose every setting is frozen before training starts."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medsegdiff_cli import __version__
from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder, open_dataset
from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.plan import Plan, Scale, read_plan
from medsegdiff_cli.artifacts.recipe import (
    AugmentationSettings,
    PredictionSettings,
    ResolvedRecipe,
    TrainingSettings,
)
from medsegdiff_cli.artifacts.run import RunRecord, StageRecord
from medsegdiff_cli.atomic import digest_of_file
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.methods.base import Method
from medsegdiff_cli.methods.registry import find_method
from medsegdiff_cli.paths import find_dataset
from medsegdiff_cli.planning.resolve import ResolvedPatch, resolve_batch
from medsegdiff_cli.planning.scales import scale_table
from medsegdiff_cli.planning.splits import limit_cases, splits_of
from medsegdiff_cli.prediction.model import build_method, task_of
from medsegdiff_cli.training.precision import resolve_precision
from medsegdiff_cli.training.start_from import weights_of
from medsegdiff_cli.workflows.memory_forecast import measure_training
from medsegdiff_cli.workflows.method_settings import known_to, transitions_of, with_scale
from medsegdiff_cli.workflows.plan import PlanRequest, plan_dataset, plans_name_of
from medsegdiff_cli.workflows.provenance import command_line, versions
from medsegdiff_cli.workflows.recipes import Sections, apply_overrides, load_recipe, sections_of
from medsegdiff_cli.workflows.run_folder import run_folder
from medsegdiff_cli.workflows.run_request import TrainRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """A run, settled: what it is, where it lives and what it trains on."""

    request: TrainRequest
    folder: Path
    dataset: DatasetFolder
    plan: Plan
    recipe: ResolvedRecipe
    record: RunRecord
    patch: ResolvedPatch

    @property
    def slices(self) -> bool:
        """Whether a 2D network trains on slices of 3D images."""
        return len(self.recipe.patch_size_voxels) < self.plan.n_dims_of_images

    def new_method(self) -> Method:
        """Build the method with its initial weights, which depend on the seed alone."""
        torch.manual_seed(self.record.seed)
        return build_method(self.recipe, task_of(self.plan, self.record.config))


def set_up_run(request: TrainRequest) -> RunSetup:
    """Settle every setting of a run; nothing is written but a missing plan.

    Raises:
        UsageError: unknown names or settings, or an unsupported configuration.
        InputDataError: the dataset has no labelled case for the fold.
    """
    find_method(request.method)
    dataset = open_dataset(find_dataset(request.dataset, request.workspace))
    recipe_file = load_recipe(request.recipe or request.method)
    sections = sections_of(request.method, recipe_file, request.preset)
    plan = _plan_of(request, dataset, sections)
    config, _ = plan.configuration(request.config)
    scale = request.scale or plan.default_scale
    sections = _with_scale(sections, request.method, plan, config, scale)
    sections = apply_overrides(sections, request.overrides, request.method)
    if request.selection is not None:
        sections["training"]["selection"] = request.selection
    patch, recipe = _resolve(request, plan, config, scale, sections)
    train, val = _cases_of(request, dataset)
    if recipe.training.selection == "best" and not (val and recipe.training.validate_every_steps != 0):
        raise UsageError(
            "the best weights cannot be selected without validation cases",
            where="--selection",
            fix="use --selection last, or a fold that validates",
        )
    record = RunRecord(
        msd_version=__version__,
        method=request.method,
        dataset=dataset.name,
        dataset_path=str(dataset.path),
        config=config,
        fold=request.fold,
        seed=request.seed,
        plan_digest=plan.digest(),
        recipe_digest=recipe.digest(),
        train_cases=train,
        val_cases=val,
        unlabelled_test_overlap=dataset.info.unlabelled_test_overlap,
        validation_labels_used_for_selection=_labels_for_selection(recipe.training, val),
        parent=_provenance_of_parent(request.parent),
        precision=resolve_precision(recipe.training.precision, request.device),
        stages=tuple(
            StageRecord(name=stage.name, steps=recipe.training.steps)
            for stage in find_method(request.method).load().stages
        ),
        command=command_line(),
        versions=versions(),
    )
    return RunSetup(
        request=request,
        folder=run_folder(request, dataset.name, plan, config, scale),
        dataset=dataset,
        plan=plan,
        recipe=recipe,
        record=record,
        patch=patch,
    )


def _plan_of(request: TrainRequest, dataset: DatasetFolder, sections: Sections) -> Plan:
    """Read the plan, making it first when it is missing."""
    name = request.plans_name or plans_name_of(request.method, request.preset, sections["plan"])
    path = request.workspace.plans_file(dataset.name, name)
    if not path.is_file():
        log.info("no plan '%s' yet: planning", name)
        plan_dataset(
            PlanRequest(
                dataset=request.dataset,
                workspace=request.workspace,
                plans_name=name,
                workers=request.workers,
                overrides=dict(sections["plan"]),
            )
        )
    return read_plan(path)


def _with_scale(sections: Sections, method: str, plan: Plan, config: str, scale: Scale) -> Sections:
    n_dims = len(plan.configuration(config)[1].patch_size_voxels)
    table = scale_table(scale, n_dims)
    result = {name: dict(content) for name, content in sections.items()}
    result["method"] = with_scale(method, result["method"], scale, n_dims)
    if table.steps is not None:
        result["training"]["steps"] = table.steps
        # A batch size of the recipe is meant for its own length and network.
        result["training"].pop("batch_size", None)
    return result


def _resolve(
    request: TrainRequest, plan: Plan, config: str, scale: Scale, sections: Sections
) -> tuple[ResolvedPatch, ResolvedRecipe]:
    configuration = plan.configuration(config)[1]
    training = validate(TrainingSettings, sections["training"], "settings of 'training'")
    settings: dict[str, Any] = dict(sections["method"])
    settings = {**known_to(request.method, {"batch_dice": configuration.batch_dice}), **settings}
    task = task_of(plan, config)
    if task.n_dims not in find_method(request.method).n_dims:
        raise UsageError(
            f"method '{request.method}' has no {task.n_dims}D form", where="--config", fix="choose another --config"
        )
    patch = resolve_batch(
        plan,
        config,
        scale,
        measure=lambda size, batch, strides: measure_training(
            request.method,
            task,
            {**settings, **known_to(request.method, {"strides": strides})},
            size,
            batch,
            request.device,
        ),
        patch_size=training.patch_size_voxels,
        batch_size=training.batch_size,
        n_transitions=transitions_of(request.method, settings),
    )
    settings.update(known_to(request.method, {"strides": patch.strides}))
    recipe = ResolvedRecipe(
        method=request.method,
        preset=request.preset,
        scale=scale,
        patch_size_voxels=patch.patch_size,
        batch_size=patch.batch_size,
        method_settings=settings,
        training=training,
        augmentation=validate(AugmentationSettings, sections["augmentation"], "settings of 'augmentation'"),
        prediction=validate(PredictionSettings, sections["prediction"], "settings of 'prediction'"),
    )
    # Validate and fill in the method's defaults, so that the recipe on disk is complete.
    method_class = find_method(request.method).load()
    complete = validate(method_class.Settings, recipe.method_settings, f"settings of method '{request.method}'")
    return patch, recipe.model_copy(update={"method_settings": complete.model_dump(mode="json")})


def _cases_of(request: TrainRequest, dataset: DatasetFolder) -> tuple[tuple[str, ...], tuple[str, ...]]:
    labelled = [case for case in dataset.cases("Tr") if case.label is not None]
    if not labelled:
        raise InputDataError("the dataset has no labelled case", where=str(dataset.path), fix="add labelsTr")
    fold = splits_of(dataset, request.workspace.preprocessed / dataset.name).fold(request.fold)
    groups = {case.case: case.group for case in labelled}
    train = fold.train
    if request.cases is not None:
        train = tuple(sorted(limit_cases(fold.train, groups, request.cases, request.seed, request.count)))
    return train, fold.val


def _provenance_of_parent(parent: Path | None) -> dict[str, str]:
    if parent is None:
        return {}
    weights = weights_of(parent).with_suffix(".safetensors")
    return {"run": f"{parent.parent.name}/{parent.name}", "weights_sha256": digest_of_file(weights)}


def _labels_for_selection(training: TrainingSettings, val: tuple[str, ...]) -> int:
    uses = training.selection == "best" or training.patience is not None
    return min(training.validation_cases, len(val)) if uses else 0
