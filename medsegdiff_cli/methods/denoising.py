"""Denoising: a diffusion model of images (Ho et al. 2020), the pretraining of TEDM, LEDM and their like.

The network learns to say which noise was added to an image; labels are never looked at. Its inner features are what
pixel classifiers read afterwards (`methods.pixel_probes`).

Differs from the paper: Rosnati et al. 2023 write "cross-entropy between noises"; their code has the mean absolute
error, as `distance: l1` here. Timesteps are drawn uniformly, as in their code.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.gaussian import Parameterisation, predict_x_0, q_sample
from medsegdiff_cli.diffusion.grids import linspace_grid
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.diffusion.samplers import get_sampler, sample
from medsegdiff_cli.diffusion.schedules import Schedule
from medsegdiff_cli.methods.backbone import TimedBackboneSettings, build_backbone
from medsegdiff_cli.methods.base import Objective, Stage

_PICTURE_STEPS = 50
# Normalised images hardly leave this range; an estimate from pure noise does, by a factor of thousands.
_LARGEST_INTENSITY = 4.0


class DenoisingSettings(TimedBackboneSettings):
    """Settings of a diffusion model of images.

    Attributes:
        schedule: TEDM's code has the cosine (Nichol & Dhariwal 2021), LEDM's the linear one.
        distance: between true and predicted noise, `l1` (TEDM's code) or `l2` (Ho et al. 2020, Eq. 14).
    """

    distance: Literal["l1", "l2"] = "l2"


class Denoising(Objective):
    """Noisy image and timestep in, noise out."""

    Settings = DenoisingSettings
    stages = (Stage(name="pretrain", supervision="none", effort=2.0),)
    outputs = ("image",)

    def __init__(self, task: Task, settings: DenoisingSettings) -> None:
        super().__init__(task, settings)
        self.schedule = settings.schedule.build()
        self.network = build_backbone(
            settings, n_dims=task.n_dims, in_channels=task.in_channels, out_channels=task.in_channels, use_time=True
        )

    def loss(self, batch: Batch, stage: Stage, noise: NoiseSource) -> dict[str, Tensor]:
        """Return the distance between the noise and what the network makes of x_t (Ho et al. 2020, Algorithm 1)."""
        t = noise.randint(0, self.schedule.T)
        epsilon = noise.randn(*batch.image.shape[1:])
        predicted = self.network(q_sample(batch.image, t, epsilon, self.schedule), t).float()
        distance = F.l1_loss if self.settings.distance == "l1" else F.mse_loss
        return {"noise": distance(predicted, epsilon)}

    @torch.inference_mode()
    def illustrate(self, noise: NoiseSource, shape: Sequence[int]) -> Tensor:
        """Return generated images (batch, channel, *shape), by DDIM in 50 steps."""

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return predict_x_0(self.network(x_t, t).float(), x_t, t, self.schedule, "epsilon")

        return generated_images(denoise, noise.randn(self.task.in_channels, *shape), self.schedule, "epsilon")

    @property
    def divisor(self) -> tuple[int, ...]:
        """The network's total stride per axis."""
        return tuple(self.network.divisor)


def generated_images(
    denoise: Callable[[Tensor, Tensor], Tensor], x_T: Tensor, schedule: Schedule, parameterisation: Parameterisation
) -> Tensor:
    """Return the images (batch, channel, *spatial) to which DDIM leads from pure noise in 50 steps.

    Args:
        denoise: (x_t, t) -> estimate of x_0; it is kept within the intensities of normalised images.
        x_T: standard normal numbers (batch, channel, *spatial).
        parameterisation: of the network behind `denoise`.
    """

    def within_range(x_t: Tensor, t: Tensor) -> Tensor:
        return denoise(x_t, t).clamp(-_LARGEST_INTENSITY, _LARGEST_INTENSITY)

    grid = linspace_grid(schedule.T, min(_PICTURE_STEPS, schedule.T))
    return sample(within_range, x_T, grid, get_sampler("ddim", parameterisation=parameterisation), schedule)
