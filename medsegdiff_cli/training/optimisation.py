"""Optimiser and learning rate: what happens at a step is a function of the step, so there is no scheduler to save."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from medsegdiff_cli.artifacts.recipe import TrainingSettings
from medsegdiff_cli.errors import IntegrityError, UsageError, did_you_mean
from medsegdiff_cli.networks.depth import depths_of

_POLY_EXPONENT = 0.9  # nnU-Net (Isensee et al. 2021)
_FACTOR = "factor"  # of the learning rate, in a parameter group


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises linearly over `warmup_steps` (at most half of the stage), then follows `schedule` down to
    `final_learning_rate`, which the step after the last one would reach, or `decay_steps` after the warm-up if these
    are fewer.
    """
    warmup = min(settings.warmup_steps, settings.steps // 2)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    length = min(settings.decay_steps or settings.steps, settings.steps - warmup)
    progress = min(1.0, (step - warmup) / length)
    if settings.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    elif settings.schedule == "poly":
        factor = (1 - progress) ** _POLY_EXPONENT
    else:
        factor = 1.0
    final = settings.final_learning_rate
    return final + (settings.learning_rate - final) * factor


def learning_rate_factors(method: nn.Module, trained: Iterable[str], settings: TrainingSettings) -> dict[str, float]:
    """Return by what the learning rate of each trained parameter is multiplied: layer_decay^depth x its own factor.

    What belongs to no layer of the network, such as a head beside it, counts as its output.

    Args:
        trained: names of the parameters that a stage optimises.

    Raises:
        UsageError: the trained network says no order of its layers, or a factor is for a name that nothing has.
    """
    names = list(trained)
    factors = dict.fromkeys(names, 1.0)
    if settings.layer_decay != 1:
        depths = depths_of(method)
        if not any(name in depths for name in names):
            raise UsageError(
                f"{type(method).__name__} trains no network whose layers have an order, so none has a depth",
                where="training.layer_decay",
                fix="leave it out, or give factors by name: learning_rate_factors",
            )
        factors = {name: settings.layer_decay ** depths.get(name, 0) for name in names}
    chosen: dict[str, str] = {}
    for prefix in sorted(settings.learning_rate_factors, key=len):
        found = [name for name in names if f"{name}.".startswith(f"{prefix.rstrip('.')}.")]
        if not found:
            parts = {".".join(name.split(".")[:length]) for name in names for length in (1, 2, 3)}
            raise UsageError(
                f"no trained parameter's name begins with '{prefix}'",
                where="training.learning_rate_factors",
                fix=did_you_mean(prefix, parts),
            )
        chosen.update(dict.fromkeys(found, prefix))
    return {
        name: value * settings.learning_rate_factors.get(chosen.get(name, ""), 1.0) for name, value in factors.items()
    }


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group the learning rate, times its factor."""
    for group in optimiser.param_groups:
        group["lr"] = value * group[_FACTOR]


def build_optimiser(
    parameters: Mapping[str, nn.Parameter], settings: TrainingSettings, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Return the optimiser of a stage; weight decay acts on every parameter, SGD's momentum is Nesterov's.

    Args:
        factors: of the learning rate, by name (see `learning_rate_factors`); parameters of one factor are a group.
    """
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        by_factor.setdefault(1.0 if factors is None else factors[name], []).append(parameter)
    groups = [
        {"params": group, "lr": settings.learning_rate * factor, _FACTOR: factor} for factor, group in by_factor.items()
    ]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            groups,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
        )
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, betas=settings.betas, weight_decay=settings.weight_decay)


def optimiser_tensors(optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimiser's state by `PARAMETER.KEY`, for example `network.out.weight.exp_avg`."""
    return {
        f"{name}.{key}": value
        for name, parameter in parameters.items()
        for key, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimiser_tensors(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimiser_tensors` returned.

    Raises:
        IntegrityError: a tensor belongs to no parameter of the stage.
    """
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        parameter = parameters.get(name)
        if parameter is None:
            raise IntegrityError(f"optimiser state of '{name}', which this stage does not train", where=full_name)
        if tensor.shape == parameter.shape and key != "step":
            # The parameter's memory layout, as the optimiser would have made it.
            tensor = torch.empty_like(parameter).copy_(tensor)
        optimiser.state[parameter][key] = tensor


def gradient_norm(parameters: Mapping[str, nn.Parameter], limit: float | None) -> Tensor:
    """Return the gradients' global 2-norm, and shrink them to `limit` when they are longer."""
    gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if limit is not None:
        nn.utils.clip_grads_with_norm_(list(parameters.values()), limit, norm)
    return norm
