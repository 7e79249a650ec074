"""Last looks at the settings of a run before anything is written: what goes together, and what an epoch is."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from medsegdiff_cli.artifacts.plan import Plan
from medsegdiff_cli.artifacts.recipe import ResolvedRecipe
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.base import Method, parameters_of_stage
from medsegdiff_cli.methods.iterative import IterativeMethod
from medsegdiff_cli.methods.registry import find_trainable, is_pretraining
from medsegdiff_cli.networks.feature_cache import FeatureCache
from medsegdiff_cli.paths import FEATURES
from medsegdiff_cli.prediction.model import build_trainable
from medsegdiff_cli.prediction.postprocessing import require_applicable
from medsegdiff_cli.training.optimisation import learning_rate_factors
from medsegdiff_cli.workflows.recipes import Sections

_EPOCHS, _STEPS = "validate_every_epochs", "validate_every_steps"


def with_one_interval(sections: Sections, overrides: Mapping[str, str]) -> Sections:
    """Return the settings without the interval of validations that a `--set` of the other one replaces.

    Raises:
        UsageError: steps and epochs are both set, with neither or both of them by `--set`.
    """
    training = dict(sections["training"])
    if training.get(_EPOCHS) is None or training.get(_STEPS) is None:
        return sections
    named = {key.rpartition(".")[2] for key in overrides} & {_EPOCHS, _STEPS}
    if len(named) != 1:
        raise UsageError(
            f"{_EPOCHS} and {_STEPS} both say when to validate", where="training", fix="set one of them, the other null"
        )
    training[(({_EPOCHS, _STEPS}) - named).pop()] = None
    return {**sections, "training": training}


def with_epochs_as_steps(recipe: ResolvedRecipe, n_cases: int) -> ResolvedRecipe:
    """Return the recipe with `validate_every_epochs` as steps, ceil(n_cases / batch_size) of them an epoch."""
    epochs = recipe.training.validate_every_epochs
    if epochs is None:
        return recipe
    steps = epochs * math.ceil(n_cases / recipe.batch_size)
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={_EPOCHS: None, _STEPS: steps})})


def refuse_contradictions(recipe: ResolvedRecipe, plan: Plan, task: Task, val: tuple[str, ...]) -> None:
    """Find out before a training, and before the pretraining that it starts from, what cannot go together.

    Args:
        val: the fold's validation cases.

    Raises:
        UsageError: something cannot.
    """
    training = recipe.training
    require_applicable(recipe.prediction.postprocessing, plan.label_scheme(), plan.n_dims_of_images)
    if training.selection == "best" and not (val and training.validate_every_steps != 0):
        raise UsageError(
            "the best weights cannot be selected without validation cases",
            where="--selection",
            fix="use --selection last, or a fold that validates",
        )
    if training.validation_samplers and not issubclass(find_trainable(recipe.method).load(), IterativeMethod):
        raise UsageError(
            f"'{recipe.method}' does not sample",
            where="training.validation_samplers",
            fix="leave it out, or train a method that predicts by sampling",
        )
    if training.feature_cache:
        _refuse_useless_cache(recipe, task)
    if training.layer_decay != 1 or training.learning_rate_factors:
        with torch.device("meta"):
            method = build_trainable(recipe, task)
        for stage in method.stages:
            learning_rate_factors(method, parameters_of_stage(method, stage), training)


def _refuse_useless_cache(recipe: ResolvedRecipe, task: Task) -> None:
    """Find out whether features can come again.

    Raises:
        UsageError: they cannot.
    """
    where = "training.feature_cache"
    if is_pretraining(recipe.method):
        raise UsageError(f"'{recipe.method}' has no frozen features to keep", where=where, fix="leave it out")
    if recipe.augmentation.changes_images:
        raise UsageError(
            "a feature cache is of no use where augmentation changes every image",
            where=where,
            fix="use --preset paper, or switch augmentation off, or leave the cache out",
        )
    with torch.device("meta"):
        method = build_trainable(recipe, task)
    if isinstance(method, Method):
        method.keep_features(FeatureCache(Path(FEATURES)))  # refuses; nothing is written
