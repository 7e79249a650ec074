"""How methods sample: what was asked for, checked against every model before any work."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.methods.iterative import IterativeMethod
from medsegdiff_cli.prediction.model import LoadedModel

_OPTIONS = {
    "sampler": "--sampler",
    "steps": "--steps",
    "eta": "--eta",
    "stop_change": "--stop-change",
    "start": "--start-t",
}


def chosen_sampling(models: Sequence[LoadedModel], wanted: Sampling, *further: str) -> Sampling:
    """Return how to sample, without what every model does anyway: asking for it is the same as not asking.

    Args:
        further: other options given that only methods with steps have.

    Raises:
        UsageError: a model has no steps or timesteps to choose, or not these.
    """
    wanted = replace(
        wanted, timesteps=chosen_timesteps(models, wanted.timesteps), stop_change=wanted.stop_change or None
    )
    plain = Sampling()
    given = [name for name in _OPTIONS if getattr(wanted, name) != getattr(plain, name)]
    options = [*(_OPTIONS[name] for name in given), *further]
    walkers: list[IterativeMethod] = []
    for model in models:
        if isinstance(model.method, IterativeMethod):
            model.method.walk(wanted)
            walkers.append(model.method)
        elif options:
            raise UsageError(
                f"method '{model.run.method}' of {name_of(model)} predicts at once, without steps",
                where=", ".join(options),
                fix=f"leave {'it' if len(options) == 1 else 'them'} out, or predict with a method that samples",
            )
    for name in ("sampler", "steps", "eta"):
        without = replace(wanted, **{name: getattr(plain, name)})
        if name in given and all(_same_walk(method, wanted, without) for method in walkers):
            wanted = without
    return wanted


def visited_timesteps(models: Sequence[LoadedModel], sampling: Sampling) -> tuple[int, ...]:
    """Return the timesteps that the first model's walk visits, noisy to clean; none for a method without steps."""
    method = models[0].method
    return method.walk(sampling).grid if isinstance(method, IterativeMethod) else ()


def require_common_steps(models: Sequence[LoadedModel], sampling: Sampling) -> None:
    """Refuse to fuse step by step what visits different timesteps.

    Raises:
        UsageError: the models do.
    """
    grids = {name_of(model): visited_timesteps([model], sampling) for model in models}
    if len(set(grids.values())) > 1:
        words = "; ".join(f"{name}: {_list(grid)}" for name, grid in grids.items())
        raise UsageError(
            f"the models visit different timesteps ({words})",
            where="--save-steps",
            fix="give --steps, or predict with each model into a folder of its own",
        )


def chosen_timesteps(models: Sequence[LoadedModel], wanted: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the timesteps to predict with, ascending; None for all that the models were trained with.

    Asking for all in any order is the same prediction as not asking.

    Raises:
        UsageError: a model has no timesteps, or not these ones; or one is given twice.
    """
    if wanted is None:
        return None
    if len(set(wanted)) < len(wanted):
        raise UsageError(f"{_list(wanted)} has a timestep twice", where="--timesteps", fix="give each timestep once")
    for model in models:
        known, name = model.method.timesteps, name_of(model)
        if not known:
            raise UsageError(
                f"method '{model.run.method}' of {name} has no timesteps to choose from",
                where="--timesteps",
                fix="leave --timesteps out",
            )
        if unknown := sorted(set(wanted) - set(known)):
            raise UsageError(
                f"{name} was not trained with timestep {_list(unknown)}",
                where="--timesteps",
                fix=f"choose among {_list(known)}",
            )
    has_all = all(set(model.method.timesteps) == set(wanted) for model in models)
    return None if has_all else tuple(sorted(wanted))


def name_of(model: LoadedModel) -> str:
    """Return RUN/fold_K, for messages."""
    return f"{model.folder.parent.name}/{model.folder.name}"


def _same_walk(method: IterativeMethod, first: Sampling, second: Sampling) -> bool:
    walks: list[Any] = []
    for sampling in (first, second):
        try:
            walk = method.walk(sampling)
        except UsageError:
            return False  # `second` alone may be no pair, such as an eta without its sampler
        walks.append((walk.grid, walk.sampler))
    return bool(walks[0] == walks[1])


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)
