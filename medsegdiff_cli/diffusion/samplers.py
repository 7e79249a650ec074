"""Samplers: how x_t becomes x_{t_next} once the network has estimated x_0.

Every sampler takes the estimate of x_0, so it serves any parameterisation, and any pair of timesteps, so it serves any
grid. The last step, to `CLEAN`, returns the estimate itself. A step costs two or three passes over the image: its
coefficients are python floats, computed in double precision from ᾱ of the two timesteps.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from medsegdiff_cli.diffusion.gaussian import Parameterisation
from medsegdiff_cli.diffusion.grids import Grid, transitions
from medsegdiff_cli.diffusion.noise import NormalSource
from medsegdiff_cli.diffusion.schedules import CLEAN, Schedule
from medsegdiff_cli.errors import UsageError, did_you_mean

Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass
class History:
    """What a multistep sampler remembers of one walk: the estimate of x_0 before the present one, and its timestep.

    Whoever walks makes one `History` a walk and hands it to each step, which updates it.
    """

    x_0: Tensor | None = None
    t: int | None = None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One step as a weighted sum: factors of x_t, of the estimate of x_0, of the one before, and of fresh noise."""

    x_t: float
    x_0: float
    x_0_before: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """A rule for one step.

    Class attributes:
        order: of convergence towards the exact flow; above 1 the sampler needs a `History`.
    """

    order: ClassVar[int] = 1

    @property
    @abstractmethod
    def is_stochastic(self) -> bool:
        """Whether steps take noise."""

    @abstractmethod
    def weights(self, t: int, t_next: int, schedule: Schedule, t_before: int | None) -> Weights:
        """Return the step's factors; `t_before` is the timestep of the estimate in the history, None without one."""

    def advance(
        self,
        x_t: Tensor,
        x_0: Tensor,
        t: int,
        t_next: int,
        noise: Tensor | None,
        schedule: Schedule,
        *,
        history: History | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return x at `t_next`.

        Args:
            x_t: (batch, channel, *spatial).
            x_0: the network's estimate at t, same shape; kept by `history`, so it must not be overwritten later.
            t_next: below t; `CLEAN` returns `x_0`.
            noise: standard normal, same shape; used by stochastic samplers only, None counts as zero.
            history: of this walk; without one, a multistep sampler takes a first-order step.
            out: where to write, such as `x_t` itself; default a new tensor.
        """
        if t_next == CLEAN:
            return x_0.to(x_t.dtype)
        if not CLEAN < t_next < t:
            raise ValueError(f"a step leads from a noisier to a cleaner image, not from timestep {t} to {t_next}")
        if out is not None and out.untyped_storage().data_ptr() == x_0.untyped_storage().data_ptr():
            out = None  # the estimate is still needed when x_t is overwritten
        before = history.x_0 if history is not None else None
        weights = self.weights(t, t_next, schedule, history.t if history is not None else None)
        x = torch.mul(x_t, weights.x_t, out=out).add_(x_0, alpha=weights.x_0)
        if before is not None and weights.x_0_before:
            x.add_(before, alpha=weights.x_0_before)
        if noise is not None and weights.noise:
            x.add_(noise, alpha=weights.noise)
        if history is not None and self.order > 1:
            history.x_0, history.t = x_0, t
        return x


@dataclass(frozen=True, kw_only=True)
class Ddpm(Sampler):
    """Ancestral sampling with the small, fixed variance β̃ (Ho et al. 2020, Algorithm 2 and Eq. 7).

    Strides are exact: α and β of a step are those of ᾱ_t / ᾱ_next (Nichol & Dhariwal 2021, section 4).
    """

    @property
    def is_stochastic(self) -> bool:
        """Always."""
        return True

    def weights(self, t: int, t_next: int, schedule: Schedule, t_before: int | None) -> Weights:
        """Return mean and deviation of the posterior q(x_next | x_t, x_0)."""
        now, then = schedule.level(t), schedule.level(t_next)
        alpha = now / then
        beta = 1 - alpha
        return Weights(
            x_t=math.sqrt(alpha) * (1 - then) / (1 - now),
            x_0=math.sqrt(then) * beta / (1 - now),
            noise=math.sqrt(beta * (1 - then) / (1 - now)),
        )


@dataclass(frozen=True, kw_only=True)
class Ddim(Sampler):
    """The non-Markovian family of Song et al. 2021 (Eq. 12 and 16).

        x_next = √ᾱ_next x_0 + √(1 - ᾱ_next - σ²) ε + σ z,    σ² = eta² β̃

    The recycling paper's preprint prints σ instead of σ² under the root, which makes the marginal variance wrong.

    Attributes:
        eta: 0 follows the deterministic flow, 1 is `Ddpm`.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UsageError(f"eta is {self.eta}", fix="choose eta from 0 (deterministic) to 1 (ancestral)")

    @property
    def is_stochastic(self) -> bool:
        """Unless eta is 0."""
        return self.eta > 0

    def weights(self, t: int, t_next: int, schedule: Schedule, t_before: int | None) -> Weights:
        """Return the factors with ε = (x_t - √ᾱ_t x_0) / √(1 - ᾱ_t) put in."""
        now, then = schedule.level(t), schedule.level(t_next)
        variance = self.eta**2 * (1 - then) / (1 - now) * (1 - now / then)
        of_x_t = math.sqrt((1 - then - variance) / (1 - now))
        return Weights(x_t=of_x_t, x_0=math.sqrt(then) - of_x_t * math.sqrt(now), noise=math.sqrt(variance))


@dataclass(frozen=True, kw_only=True)
class DpmSolverPlusPlus(Sampler):
    """DPM-Solver++(2M) in data prediction (Lu et al. 2022, DPM-Solver++, Algorithm 2).

        x_next = (σ_next / σ_t) x_t - √ᾱ_next (e^-h - 1) D,    D = x_0 + (x_0 - x_0 before) / (2 r)

    with λ = ½ log SNR, h = λ_next - λ_t and r = (h of the step before) / h. The first step of a walk has nothing
    before it and is of first order (D = x_0, which is DDIM); so is the last one, to the clean image.
    """

    order: ClassVar[int] = 2

    @property
    def is_stochastic(self) -> bool:
        """Never."""
        return False

    def weights(self, t: int, t_next: int, schedule: Schedule, t_before: int | None) -> Weights:
        """Return the factors of both estimates that D is made of."""
        now, then = schedule.level(t), schedule.level(t_next)
        h = _half_log_snr(then) - _half_log_snr(now)
        of_x_t, of_data = math.sqrt((1 - then) / (1 - now)), -math.sqrt(then) * math.expm1(-h)
        if t_before is None:
            return Weights(x_t=of_x_t, x_0=of_data)
        share = h / (2 * (_half_log_snr(now) - _half_log_snr(schedule.level(t_before))))  # 1 / (2 r)
        return Weights(x_t=of_x_t, x_0=of_data * (1 + share), x_0_before=-of_data * share)


def _half_log_snr(level: float) -> float:
    return 0.5 * (math.log(level) - math.log1p(-level))


SAMPLERS: dict[str, Sampler] = {"ddpm": Ddpm(), "ddim": Ddim(), "dpm++": DpmSolverPlusPlus()}


# What a network predicts x how it is sampled: pairs whose walks a test compares with diffusers' schedulers.
CONFORMING: frozenset[tuple[Parameterisation, str]] = frozenset(
    {
        ("x_0", "ddpm"),
        ("x_0", "ddim"),
        ("x_0", "dpm++"),
        ("epsilon", "ddpm"),
        ("epsilon", "ddim"),
        ("epsilon", "dpm++"),
        ("v", "ddpm"),
        ("v", "ddim"),
        ("v", "dpm++"),
    }
)


def get_sampler(name: str, eta: float = 0.0, parameterisation: Parameterisation = "x_0") -> Sampler:
    """Return a sampler by name.

    Args:
        eta: of DDIM; the others have none.
        parameterisation: of the network that it will be used with.

    Raises:
        UsageError: an unknown name, an eta outside [0, 1] or one that the sampler does not have, or a pair of sampler
            and parameterisation that no test has compared with another implementation.
    """
    if name not in SAMPLERS:
        raise UsageError(f"unknown sampler '{name}'", where="--sampler", fix=did_you_mean(name, SAMPLERS))
    if (parameterisation, name) not in CONFORMING:
        tested = sorted(other for kind, other in CONFORMING if kind == parameterisation)
        raise UsageError(
            f"sampler '{name}' is not proved for networks that predict {parameterisation}",
            where="--sampler",
            fix=f"choose among {', '.join(tested)}",
        )
    sampler = SAMPLERS[name]
    if isinstance(sampler, Ddim):
        return replace(sampler, eta=eta)
    if eta:
        raise UsageError(f"the sampler '{name}' has no eta, but eta is {eta}", fix="leave eta at 0 or use 'ddim'")
    return sampler


def sample(
    denoise: Denoise,
    x_T: Tensor,
    grid: Grid,
    sampler: Sampler,
    schedule: Schedule,
    noise_source: NormalSource | None = None,
) -> Tensor:
    """Walk down the grid and return the last estimate of x_0; nothing but the running state is kept.

    Args:
        denoise: (x_t, t) -> estimate of x_0 in a tensor of its own, with training indices t, int64 (batch,).
        x_T: the start at timestep `grid[0]`, (batch, channel, *spatial); not changed.
        noise_source: one stream per item; only stochastic samplers draw from it.

    Raises:
        ValueError: a stochastic sampler without `noise_source`.
    """
    if sampler.is_stochastic and noise_source is None:
        raise ValueError(f"{sampler} needs a noise source")
    x_t, history = x_T, History()
    for t, t_next in transitions(grid):
        x_0 = denoise(x_t, torch.full((len(x_t),), t, device=x_t.device))
        noise = None
        if noise_source is not None and sampler.is_stochastic and t_next != CLEAN:
            noise = noise_source.randn(*x_t.shape[1:])
        # The caller's start is not ours to overwrite, and autograd needs each state as it was.
        out = None if x_t is x_T or x_t.requires_grad or x_0.requires_grad else x_t
        x_t = sampler.advance(x_t, x_0, t, t_next, noise, schedule, history=history, out=out)
    return x_t
