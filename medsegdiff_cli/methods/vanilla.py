"""Segmentation at one timestep: the clean image, the least-noise index, classes out.

The network is one of a diffusion model, told always the same timestep: index 0 of its noise schedule, the least noise
(t = 1 in the papers' counting, t = 0 in that of their library). Noise is never added.

- `vanilla` starts from any pretraining with `--from`, or from random weights without.
- `ptdr` (Rousseau et al. 2024) is `vanilla` from a diffusion model, `hybrid` (Sauvalle & Salzmann 2024) from a hybrid
  one, `transfer` from a supervised one: registry lines of the same class.
- As a pretraining it is the `supervised` objective, the labelled rival of `methods.denoising` and `methods.hybrid`.

Differs from the paper: Sauvalle & Salzmann 2024 do not say how their supervised networks were told the time, nor for
how long they were trained; the loss is cross-entropy and, unless `dice_weight` is 0, Dice. A hybrid model's rows of the
mask are kept where the number of classes is the same (inferred: the paper replaces the layer where it is not).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.losses import dice_and_cross_entropy
from medsegdiff_cli.methods.backbone import TimedBackboneSettings, build_backbone
from medsegdiff_cli.methods.base import Method, Objective, Sampling, Stage, Trainable

LEAST_NOISE = 0


class OneTimestepSettings(TimedBackboneSettings):
    """Settings of a segmentation network that is told one timestep.

    Attributes:
        dice_weight, cross_entropy_weight: factors of the two loss terms; the paper uses 0 and 1.
        batch_dice: Dice over the whole batch instead of per patch; filled from the plan.
    """

    dice_weight: float = Field(default=1.0, ge=0)
    cross_entropy_weight: float = Field(default=1.0, ge=0)
    batch_dice: bool = False


class OneTimestep(Trainable):
    """Clean image in, logits of the classes out, at the least-noise timestep."""

    Settings = OneTimestepSettings

    def __init__(self, task: Task, settings: OneTimestepSettings) -> None:
        super().__init__(task, settings)
        self.network = build_backbone(
            settings, n_dims=task.n_dims, in_channels=task.in_channels, out_channels=task.n_classes, use_time=True
        )

    def logits(self, image: Tensor) -> Tensor:
        """Return logits (batch, class, *spatial) of an image (batch, channel, *spatial)."""
        t = torch.full((len(image),), LEAST_NOISE, device=image.device)
        logits: Tensor = self.network(image, t)
        return logits

    def loss(self, batch: Batch, stage: Stage, noise: NoiseSource) -> dict[str, Tensor]:
        """Return cross-entropy and, with a weight above 0, Dice of the patches."""
        if batch.label is None:
            raise ValueError("training with labels needs labels")
        terms = dice_and_cross_entropy(
            self.logits(batch.image),
            batch.label,
            batch.valid,
            exclusive=self.task.classes_are_exclusive,
            batch_dice=self.settings.batch_dice,
            dice_weight=self.settings.dice_weight,
            ce_weight=self.settings.cross_entropy_weight,
        )
        return terms if self.settings.dice_weight else {"cross_entropy": terms["cross_entropy"]}

    @property
    def divisor(self) -> tuple[int, ...]:
        """The network's total stride per axis."""
        return tuple(self.network.divisor)


class SupervisedPretraining(OneTimestep, Objective):
    """The pretraining with labels."""

    stages = (Stage(name="pretrain", supervision="full", effort=2.0),)

    def illustrate(self, noise: NoiseSource, shape: Sequence[int]) -> None:
        """Return None: there is nothing to look at without an image."""
        return


class VanillaSettings(OneTimestepSettings):
    """Settings of `vanilla` and its kin; network and noise schedule come from the pretraining, if there is one.

    Attributes:
        trains: the whole network (`all`), all but its encoder (`not-encoder`: stem, way down and embedding of the
            timestep stay as they were pretrained), or the way up and the output layer alone (`decoder`; Huang et al.
            2024).
    """

    trains: Literal["all", "not-encoder", "decoder"] = "all"


class Vanilla(OneTimestep, Method):
    """The fine-tuning, or the training from scratch on the same network."""

    Settings = VanillaSettings
    stages: tuple[Stage, ...] = (Stage(name="finetune", supervision="full"),)
    inherited = TimedBackboneSettings
    pretrained = ("network",)

    def __init__(self, task: Task, settings: VanillaSettings) -> None:
        super().__init__(task, settings)
        self.stages = tuple(replace(stage, trains=self._trained_parts()) for stage in self.stages)

    def _trained_parts(self) -> tuple[str, ...]:
        """Return the prefixes of the parameters that the settings leave to training."""
        if self.settings.trains == "all":
            return ("",)
        middle = self.network.middle_parts if self.settings.trains == "not-encoder" else ()
        # The dot keeps `out` apart from `output_blocks`.
        return tuple(f"network.{part}." for part in (*middle, *self.network.decoder_parts))

    def predict(self, prepared: Tensor, noise: NoiseSource, sampling: Sampling) -> Tensor:
        """Return the one member's probabilities (batch, 1, class, *spatial)."""
        logits = self.logits(prepared).float()
        probabilities = torch.softmax(logits, 1) if self.task.classes_are_exclusive else torch.sigmoid(logits)
        return probabilities[:, None]
