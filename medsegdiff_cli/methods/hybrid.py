"""Hybrid: a diffusion model of images that also says where the classes are (Sauvalle & Salzmann 2024, section 3.2).

The network sees the noisy image x_t alone and gives two estimates: the image's and the one-hot mask's. With the
signal-to-noise ratio SNR_t = alpha_t² / sigma_t², C channels, K classes and N voxels its loss is

    SNR_t ( |x - x̂|² / (C N) + lambda |y - ŷ|² / (K N) ).

SNR_t |x - x̂|² is |noise - predicted noise|², so with lambda = 0 this is `methods.denoising` with `distance: l2`. The
small lambda (1e-4) undoes the weight of the cleanest images: SNR is 9999 at the paper's first timestep, and lambda
times it nearly 1. Other schedules have another SNR there, and lambda follows (`Hybrid.mask_weight`).

Differs from the paper: images without labels join, and contribute the image's term only; voxels that nobody annotated
do not count in the mask's term. The paper's network gives x̂; here it gives the noise unless `parameterisation` says
otherwise, which is the same loss and well scaled at all timesteps. The paper does not say whether masks are 0 and 1 or
-1 and 1: see `mask_range`. Regions, which may overlap, have a mask each and no background.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.gaussian import Parameterisation, predict_x_0, q_sample
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.losses import one_hot
from medsegdiff_cli.methods.backbone import TimedBackboneSettings, build_backbone
from medsegdiff_cli.methods.base import Stage
from medsegdiff_cli.methods.generating import GenerativeObjective

# lambda x SNR at the first timestep, in the paper: 1e-4 x 9999.
_WEIGHT_AT_FIRST = 0.9999


class HybridSettings(TimedBackboneSettings):
    """Settings of a diffusion model of images that also predicts masks.

    Attributes:
        parameterisation: what the network says about the image: the noise in it (`epsilon`) or the clean image (`x_0`,
            the paper). The loss is the same.
        mask_weight: lambda, the factor of the mask's term; None derives it from the schedule, so that lambda x SNR at
            the first timestep is the paper's 0.9999.
        mask_range: masks are 0 and 1 (`unit`) or -1 and 1 (`signed`).
    """

    parameterisation: Literal["epsilon", "x_0"] = "epsilon"
    mask_weight: float | None = Field(default=None, ge=0)
    mask_range: Literal["unit", "signed"] = "unit"


class Hybrid(GenerativeObjective):
    """Noisy image and timestep in; image and mask out."""

    Settings = HybridSettings
    stages = (Stage(name="pretrain", supervision="partial", effort=2.0),)
    outputs = ("image", "classes")
    draws_masks = True

    def __init__(self, task: Task, settings: HybridSettings) -> None:
        super().__init__(task, settings)
        self.schedule = settings.schedule.build()
        self.network = build_backbone(
            settings,
            n_dims=task.n_dims,
            in_channels=task.in_channels,
            out_channels=task.in_channels + task.n_classes,
            use_time=True,
        )

    @property
    def mask_weight(self) -> float:
        """Lambda: as set, or such that lambda x SNR at the first timestep is the paper's."""
        given: float | None = self.settings.mask_weight
        return _WEIGHT_AT_FIRST / self._snr_at_first() if given is None else given

    def remarks(self) -> tuple[str, ...]:
        """Say what lambda is, and what it makes of the mask's term at the first timestep."""
        weight, snr = self.mask_weight, self._snr_at_first()
        return (
            f"mask's term: lambda {weight:.4g}, SNR at timestep 0 of this schedule {snr:.5g}, lambda x SNR there "
            f"{weight * snr:.4g} (paper: {_WEIGHT_AT_FIRST})",
        )

    def _snr_at_first(self) -> float:
        level = self.schedule.level(0)  # a python float: models are also built under tensors without storage
        return level / (1 - level)

    def loss(self, batch: Batch, stage: Stage, noise: NoiseSource) -> dict[str, Tensor]:
        """Return the image's and the mask's weighted squared errors, means over items (section 3.2).

        An item that nobody annotated has a mask's term of 0.
        """
        if batch.label is None:
            raise ValueError("hybrid pretraining needs labels, or `valid` to say which are missing")
        t = noise.randint(0, self.schedule.T)
        epsilon = noise.randn(*batch.image.shape[1:])
        output = self.network(q_sample(batch.image, t, epsilon, self.schedule), t)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        image, mask = output.split([self.task.in_channels, self.task.n_classes], 1)
        snr = self.schedule.snr.to(output.dtype).to(output.device).index_select(0, t.to(output.device))
        if self.settings.parameterisation == "epsilon":
            error_of_image = (image - epsilon).square().flatten(1).mean(1)
        else:
            error_of_image = snr * (image - batch.image).square().flatten(1).mean(1)
        error_of_mask = squared_error_of_items(mask, self._target(batch.label, batch.valid), batch.valid)
        return {"image": error_of_image.mean(), "mask": self.mask_weight * (snr * error_of_mask).mean()}

    def _target(self, label: Tensor, valid: Tensor | None) -> Tensor:
        """Return the mask (batch, class, *spatial); anything where nobody annotated."""
        mask = one_hot(label, valid, self.task.n_classes) if self.task.classes_are_exclusive else label
        return 2 * mask.float() - 1 if self.settings.mask_range == "signed" else mask.float()

    @property
    def parameterisation(self) -> Parameterisation:
        """What the network says of the image, as set."""
        kind: Parameterisation = self.settings.parameterisation
        return kind

    def estimate(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the estimates of clean image and mask, E[x, y | x_t]; the mask from 0 to 1 whatever `mask_range`."""
        image, mask = self.network(x_t, t).float().split([self.task.in_channels, self.task.n_classes], 1)
        if self.settings.mask_range == "signed":
            mask = (mask + 1) / 2
        return predict_x_0(image, x_t, t, self.schedule, self.parameterisation), mask

    @property
    def divisor(self) -> tuple[int, ...]:
        """The network's total stride per axis."""
        return tuple(self.network.divisor)


def squared_error_of_items(predicted: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean squared error of each item, (batch,), over channels and the voxels that count; 0 without any.

    Args:
        predicted, target: (batch, channel, *spatial).
        valid: bool (batch, *spatial), None: all voxels count.
    """
    error = (predicted - target).square().mean(1)
    if valid is None:
        return error.flatten(1).mean(1)
    counted = valid.reshape(error.shape).flatten(1)
    return error.flatten(1).where(counted, 0).sum(1) / counted.sum(1).clamp(min=1)
