"""The Gaussian diffusion process on tensors: noising, posteriors and the three ways to say what a network predicts.

    x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε        ε ~ N(0, 1)        (Ho et al. 2020, Eq. 4)

All functions are pure. Images are (batch, channel, *spatial) of any number of axes; `t` holds one index per item,
int64 (batch,). Coefficients are computed in float64 and applied in the image's precision, in float32 at least.
"""

from typing import Literal

import torch
from torch import Tensor

from medsegdiff_cli.diffusion.schedules import CLEAN, Schedule

Parameterisation = Literal["x_0", "epsilon", "v"]


def q_sample(x_0: Tensor, t: Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """Return x_t: the clean image noised to timestep t in one go (Ho et al. 2020, Eq. 4)."""
    return _at(schedule.sqrt_alphas_cumprod, t, x_0) * x_0 + _at(schedule.sqrt_one_minus_alphas_cumprod, t, x_0) * noise


def q_transition(x_previous: Tensor, t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Return mean and variance of q(x_t | x_{t-1}), the one step that leads to index t (Ho et al. 2020, Eq. 2).

    Args:
        x_previous: the image at index t-1; the clean one for t = 0.
    """
    return _at(schedule.alphas.sqrt(), t, x_previous) * x_previous, _at(schedule.betas, t, x_previous)


def q_posterior(
    x_0: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule, t_next: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of q(x_{t_next} | x_t, x_0) (Ho et al. 2020, Eq. 6-7), with their t-1 = t_next.

    At t_next = -1 the mean is x_0 exactly and the variance 0.

    Args:
        t_next: indices below t, -1 for the clean image; default t-1. Strides over several steps are exact, too.

    Returns:
        mean: shape of x_t.
        variance: (batch, 1, ...): one number per item.
    """
    levels = torch.cat([schedule.alphas_cumprod, torch.ones(1, dtype=torch.float64)])  # -1 finds the clean image's 1
    step = t.cpu()
    next_step = step - 1 if t_next is None else t_next.cpu()
    if type(next_step) is Tensor:  # a tensor without values, as in a forecast of memory, is not looked into
        assert bool(((next_step >= CLEAN) & (next_step < step)).all()), "a posterior step leads to a cleaner image"
    now, then = levels[step], levels[next_step]
    alpha = now / then  # of a step from t_next to t, as in Eq. 2
    beta = 1 - alpha
    mean_of_x_0 = then.sqrt() * beta / (1 - now)
    mean_of_x_t = alpha.sqrt() * (1 - then) / (1 - now)
    mean = _per_item(mean_of_x_0, x_t) * x_0 + _per_item(mean_of_x_t, x_t) * x_t
    return mean, _per_item(beta * (1 - then) / (1 - now), x_t)


def p_step(
    x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, schedule: Schedule, t_next: Tensor | None = None
) -> Tensor:
    """Draw x_{t_next} from the posterior, each item at a timestep of its own (Ho et al. 2020, Algorithm 2, line 4).

    Args:
        x_0: the network's estimate, or the truth.
        t_next: as in `q_posterior`; items that arrive at the clean image get no noise.
    """
    mean, variance = q_posterior(x_0, x_t, t, schedule, t_next)
    return mean + variance.sqrt() * noise


def training_target(
    x_0: Tensor, noise: Tensor, t: Tensor, schedule: Schedule, parameterisation: Parameterisation
) -> Tensor:
    """Return what a network of this parameterisation must say, given the clean image and the noise.

    v = √ᾱ_t ε - √(1 - ᾱ_t) x_0 (Salimans & Ho 2022, section 4).
    """
    if parameterisation == "x_0":
        return x_0
    if parameterisation == "epsilon":
        return noise
    signal, sigma = _signal_and_sigma(t, x_0, schedule)
    return signal * noise - sigma * x_0


def predict_x_0(
    output: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule, parameterisation: Parameterisation
) -> Tensor:
    """Return the clean image that a network's output stands for.

    From epsilon (x_t - √(1 - ᾱ_t) ε) / √ᾱ_t (Ho et al. 2020, Eq. 15), which multiplies the network's error by the
    inverse of the signal: 5e3 at the cosine's last index. From v: √ᾱ_t x_t - √(1 - ᾱ_t) v (Salimans & Ho 2022).
    """
    if parameterisation == "x_0":
        return output
    signal, sigma = _signal_and_sigma(t, x_t, schedule)
    if parameterisation == "epsilon":
        return (x_t - sigma * output) / signal
    return signal * x_t - sigma * output


def predict_epsilon(
    output: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule, parameterisation: Parameterisation
) -> Tensor:
    """Return the noise that a network's output stands for.

    From x_0: (x_t - √ᾱ_t x_0) / √(1 - ᾱ_t). From v: √(1 - ᾱ_t) x_t + √ᾱ_t v (Salimans & Ho 2022).
    With `predict_x_0` and `training_target` any parameterisation turns into any other.
    """
    if parameterisation == "epsilon":
        return output
    signal, sigma = _signal_and_sigma(t, x_t, schedule)
    if parameterisation == "x_0":
        return (x_t - signal * output) / sigma
    return sigma * x_t + signal * output


def _signal_and_sigma(t: Tensor, like: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    return _at(schedule.sqrt_alphas_cumprod, t, like), _at(schedule.sqrt_one_minus_alphas_cumprod, t, like)


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Return the table's entries at `t`, ready to be multiplied with `like`.

    Unlike square brackets, `index_select` refuses negative indices.
    """
    return _per_item(_cast(table, like).index_select(0, t.to(like.device)), like)


def _per_item(values: Tensor, like: Tensor) -> Tensor:
    return _cast(values, like).view(-1, *[1] * (like.ndim - 1))


def _cast(values: Tensor, like: Tensor) -> Tensor:
    # Precision first, then the device: some devices know no float64.
    return values.to(torch.promote_types(like.dtype, torch.float32)).to(like.device)
