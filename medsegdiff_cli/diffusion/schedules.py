"""Noise schedules: how much of the clean image is left at each timestep.

Timesteps are indices 0 ... T-1 of `alphas_cumprod`; index 0 is the cleanest noisy image and index T-1 nearly pure
noise. The clean image itself has the index `CLEAN` (-1), where alphas_cumprod is 1. Tables are float64 on the CPU.
Sources: Ho et al. 2020 (linear), Nichol & Dhariwal 2021 (cosine).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from medsegdiff_cli.errors import UsageError

CLEAN = -1
LARGEST_BETA = 0.999


class ScheduleSettings(BaseModel):
    """Which noise schedule a model is trained with; part of the model, never of the sampling.

    `T` counts the training timesteps. The betas are variances of one step: `beta_first` and `beta_last` of the linear
    schedule (Ho et al. 2020, section 4; `scaled` multiplies both by 1000/T, as Nichol & Dhariwal's code does, so that
    any T ends in noise), `largest_beta` the cap of the cosine and of the scaled schedule. `s` is the cosine's offset
    (Nichol & Dhariwal 2021, section 3.2).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["linear", "cosine"] = "cosine"
    T: int = Field(default=1000, ge=2, le=1_000_000)
    beta_first: float = Field(default=1e-4, gt=0, lt=1)
    beta_last: float = Field(default=2e-2, gt=0, lt=1)
    scaled: bool = False
    s: float = Field(default=0.008, gt=0, lt=1)
    largest_beta: float = Field(default=LARGEST_BETA, gt=0, lt=1)

    @model_validator(mode="after")
    def _refuse_settings_without_effect(self) -> "ScheduleSettings":
        foreign = ("s",) if self.name == "linear" else ("beta_first", "beta_last", "scaled")
        fields = type(self).model_fields
        given = [field for field in foreign if getattr(self, field) != fields[field].default]
        if given:
            raise ValueError(f"{', '.join(given)}: no setting of the {self.name} schedule")
        return self

    def build(self) -> "Schedule":
        """Return the tables.

        Raises:
            UsageError: the settings leave no valid schedule, such as a T whose signal underflows.
        """
        betas = self._linear_betas() if self.name == "linear" else self._cosine_betas()
        return Schedule(np.cumprod(1 - betas), self)

    def _linear_betas(self) -> np.ndarray:
        betas = np.linspace(self.beta_first, self.beta_last, self.T)
        return np.minimum(betas * (1000 / self.T), self.largest_beta) if self.scaled else betas

    def _cosine_betas(self) -> np.ndarray:
        """Eq. 17: alphas_cumprod = f(t) / f(0), f(t) = cos²((t/T + s) / (1 + s) · π/2)."""
        time = np.linspace(0, 1, self.T + 1)
        signal = np.cos((time + self.s) / (1 + self.s) * (math.pi / 2)) ** 2
        return np.minimum(1 - signal[1:] / signal[:-1], self.largest_beta)


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tables of a noise schedule.

    Checks and scalars work on the numpy array, so that a model can also be built under tensors without storage.

    Attributes:
        levels: ᾱ, the share of the clean image's variance, float64 (T,), strictly decreasing in (0, 1).
        settings: what it was built from; None for one that was derived from another.

    Raises:
        UsageError: the table isn't strictly decreasing within (0, 1).
    """

    levels: np.ndarray
    settings: ScheduleSettings | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", np.asarray(self.levels, dtype=np.float64))
        # The comparison is False for NaN, so that NaN is refused too.
        levels = np.concatenate([[1.0], self.levels, [0.0]])
        falls = levels[:-1] > levels[1:]
        if len(levels) < 3 or not falls.all():
            index = int(np.flatnonzero(~falls)[0]) if len(levels) > 2 else 0
            raise UsageError(
                f"the noise schedule does not fall from 1 to 0 at timestep {index} of {len(self.levels)}",
                where=str(self.settings) if self.settings else None,
                fix="use fewer timesteps, or betas that are larger than 0 and smaller",
            )

    @property
    def T(self) -> int:  # noqa: N802
        """Number of timesteps."""
        return len(self.levels)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of each timestep, float64 (T,)."""
        return torch.tensor(self.levels)

    @cached_property
    def alphas_cumprod_previous(self) -> Tensor:
        """ᾱ one step nearer to the clean image; 1 at index 0."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])

    @cached_property
    def alphas(self) -> Tensor:
        """Share of the variance that one step keeps: 1 - betas."""
        return self.alphas_cumprod / self.alphas_cumprod_previous

    @cached_property
    def betas(self) -> Tensor:
        """Variance of the noise that one step adds."""
        return 1 - self.alphas

    @cached_property
    def sqrt_alphas_cumprod(self) -> Tensor:
        """Factor of the clean image in x_t."""
        return self.alphas_cumprod.sqrt()

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Tensor:
        """Standard deviation of the noise in x_t."""
        return (1 - self.alphas_cumprod).sqrt()

    @cached_property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio ᾱ / (1 - ᾱ), of variances."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    @cached_property
    def log_snr(self) -> Tensor:
        """Natural logarithm of `snr`, strictly decreasing."""
        return self.alphas_cumprod.log() - torch.log1p(-self.alphas_cumprod)

    def level(self, t: int) -> float:
        """Return ᾱ at one timestep, 1 at `CLEAN`, as a python float: samplers do their scalar work without tensors."""
        if not CLEAN <= t < self.T:
            raise IndexError(f"timestep {t} of a schedule with {self.T}")
        return 1.0 if t == CLEAN else float(self.levels[t])


def linear_schedule(
    T: int = 1000, beta_first: float = 1e-4, beta_last: float = 2e-2, *, scaled: bool = False
) -> Schedule:
    """Return betas that grow linearly (Ho et al. 2020); `scaled` multiplies them by 1000/T, capped at 0.999."""
    return ScheduleSettings(name="linear", T=T, beta_first=beta_first, beta_last=beta_last, scaled=scaled).build()


def cosine_schedule(T: int = 1000, s: float = 0.008, largest_beta: float = LARGEST_BETA) -> Schedule:
    """Return the cosine schedule (Nichol & Dhariwal 2021, Eq. 17)."""
    return ScheduleSettings(name="cosine", T=T, s=s, largest_beta=largest_beta).build()
