"""Setting up a run: from a command line to a run folder whose every setting is frozen before training starts."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medsegdiff_cli import __version__
from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder, Part, open_dataset
from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.plan import Plan, Scale, read_plan
from medsegdiff_cli.artifacts.recipe import (
    AugmentationSettings,
    PredictionSettings,
    ResolvedRecipe,
    TrainingSettings,
    read_resolved_recipe,
)
from medsegdiff_cli.artifacts.run import RunRecord, StageRecord, read_run
from medsegdiff_cli.atomic import digest_of_file
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.methods.base import Trainable
from medsegdiff_cli.methods.registry import find_trainable, is_pretraining
from medsegdiff_cli.paths import RUN_RECIPE, find_dataset
from medsegdiff_cli.planning.nnunet_rules import Strides
from medsegdiff_cli.planning.resolve import ResolvedPatch, resolve_batch
from medsegdiff_cli.planning.scales import scale_table
from medsegdiff_cli.planning.splits import limit_cases, splits_of
from medsegdiff_cli.prediction.model import build_trainable, task_of
from medsegdiff_cli.training.precision import resolve_precision
from medsegdiff_cli.training.start_from import weights_of
from medsegdiff_cli.workflows.memory_forecast import measure_training
from medsegdiff_cli.workflows.method_settings import known_to, steps_of, transitions_of, with_network, with_scale
from medsegdiff_cli.workflows.plan import PlanRequest, plan_dataset, plans_name_of
from medsegdiff_cli.workflows.preparation import warn_of_other_preparation
from medsegdiff_cli.workflows.pretraining import (
    comes_with_weights,
    inherited_settings,
    of_method,
    of_pretraining,
    pretraining_cases,
    require_fitting_run,
    sees_labels,
    sees_unlabelled,
    spelt_alike_in_pretraining,
)
from medsegdiff_cli.workflows.provenance import command_line, versions
from medsegdiff_cli.workflows.public_weights import settle_weights
from medsegdiff_cli.workflows.recipes import (
    Sections,
    apply_overrides,
    load_recipe,
    planned_by,
    pretraining_choice,
    sections_of,
    spelt_alike,
    without_effect,
)
from medsegdiff_cli.workflows.run_folder import run_folder
from medsegdiff_cli.workflows.run_request import TrainRequest
from medsegdiff_cli.workflows.settled import refuse_contradictions, with_epochs_as_steps, with_one_interval

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """A run, settled: what it is, where it lives and what it trains on.

    Attributes:
        weights_file: public weights that a new training starts from.
    """

    request: TrainRequest
    folder: Path
    dataset: DatasetFolder
    plan: Plan
    recipe: ResolvedRecipe
    record: RunRecord
    patch: ResolvedPatch
    weights_file: Path | None = None

    @property
    def slices(self) -> bool:
        """Whether a 2D network trains on slices of 3D images."""
        return len(self.recipe.patch_size_voxels) < self.plan.n_dims_of_images

    @property
    def is_pretraining(self) -> bool:
        """Whether the run is of an objective: nothing to predict or score."""
        return is_pretraining(self.record.method)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the dataset that the run reads."""
        return ("Tr", "Un") if sees_unlabelled(self.record.method) else ("Tr",)

    def new_trainable(self) -> Trainable:
        """Build the method or objective with its initial weights, which depend on the seed alone."""
        torch.manual_seed(self.record.seed)
        return build_trainable(self.recipe, task_of(self.plan, self.record.config))


def set_up_run(request: TrainRequest, planned_parent: ResolvedRecipe | None = None) -> RunSetup:
    """Settle every setting of a run; nothing is written but a missing plan.

    Args:
        planned_parent: recipe of a pretraining that is not there yet, to settle the rest before it is made.

    Raises:
        UsageError: unknown names or settings, or an unsupported configuration.
        InputDataError: the dataset has no labelled case for the fold.
    """
    find_trainable(request.method)
    dataset = open_dataset(find_dataset(request.dataset, request.workspace))
    recipe_file = load_recipe(request.recipe or request.method)
    sections = sections_of(request.method, recipe_file, request.preset)
    plan = _plan_of(request, dataset)
    config, _ = plan.configuration(request.config)
    scale = request.scale or plan.default_scale
    overrides = of_method(request.overrides, request.method)
    same = without_effect(overrides, _with_scale(sections, request.method, plan, config, scale)[0], request.method)
    if network := overrides.get("method.network", overrides.get("network")):
        sections["method"] = with_network(request.method, sections["method"], network)
    sections, max_batch = _with_scale(sections, request.method, plan, config, scale)
    sections = with_one_interval(apply_overrides(sections, overrides, request.method), overrides)
    inherited = _inherited(request, planned_parent, config)
    sections["method"].update(inherited)
    weights_file = _settle_public_weights(request, planned_parent, sections)
    if request.selection is not None:
        sections["training"]["selection"] = request.selection
    patch, recipe = _resolve(request, plan, config, scale, sections, inherited.get("strides"), max_batch)
    train, val, hidden = _cases_of(request, dataset)
    _warn_of_labels_seen_before(request, dataset, train, val)
    warn_of_other_preparation(request.starts_from, plan, config)
    recipe = with_epochs_as_steps(recipe, len(set(train) - set(hidden)))
    refuse_contradictions(recipe, plan, task_of(plan, config), val)
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
        hidden_labels=hidden,
        unlabelled_test_overlap=_overlap_of(request, dataset),
        validation_labels_used_for_selection=_labels_for_selection(recipe.training, val),
        parent=_provenance_of_parent(request.starts_from),
        precision=resolve_precision(recipe.training.precision, request.device),
        stages=tuple(
            StageRecord(name=stage.name, steps=recipe.training.steps)
            for stage in find_trainable(request.method).load().stages
        ),
        command=command_line(),
        versions=versions(),
    )
    return RunSetup(
        request=request,
        folder=run_folder(request, dataset.name, plan, config, scale, _in_name(request, overrides, same)),
        dataset=dataset,
        plan=plan,
        recipe=recipe,
        record=record,
        patch=patch,
        weights_file=weights_file,
    )


def _settle_public_weights(
    request: TrainRequest, planned_parent: ResolvedRecipe | None, sections: Sections
) -> Path | None:
    """Write into the method's settings what the run keeps of its public weights; return the file, if there is one."""
    from_run = planned_parent is not None or request.starts_from is not None
    recorded, file = settle_weights(request.method, sections["method"], from_run=from_run)
    sections["method"].update(recorded)
    return file


def _in_name(request: TrainRequest, own: Mapping[str, str], same: Collection[str]) -> dict[str, str]:
    """Return the overrides that are parts of the run's name: not those that say what is the default anyway."""
    spelling = spelt_alike(own, request.method)
    if choice := pretraining_choice(request.method, request.recipe, request.preset):
        spelling.update(spelt_alike_in_pretraining(request.overrides, request.method, choice.method))
    return {spelling.get(key, key): text for key, text in request.overrides.items() if key not in same}


def _inherited(request: TrainRequest, planned_parent: ResolvedRecipe | None, config: str) -> dict[str, Any]:
    """Return the settings that come with the weights that training starts from.

    Raises:
        UsageError: `--set` would change one of them, or the run does not fit method or configuration.
    """
    if request.parent is not None and not is_pretraining(request.method):
        require_fitting_run(request.method, config, read_run(request.parent), request.parent.parent)
    if planned_parent is None and request.starts_from is not None:
        planned_parent = read_resolved_recipe(request.starts_from / RUN_RECIPE)
    if planned_parent is None or is_pretraining(request.method):
        return {}
    own = of_method(request.overrides, request.method)
    foreign = {*of_pretraining(request.overrides, request.method)}
    foreign.update(key for key in own if comes_with_weights(key, request.method))
    if request.parent is not None and foreign:
        raise UsageError(
            f"{', '.join(sorted(foreign))}: settled by the run that training starts from",
            where="--set",
            fix="leave it out, or start from another run (msd pretrain ... --set ...)",
        )
    return inherited_settings(request.method, planned_parent)


def _warn_of_labels_seen_before(
    request: TrainRequest, dataset: DatasetFolder, train: tuple[str, ...], val: tuple[str, ...]
) -> None:
    """Say when the run that training starts from knows labels that this one must not: its scores are then too good."""
    parent = None if request.starts_from is None else read_run(request.starts_from)
    if parent is None or parent.dataset != dataset.name or not sees_labels(parent.method):
        return
    labelled = {case.case for case in dataset.cases("Tr") if case.label is not None}
    seen = labelled & set(parent.train_cases) - set(parent.hidden_labels)
    for cases, which in ((seen & set(val), "validation"), (seen - set(train) - set(val), "other training")):
        if cases and (which == "validation" or request.cases is not None):
            log.warning(
                "%s was trained with the labels of %d %s cases: scores are better than the labels of this run deserve",
                parent.method,
                len(cases),
                which,
            )


def _overlap_of(request: TrainRequest, dataset: DatasetFolder) -> str:
    """Return whether the run, or the one it starts from, was allowed to see this dataset's test images unlabelled."""
    if sees_unlabelled(request.method):
        return dataset.info.unlabelled_test_overlap
    parent = None if request.starts_from is None else read_run(request.starts_from)
    return parent.unlabelled_test_overlap if parent is not None and parent.dataset == dataset.name else "refused"


def _plan_of(request: TrainRequest, dataset: DatasetFolder) -> Plan:
    """Read the plan, making it first when it is missing; a method shares the plan of its pretraining."""
    choice = planned_by(request.method, request.recipe, request.preset)
    name = request.plans_name or plans_name_of(choice)
    path = request.workspace.plans_file(dataset.name, name)
    if not path.is_file():
        log.info("no plan '%s' yet: planning", name)
        plan_dataset(
            PlanRequest(
                dataset=request.dataset,
                workspace=request.workspace,
                plans_name=name,
                workers=request.workers,
                overrides=choice.sections()["plan"],
            )
        )
    return read_plan(path)


def _with_scale(sections: Sections, method: str, plan: Plan, config: str, scale: Scale) -> tuple[Sections, int | None]:
    """Return the settings with the scale's; of a fixed length, the recipe's batch size is but an upper limit."""
    n_dims = len(plan.configuration(config)[1].patch_size_voxels)
    table = scale_table(scale, n_dims)
    result = {name: dict(content) for name, content in sections.items()}
    result["method"] = with_scale(method, result["method"], scale, n_dims)
    if table.steps is not None:
        result["training"]["steps"] = steps_of(method, table.steps)
        return result, result["training"].pop("batch_size", None)
    return result, None


def _resolve(
    request: TrainRequest,
    plan: Plan,
    config: str,
    scale: Scale,
    sections: Sections,
    strides: Strides | None,
    max_batch: int | None,
) -> tuple[ResolvedPatch, ResolvedRecipe]:
    """Settle patch and batch, and complete the recipe; `strides` come with a network that was pretrained."""
    configuration = plan.configuration(config)[1]
    training = validate(TrainingSettings, sections["training"], "settings of 'training'")
    settings: dict[str, Any] = dict(sections["method"])
    settings = {**known_to(request.method, {"batch_dice": configuration.batch_dice}), **settings}
    task = task_of(plan, config)
    if task.n_dims not in find_trainable(request.method).n_dims:
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
        strides=strides,
        max_batch=max_batch,
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
    method_class = find_trainable(request.method).load()
    complete = validate(method_class.Settings, recipe.method_settings, f"settings of method '{request.method}'")
    return patch, recipe.model_copy(update={"method_settings": complete.model_dump(mode="json")})


def _cases_of(
    request: TrainRequest, dataset: DatasetFolder
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the cases to train on, those to validate on, and of the first those whose labels stay hidden."""
    labelled = [case for case in dataset.cases("Tr") if case.label is not None]
    if not labelled:
        raise InputDataError("the dataset has no labelled case", where=str(dataset.path), fix="add labelsTr")
    fold = splits_of(dataset, request.workspace.preprocessed / dataset.name).fold(request.fold)
    groups = {case.case: case.group for case in labelled}
    train = fold.train
    if request.cases is not None:
        if not sees_labels(request.method):
            raise UsageError(f"'{request.method}' sees no labels", where="--cases", fix="leave it out")
        train = tuple(sorted(limit_cases(fold.train, groups, request.cases, request.seed, request.count)))
    if not is_pretraining(request.method):
        return train, fold.val, ()
    if not sees_unlabelled(request.method):
        return tuple(sorted(train)), (), ()
    return pretraining_cases(dataset, fold), (), tuple(sorted(set(fold.train) - set(train)))


def _provenance_of_parent(parent: Path | None) -> dict[str, str]:
    if parent is None:
        return {}
    weights = weights_of(parent).with_suffix(".safetensors")
    return {"run": f"{parent.parent.name}/{parent.name}", "weights_sha256": digest_of_file(weights)}


def _labels_for_selection(training: TrainingSettings, val: tuple[str, ...]) -> int:
    uses = training.selection == "best" or training.patience is not None
    return min(training.validation_cases, len(val)) if uses else 0
