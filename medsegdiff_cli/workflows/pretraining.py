"""Pretraining: which one a method starts from, and that it never sees an image that scores depend on."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, DatasetFolder
from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.recipe import ResolvedRecipe
from medsegdiff_cli.artifacts.run import RunRecord
from medsegdiff_cli.artifacts.splits import Fold
from medsegdiff_cli.atomic import digest_of_file
from medsegdiff_cli.errors import InputDataError, UsageError, did_you_mean
from medsegdiff_cli.methods.registry import (
    METHODS,
    OBJECTIVES,
    PRETRAINING,
    find_method,
    find_trainable,
    is_pretraining,
)
from medsegdiff_cli.workflows.recipes import known_settings, locate, pretraining_choice, spelt_alike
from medsegdiff_cli.workflows.run_request import TrainRequest

log = logging.getLogger(__name__)

# In front of a `--set` key: the setting of the pretraining, not of the method that starts from it.
_OF_PRETRAINING = "pretrain."
_NAMED = 5


def pretraining_run_name(objective_or_method: str) -> str:
    """Return `pretrain-OBJECTIVE` for an objective, or for the first objective of a method.

    Raises:
        UsageError: neither, or a method that starts from no pretraining.
    """
    if objective_or_method in OBJECTIVES:
        return f"{PRETRAINING}{objective_or_method}"
    if objective_or_method not in METHODS:
        known = {*OBJECTIVES, *(name for name, entry in METHODS.items() if entry.objectives)}
        raise UsageError(
            f"no objective or method '{objective_or_method}'",
            where="OBJECTIVE|METHOD",
            fix=did_you_mean(objective_or_method, known),
        )
    objectives = METHODS[objective_or_method].objectives
    if not objectives:
        able = ", ".join(name for name, entry in METHODS.items() if entry.objectives)
        raise UsageError(
            f"'{objective_or_method}' makes no pretraining of its own",
            where="METHOD",
            fix=f"name an objective: {', '.join(OBJECTIVES)}; or a method that does: {able}",
        )
    return f"{PRETRAINING}{objectives[0]}"


def pretraining_of(request: TrainRequest) -> TrainRequest | None:
    """Return the request of the pretraining that a method starts from by default; None when there is none to make.

    A pretraining is shared by methods, label budgets and seeds: it keeps seed 0 and takes only those of the request's
    `--set` that are its own (see `of_pretraining`). One that sees labels must not see more of them than the method: it
    has the request's label budget, and then its seed, by which the cases are drawn.
    """
    choice = pretraining_choice(request.method, request.recipe, request.preset)
    if choice is None or request.parent is not None:
        return None
    has_budget = request.cases is not None and sees_labels(choice.method)
    return replace(
        request,
        method=choice.method,
        recipe=None if choice.recipe == choice.method else choice.recipe,
        preset=choice.preset,
        overrides=of_pretraining(request.overrides, request.method),
        cases=request.cases if has_budget else None,
        count=request.count if has_budget else "groups",
        selection=None,
        seed=request.seed if has_budget else 0,
        name=None,
        overwrite=False,
    )


def request_pretraining(objective_or_method: str, recipe: str | None, preset: str, **settings: Any) -> TrainRequest:
    """Return what `msd pretrain` was asked for.

    Args:
        objective_or_method: a method stands for the pretraining that it starts from by default.
        recipe: None takes the objective's own, or the one that the method's recipe names.
        settings: of the `TrainRequest`.

    Raises:
        UsageError: no such objective or method, or a method that starts from no pretraining.
    """
    name = pretraining_run_name(objective_or_method)
    if objective_or_method in METHODS and recipe is None:
        choice = pretraining_choice(objective_or_method, None, preset)
        if choice is not None:
            recipe, preset = choice.recipe, choice.preset
    return TrainRequest(method=name, recipe=None if recipe == name else recipe, preset=preset, **settings)


def of_pretraining(overrides: Mapping[str, str], method: str) -> dict[str, str]:
    """Return the `--set` assignments that belong to the pretraining: network and noise schedule, and `pretrain.KEY`."""
    return {
        key.removeprefix(_OF_PRETRAINING): value
        for key, value in overrides.items()
        if _goes_to_pretraining(key, method)
    }


def spelt_alike_in_pretraining(keys: Iterable[str], method: str, objective: str) -> dict[str, str]:
    """Return the one spelling of each key of a `--set` that belongs to a method's pretraining, `pretrain-OBJECTIVE`.

    Raises:
        UsageError: an unknown or ambiguous key.
    """
    spellings = {}
    for key in (key for key in keys if _goes_to_pretraining(key, method)):
        of_it = key.removeprefix(_OF_PRETRAINING)
        prefix = key.removesuffix(of_it)
        spellings[key] = f"{prefix}{spelt_alike((of_it,), objective)[of_it]}"
    return spellings


def of_method(overrides: Mapping[str, str], method: str) -> dict[str, str]:
    """Return the other `--set` assignments; `pretrain.KEY` is one of them where there is no pretraining to take it."""
    return {key: value for key, value in overrides.items() if not _goes_to_pretraining(key, method)}


def inherited_settings(method: str, parent: ResolvedRecipe) -> dict[str, Any]:
    """Return the settings that come with a run's weights, for a method that takes its network from there.

    Raises:
        UsageError: that run has no such network.
    """
    inherited = _inherited_by(method)
    if inherited is None:
        return {}
    own = find_trainable(parent.method).load().Settings
    known = validate(own, parent.method_settings, f"settings of '{parent.method}'").model_dump(mode="json")
    missing = [name for name in _needed_by(method, inherited) if name not in known]
    if missing:
        raise UsageError(
            f"'{method}' cannot start from a run of '{parent.method}', which has no {missing[0]}",
            where="--from",
            fix=f"give a run of {' or '.join(_objectives_of(method))} (msd pretrain OBJECTIVE DATASET)",
        )
    # A setting that came after the run was made has its default, which is how that run was made.
    return {name: known[name] for name in inherited.model_fields if name in known}


def require_fitting_run(method: str, config: str, parent: RunRecord, where: Path) -> None:
    """Refuse a run of other dimensions, and a pretraining that the method is not named after.

    Args:
        config: of the new training.
        parent: the run that training starts from, in the folder `where`.

    Raises:
        UsageError: it is one of these.
    """
    if parent.config != config:
        raise UsageError(
            f"the run was trained in {parent.config}, this training is in {config}",
            where=f"--from {where}, --config",
            fix=f"start from a run of --config {config}, or train with --config {parent.config}",
        )
    named = find_method(method).objectives
    objective = parent.method.removeprefix(PRETRAINING)
    if is_pretraining(parent.method) and named and objective not in named:
        able = [name for name, entry in METHODS.items() if objective in entry.objectives]
        raise UsageError(
            f"'{method}' starts from {' or '.join(_objectives_of(method))}, not from {parent.method}",
            where=f"--from {where}",
            fix=f"methods that start from it: {', '.join((*able, 'vanilla'))}",
        )


def _needed_by(method: str, inherited: type[BaseModel]) -> list[str]:
    """Return the inherited settings that a run must have: those that all objectives have which the method names."""
    settings = [OBJECTIVES[name].load().Settings.model_fields for name in find_method(method).objectives]
    return [name for name in inherited.model_fields if all(name in fields for fields in settings)]


def _objectives_of(method: str) -> list[str]:
    """Return the pretrainings that a method names; where it names none, all that have what it inherits."""
    inherited = _inherited_by(method)
    needed = set(inherited.model_fields if inherited else ())
    fitting = [name for name, entry in OBJECTIVES.items() if needed <= set(entry.load().Settings.model_fields)]
    return [f"{PRETRAINING}{name}" for name in find_method(method).objectives or fitting]


def sees_labels(name: str) -> bool:
    """Return whether a method, or a pretraining by the name of its runs, is shown labels."""
    return any(stage.supervision != "none" for stage in find_trainable(name).load().stages)


def sees_unlabelled(name: str) -> bool:
    """Return whether a method, or a pretraining by the name of its runs, is shown images without labels."""
    return any(stage.supervision != "full" for stage in find_trainable(name).load().stages)


def pretraining_cases(dataset: DatasetFolder, fold: Fold) -> tuple[str, ...]:
    """Return the cases that a pretraining may see whose images need no label: the fold's training and all unlabelled.

    Raises:
        InputDataError: an unlabelled image is also a test or validation image, and the dataset does not allow it.
    """
    training, unlabelled = dataset.cases("Tr"), dataset.cases("Un")
    held_out = [case for case in training if case.case in fold.val] + dataset.cases("Ts")
    seen = [case for case in training if case.label is None] + unlabelled
    shared = same_images(seen, held_out)
    if shared and dataset.info.unlabelled_test_overlap != "allowed":
        raise InputDataError(
            f"{len(shared)} unlabelled images are also test or validation images: {', '.join(shared[:_NAMED])}",
            where=str(dataset.path),
            fix='remove them from imagesUn; or, if your protocol says so, set "unlabelled_test_overlap": "allowed" in '
            "dataset.json: it is then printed beside every score",
        )
    if shared:
        log.warning("pretraining sees %d test or validation images, as dataset.json allows", len(shared))
    return (*sorted(fold.train), *sorted(case.case for case in seen))


def same_images(cases: Iterable[CaseFiles], others: Iterable[CaseFiles]) -> list[str]:
    """Return the names of those `cases` whose files are, byte by byte, files of `others`.

    Only files of equal size are read.
    """
    other_files = [path for case in others for path in case.images if path.is_file()]
    sizes = {path.stat().st_size for path in other_files}
    candidates = {
        case.case: [path for path in case.images if path.is_file() and path.stat().st_size in sizes] for case in cases
    }
    wanted = {path.stat().st_size for paths in candidates.values() for path in paths}
    digests = {digest_of_file(path) for path in other_files if path.stat().st_size in wanted}
    return sorted(case for case, paths in candidates.items() if any(digest_of_file(path) in digests for path in paths))


def _goes_to_pretraining(key: str, method: str) -> bool:
    if is_pretraining(method) or not find_method(method).objectives:
        return False
    return key.startswith(_OF_PRETRAINING) or comes_with_weights(key, method)


def comes_with_weights(key: str, method: str) -> bool:
    """Return whether a `--set` key is a setting that a run to start from brings along, and nothing may change.

    Raises:
        UsageError: it is no setting of the method, or of several sections; or one of its pretraining alone.
    """
    inherited = _inherited_by(method)
    if inherited is None:
        return False
    known = known_settings(method)
    if not any(key in model.model_fields for model in known.values()) and _is_of_an_objective(key, method):
        raise UsageError(f"'{key}' is a setting of the pretraining", where="--set", fix=f"--set pretrain.{key}=VALUE")
    section, name = locate(key, known)
    return section == "method" and name in inherited.model_fields


def _is_of_an_objective(key: str, method: str) -> bool:
    objectives = find_method(method).objectives
    return any(key in OBJECTIVES[name].load().Settings.model_fields for name in objectives)


def _inherited_by(method: str) -> type[BaseModel] | None:
    return None if is_pretraining(method) else find_method(method).load().inherited
