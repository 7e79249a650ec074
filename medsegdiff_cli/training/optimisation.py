"""Optimiser and learning rate: what happens at a step is a function of the step, so there is no scheduler to save."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from medsegdiff_cli.artifacts.recipe import TrainingSettings
from medsegdiff_cli.errors import IntegrityError

_POLY_EXPONENT = 0.9  # nnU-Net (Isensee et al. 2021)


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


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = value


def build_optimiser(parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return the optimiser of a stage; weight decay acts on every parameter, SGD's momentum is Nesterov's."""
    values = list(parameters.values())
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            values,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
        )
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return kind(values, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay)


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
