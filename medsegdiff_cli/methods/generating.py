"""Generating: new images, and their masks, from a network that estimates clean ones (Sauvalle & Salzmann 2024, 3.1).

A hybrid network sees the noisy image x_t alone and estimates z = (x, y): image and mask. Propositions 1 and 2 say that
the reverse SDE and the probability flow of diffusion models then draw pairs from p(x, y), whatever y_T is:

    dz = [ f z + g² / σ² (z - alpha E[z | x_t]) ] dt + g dw        (Eq. 6; with g² / 2 and without dw the flow)

Both are linear in z but for the estimate, so a step of any sampler in data prediction serves z as it serves x: image
and mask are channels of one tensor that `diffusion.samplers.sample` walks down. Where the estimate of y is a constant m
the flow passes, from y_T at T, through y_τ = (σ_τ / σ_T) y_T + (alpha_τ - σ_τ alpha_T / σ_T) m, which every grid hits
exactly; the SDE draws from q(y_τ | y_T, y_0 = m). The last step, to the clean image, returns the estimate itself: the
mask is that of the last noisy image, and y_T has left no trace in it.

Differs from the paper: alpha_T is not taken for 0, as its proofs do. y_T is a setting (0, as in its appendix A.2).
Estimates of the image are kept within the intensities of normalised images: one that is computed from noise predicted
at the noisiest timesteps is off by a factor of thousands.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from medsegdiff_cli.diffusion.gaussian import Parameterisation
from medsegdiff_cli.diffusion.grids import Grid, linspace_grid
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.diffusion.samplers import Sampler, get_sampler, sample
from medsegdiff_cli.diffusion.schedules import Schedule
from medsegdiff_cli.methods.base import Objective, Sampling

Route = Literal["joint", "cheap"]
# (x_t, t) -> estimates of the clean image and of its mask; None of a network that knows no masks.
Estimate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]

_PICTURE_STEPS = 50
_DEFAULT_SAMPLER = "dpm++"
_DEFAULT_STEPS = 100
# Normalised images hardly leave this range.
USUAL_RANGE = (-4.0, 4.0)


@dataclass(frozen=True)
class Walk:
    """A settled walk: which timesteps it visits, and how; `name` is the sampler's."""

    grid: Grid
    sampler: Sampler
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Generated images with their masks.

    Attributes:
        image: (batch, channel, *spatial), normalised.
        mask: (batch, class, *spatial), about 0 to 1; None of a network that knows no masks.
    """

    image: Tensor
    mask: Tensor | None


class GenerativeObjective(Objective):
    """A pretraining whose network estimates clean images, and so can draw new ones.

    Class attributes:
        draws_masks: whether images come with masks.
    """

    schedule: Schedule
    draws_masks: ClassVar[bool] = False

    @property
    @abstractmethod
    def parameterisation(self) -> Parameterisation:
        """What the network says of the image."""

    @abstractmethod
    def estimate(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the estimates of clean image and mask, the mask with 0 for outside and 1 for inside.

        Args:
            x_t: noisy images (batch, channel, *spatial).
            t: timesteps, int64 (batch,).
        """

    def walk(self, sampling: Sampling) -> Walk:
        """Return the walk that was asked for; without a word, DPM-Solver++ in 100 steps (the paper's appendix A.2).

        Raises:
            UsageError: an unknown sampler, or steps or an eta that it cannot take.
        """
        steps = min(_DEFAULT_STEPS, self.schedule.T) if sampling.steps is None else sampling.steps
        name = sampling.sampler or _DEFAULT_SAMPLER
        return Walk(
            linspace_grid(self.schedule.T, steps),
            get_sampler(name, sampling.eta, parameterisation=self.parameterisation),
            name,
        )

    @torch.inference_mode()
    def generate(
        self,
        noise: NoiseSource,
        shape: Sequence[int],
        walk: Walk,
        *,
        mask_noise: NoiseSource | None = None,
        route: Route = "joint",
        mask_start: float = 0.0,
        limits: tuple[float, float] = USUAL_RANGE,
    ) -> Pair:
        """Return new images and, from a network that knows them, their masks.

        Args:
            noise: one stream per image; what it gives an image does not depend on `route`.
            shape: spatial size, multiples of the divisor.
            mask_noise: one stream per image, for the mask's steps; needed by stochastic samplers on the joint route.
            route: "joint" walks image and mask together; "cheap" walks the image alone, and then asks the network for
                the clean image's mask at the first timestep.
            mask_start: y_T, the same for all voxels and classes.
            limits: smallest and largest intensity that estimates of the image may have.
        """

        def estimate(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            image, mask = self.estimate(x_t, t)
            return image.clamp(*limits), mask

        x_T = noise.randn(self.task.in_channels, *shape)
        if not self.draws_masks or route == "cheap":
            image = sample(lambda x_t, t: estimate(x_t, t)[0], x_T, walk.grid, walk.sampler, self.schedule, noise)
            first = torch.zeros(len(image), dtype=torch.int64, device=image.device)
            return Pair(image=image, mask=self.estimate(image, first)[1] if self.draws_masks else None)
        y_T = x_T.new_full((len(x_T), self.task.n_classes, *shape), mask_start)
        image, mask = sample_jointly(estimate, x_T, y_T, walk, self.schedule, noise, mask_noise)
        return Pair(image=image, mask=mask)

    def illustrate(self, noise: NoiseSource, shape: Sequence[int]) -> Tensor:
        """Return generated images (batch, channel, *shape), without their masks, by DDIM in 50 steps."""
        walk = self.walk(Sampling(sampler="ddim", steps=min(_PICTURE_STEPS, self.schedule.T)))
        return self.generate(noise, shape, walk).image


@dataclass(frozen=True)
class _NoiseOfPairs:
    """The image's channels from one source, the mask's from another: the image is the same with and without a mask."""

    image: NoiseSource
    mask: NoiseSource
    n_channels: int

    def randn(self, *shape: int) -> Tensor:
        """Return standard normal numbers (batch, channel + class, *spatial)."""
        n_classes = shape[0] - self.n_channels
        drawn = (self.image.randn(self.n_channels, *shape[1:]), self.mask.randn(n_classes, *shape[1:]))
        return torch.cat(drawn, dim=1)


def sample_jointly(
    estimate: Estimate,
    x_T: Tensor,
    y_T: Tensor,
    walk: Walk,
    schedule: Schedule,
    noise: NoiseSource | None = None,
    mask_noise: NoiseSource | None = None,
) -> tuple[Tensor, Tensor]:
    """Solve the reverse SDE (Proposition 1) or the probability flow (Proposition 2) of z = (x, y), down to t = 0.

    Args:
        estimate: sees x_t alone.
        x_T: standard normal numbers, (batch, channel, *spatial).
        y_T: anything, (batch, class, *spatial).
        noise, mask_noise: one stream per item; stochastic samplers need both.

    Returns:
        images and masks: exactly the network's estimates at the last timestep of the walk.

    Raises:
        ValueError: a stochastic sampler without noise, or a network that knows no masks.
    """
    n_channels = x_T.shape[1]

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        image, mask = estimate(z_t[:, :n_channels], t)
        if mask is None:
            raise ValueError("a joint walk needs a network that estimates masks")
        return torch.cat([image, mask], dim=1)

    source = None if noise is None or mask_noise is None else _NoiseOfPairs(noise, mask_noise, n_channels)
    z = sample(denoise, torch.cat([x_T, y_T], dim=1), walk.grid, walk.sampler, schedule, source)
    return z[:, :n_channels], z[:, n_channels:]
