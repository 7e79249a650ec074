"""Loading trained models: run folder or bundle -> method with its prediction weights, plan and provenance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from medsegdiff_cli.artifacts.bundle import is_bundle, opened_bundle
from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.fold_files import FoldFiles, FoldFolder
from medsegdiff_cli.artifacts.plan import Plan, digest_as_stored
from medsegdiff_cli.artifacts.recipe import ResolvedRecipe
from medsegdiff_cli.artifacts.run import RunRecord, find_folds
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.errors import IntegrityError, UsageError
from medsegdiff_cli.methods.base import Method, Trainable
from medsegdiff_cli.methods.registry import find_trainable
from medsegdiff_cli.paths import BEST, CHECKPOINTS, RUN_JSON, RUN_PLAN, RUN_RECIPE, best_of

CheckpointName = Literal["best", "last"]
_CANNOT_PREDICT = "train a method on it: msd finetune METHOD DATASET --from RUN"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """One fold, ready to predict.

    Attributes:
        digest: sha256 of the weights' file; the model's name in provenance.
        folder: of the fold; BUNDLE.msd/fold_K in a bundle.
        checkpoint: which weights: "best", "best-SAMPLER" or "last".
        bundle: sha256 of the bundle that it came from, "" for a run folder.
    """

    folder: Path
    method: Method
    run: RunRecord
    plan: Plan
    recipe: ResolvedRecipe
    digest: str
    checkpoint: str
    bundle: str = ""


def bundles_of(models: Sequence[LoadedModel]) -> dict[str, str]:
    """Return file name and sha256 of the bundles that models came from, for provenance."""
    return {model.folder.parent.name: model.bundle for model in models if model.bundle}


def task_of(plan: Plan, config: str) -> Task:
    """Return the task that a plan's configuration poses."""
    scheme = plan.label_scheme()
    return Task(
        n_dims=len(plan.configuration(config)[1].patch_size_voxels),
        in_channels=plan.n_network_channels,
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
            fix=_CANNOT_PREDICT,
        )
    return built


def load_models(
    models: Sequence[Path],
    *,
    folds: Sequence[str] = (),
    checkpoint: CheckpointName | None = None,
    sampler: str | None = None,
    device: torch.device,
) -> list[LoadedModel]:
    """Load every fold of every model; they must agree on task and preprocessing to be averaged.

    Args:
        models: run folders (a fold, or its parent) and bundles.
        folds: fold names wanted of each parent or bundle; empty takes those found.
        checkpoint: None takes what the run selects by.
        sampler: what will predict; a run that selects by validation may have weights that are best with it.

    Raises:
        UsageError: no such model, or models of different tasks.
        IntegrityError: weights that are damaged or don't fit the recorded settings.
    """
    loaded: list[LoadedModel] = []
    for model in models:
        if is_bundle(model) and model.is_file():
            with opened_bundle(model) as bundle:
                for fold in bundle.folds(folds):
                    loaded.append(replace(_load(fold, checkpoint, sampler, device), bundle=bundle.digest))
        else:
            loaded += [_load(FoldFolder(folder), checkpoint, sampler, device) for folder in find_folds(model, folds)]
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


def _load(files: FoldFiles, wanted: str | None, sampler: str | None, device: torch.device) -> LoadedModel:
    fold = load_fold(files, wanted, sampler)
    if not isinstance(fold.trainable, Method):
        raise UsageError(
            f"'{fold.run.method}' is a pretraining, which cannot predict", where=str(files.folder), fix=_CANNOT_PREDICT
        )
    return LoadedModel(
        folder=files.folder,
        method=fold.trainable.to(device).eval(),
        run=fold.run,
        plan=fold.plan,
        recipe=fold.recipe,
        digest=fold.digest,
        checkpoint=fold.checkpoint,
    )


@dataclass(frozen=True, kw_only=True)
class LoadedFold:
    """One fold of a method or a pretraining with its weights, verified.

    Attributes:
        digest, checkpoint: see `LoadedModel`.
    """

    trainable: Trainable
    run: RunRecord
    plan: Plan
    recipe: ResolvedRecipe
    digest: str
    checkpoint: str


def load_fold(files: FoldFiles, wanted: str | None = None, sampler: str | None = None) -> LoadedFold:
    """Load a fold, which may come from anywhere: everything is data, and compared with what is recorded of it.

    Args:
        wanted, sampler: `checkpoint` and `sampler` of `load_models`.

    Raises:
        UsageError: no such weights, an unknown method, or written by a newer msd.
        IntegrityError: something is damaged, was changed, or does not fit.
    """
    run = validate(RunRecord, files.document(RUN_JSON), str(files.folder / RUN_JSON), IntegrityError)
    contents = {name: files.document(name) for name in (RUN_PLAN, RUN_RECIPE)}
    recipe = validate(ResolvedRecipe, contents[RUN_RECIPE], str(files.folder / RUN_RECIPE), IntegrityError)
    plan = validate(Plan, contents[RUN_PLAN], str(files.folder / RUN_PLAN), IntegrityError)
    digests = (digest_as_stored(contents[RUN_PLAN]), digest_as_stored(contents[RUN_RECIPE]))
    if digests != (run.plan_digest, run.recipe_digest) or recipe.method != run.method:
        raise IntegrityError(
            "plan.yaml or recipe.yaml was changed after training", where=str(files.folder), fix="restore the files"
        )
    trained = files.checkpoints()
    name = wanted or recipe.training.selection
    if wanted is None and name == BEST and sampler is not None and best_of(sampler) in trained:
        name = best_of(sampler)
    if name not in trained:
        raise UsageError(
            f"no checkpoint '{name}'",
            where=str(files.folder),
            fix=f"available: {trained}"
            if trained
            else "run its command again to finish the training (run.json has it)",
        )
    content = files.checkpoint(name)
    where = str(files.folder / CHECKPOINTS / name)
    if name == "last" and run.is_finished and run.weights_digest not in ("", content.digest):
        raise IntegrityError("the weights are not those of run.json", where=where, fix="restore the files")
    trainable = _filled(recipe, task_of(plan, run.config), content.part("model"), where)
    return LoadedFold(trainable=trainable, run=run, plan=plan, recipe=recipe, digest=content.digest, checkpoint=name)


def _filled(recipe: ResolvedRecipe, task: Task, state: Mapping[str, Tensor], where: str) -> Trainable:
    """Build what a recipe describes and fill it with weights, which must be exactly those that it needs.

    A network is made of nothing first, so that a recipe cannot ask for more memory than its weights take.

    Raises:
        IntegrityError: names the first tensor that is missing, too many, of another shape or type, or not finite.
    """
    with torch.device("meta"):
        expected = build_trainable(recipe, task).state_dict()
    for name in sorted({*expected, *state}):
        found, needed = state.get(name), expected.get(name)
        if found is None or needed is None:
            problem = "is missing" if found is None else "is not part of the network"
        elif found.shape != needed.shape or found.dtype != needed.dtype:
            problem = f"is {_described(found)}, the recorded settings need {_described(needed)}"
        elif found.is_floating_point() and not torch.isfinite(found).all():
            problem = "holds numbers that are not finite"
        else:
            continue
        raise IntegrityError(
            f"the weights do not fit the recorded settings: tensor {name!r:.100} {problem}",
            where=where,
            fix="restore the file, or train again",
        )
    trainable = build_trainable(recipe, task)
    trainable.load_state_dict(dict(state))
    return trainable


def _described(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "a single number"
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {shape}"
