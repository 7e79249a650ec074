"""Supervised: the U-Net of every diffusion method, trained on labels only.

It is the baseline printed beside each method: same network, budget, splits and augmentation, no diffusion.
The network, by default guided diffusion's ADM U-Net, is told no timestep; the loss is nnU-Net's Dice + cross-entropy
(Isensee et al. 2021), with sigmoids and binary cross-entropy for regions.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.losses import dice_and_cross_entropy
from medsegdiff_cli.methods.backbone import BackboneSettings, build_backbone
from medsegdiff_cli.methods.base import Method, Sampling, Stage


class SupervisedSettings(BackboneSettings):
    """Settings of `supervised`.

    Attributes:
        dice_weight, cross_entropy_weight: factors of the two loss terms; nnU-Net uses 1 and 1.
        batch_dice: Dice over the whole batch instead of per patch; filled from the plan.
    """

    dice_weight: float = Field(default=1.0, ge=0)
    cross_entropy_weight: float = Field(default=1.0, ge=0)
    batch_dice: bool = False


class ImageToClasses(Method):
    """A network that makes logits of an image, and no more; settings weigh the two terms of its loss."""

    network: Any

    def loss(self, batch: Batch, stage: Stage, noise: NoiseSource) -> dict[str, Tensor]:
        """Return Dice and cross-entropy of the patches."""
        if batch.label is None:
            raise ValueError("supervised training needs labels")
        return dice_and_cross_entropy(
            self.network(batch.image),
            batch.label,
            batch.valid,
            exclusive=self.task.classes_are_exclusive,
            batch_dice=self.settings.batch_dice,
            dice_weight=self.settings.dice_weight,
            ce_weight=self.settings.cross_entropy_weight,
        )

    def predict(self, prepared: Tensor, noise: NoiseSource, sampling: Sampling) -> Tensor:
        """Return the one member's probabilities (batch, 1, class, *spatial)."""
        logits = self.network(prepared).float()
        probabilities = torch.softmax(logits, 1) if self.task.classes_are_exclusive else torch.sigmoid(logits)
        return probabilities[:, None]

    @property
    def divisor(self) -> tuple[int, ...]:
        """The network's total stride per axis."""
        return tuple(self.network.divisor)


class Supervised(ImageToClasses):
    """Image in, class probabilities out."""

    Settings = SupervisedSettings
    stages = (Stage(name="train", supervision="full"),)

    def __init__(self, task: Task, settings: SupervisedSettings) -> None:
        super().__init__(task, settings)
        self.network = build_backbone(
            settings, n_dims=task.n_dims, in_channels=task.in_channels, out_channels=task.n_classes, use_time=False
        )
