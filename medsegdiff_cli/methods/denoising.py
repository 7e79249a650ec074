"""Denoising: a diffusion model of images (Ho et al. 2020), the pretraining of TEDM, LEDM and their like.

The network learns to say which noise was added to an image; labels are never looked at. Its inner features are what
pixel classifiers read afterwards (`methods.pixel_probes`).

Differs from the paper: Rosnati et al. 2023 write "cross-entropy between noises"; their code has the mean absolute
error, as `distance: l1` here. Timesteps are drawn uniformly, as in their code.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.gaussian import Parameterisation, predict_x_0, q_sample
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.methods.backbone import TimedBackboneSettings, build_backbone
from medsegdiff_cli.methods.base import Stage
from medsegdiff_cli.methods.generating import GenerativeObjective


class DenoisingSettings(TimedBackboneSettings):
    """Settings of a diffusion model of images.

    Attributes:
        schedule: TEDM's code has the cosine (Nichol & Dhariwal 2021), LEDM's the linear one.
        distance: between true and predicted noise, `l1` (TEDM's code) or `l2` (Ho et al. 2020, Eq. 14).
    """

    distance: Literal["l1", "l2"] = "l2"


class Denoising(GenerativeObjective):
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

    @property
    def parameterisation(self) -> Parameterisation:
        """The noise."""
        return "epsilon"

    def estimate(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, None]:
        """Return the estimate of the clean image, and no mask."""
        return predict_x_0(self.network(x_t, t).float(), x_t, t, self.schedule, "epsilon"), None

    @property
    def divisor(self) -> tuple[int, ...]:
        """The network's total stride per axis."""
        return tuple(self.network.divisor)
