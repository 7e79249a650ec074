"""Diffusion on masks: segmentation as denoising of a one-hot mask of -1 and 1, given the image (Fu et al. 2023).

The network sees the image beside a noisy mask x_t and estimates the clean mask x_0 as logits. The five training
strategies differ in what x_t is made of:

====================  =========================================  ==========================================  ==========
strategy              first pass (no gradient)                   noisy mask of the second pass               equation
====================  =========================================  ==========================================  ==========
ground-truth          none                                       truth, noised to t                          4
recycling             truth at T: as good as noise               the first pass's estimate, noised to t      5
recycling-next        truth, noised to t+1                       the first pass's estimate, noised to t      6
self-conditioning     truth, noised to t                         the same; the estimate is a further input   7
self-conditioning-    truth, noised to t+1                       the truth's posterior at t; the estimate    8
next                                                             is a further input
====================  =========================================  ==========================================  ==========

A network that was shown noised truth learns to copy its input; at prediction there is no truth to copy. Recycling
trains on what prediction will show.

Differs from the paper: timesteps are drawn uniformly unless `timestep_sampling` says otherwise; an estimate that
conditions is 0 where it is missing (the middle of -1 and 1); unannotated voxels of the truth are 0, too.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.gaussian import p_step, q_sample
from medsegdiff_cli.diffusion.grids import linspace_grid
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.diffusion.samplers import get_sampler
from medsegdiff_cli.diffusion.schedules import CLEAN, ScheduleSettings
from medsegdiff_cli.diffusion.timestep_sampling import Rule, TimestepSampler, Weighting
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.losses import losses_of_items
from medsegdiff_cli.methods.backbone import BackboneSettings, build_backbone
from medsegdiff_cli.methods.base import Sampling, Stage
from medsegdiff_cli.methods.iterative import IterativeMethod, Prepared, Walk

Strategy = Literal["ground-truth", "recycling", "recycling-next", "self-conditioning", "self-conditioning-next"]


class MaskDiffusionSettings(BackboneSettings):
    """Settings of diffusion on masks.

    Attributes:
        strategy: what the noisy mask is made of in training, see the module.
        schedule: noise schedule; the paper's is linear with T = 1001.
        training_timesteps: train on so many of its timesteps, evenly spaced as in prediction, or None for all; the
            paper also tries 5 (Table 8).
        sampler, sampling_steps: how to predict unless told otherwise; the paper takes DDPM or DDIM in 5 steps.
        condition_share: of training items, how many are told an estimate when self-conditioning.
        mask_range: the network sees masks clipped to -1 ... 1; `unit` rescales them to 0 ... 1, as the published code.
        timestep_sampling: `uniform`, or in proportion to a timestep's `mean-loss` (the paper) or
            `root-mean-square-loss` (Nichol & Dhariwal 2021).
        timestep_weight: of a loss at a timestep drawn more often: `unbiased`, or `inverted` as in the published code.
        cross_entropy_weight, dice_weight: factors of the two loss terms; the paper has 20 and 1.
        focal_gamma: exponent of the focal loss, 0 for cross-entropy; the published code has 2.
    """

    strategy: Strategy = "ground-truth"
    schedule: ScheduleSettings = Field(default_factory=lambda: ScheduleSettings(name="linear", T=1001))
    training_timesteps: int | None = Field(default=None, ge=2)
    sampler: Literal["ddpm", "ddim", "dpm++"] = "ddpm"
    sampling_steps: int = Field(default=5, ge=1)
    condition_share: float = Field(default=0.5, ge=0, le=1)
    mask_range: Literal["signed", "unit"] = "signed"
    timestep_sampling: Rule = "uniform"
    timestep_weight: Weighting = "unbiased"
    cross_entropy_weight: float = Field(default=20.0, ge=0)
    dice_weight: float = Field(default=1.0, ge=0)
    focal_gamma: float = Field(default=0.0, ge=0)


class MaskDiffusion(IterativeMethod):
    """Image, noisy mask and timestep in; clean mask out."""

    Settings = MaskDiffusionSettings
    stages = (Stage(name="train", supervision="full"),)

    def __init__(self, task: Task, settings: MaskDiffusionSettings) -> None:
        super().__init__(task, settings)
        self.schedule = settings.schedule.build()
        self.is_conditioned = settings.strategy.startswith("self-conditioning")
        masks = task.n_classes * (2 if self.is_conditioned else 1)
        self.network = build_backbone(
            settings,
            n_dims=task.n_dims,
            in_channels=task.in_channels + masks,
            out_channels=task.n_classes,
            use_time=True,
        )
        trained = linspace_grid(self.schedule.T, settings.training_timesteps or self.schedule.T)
        self.register_buffer("trained", torch.tensor(trained[::-1]), persistent=False)
        # Strategies whose first pass is noisier than the second leave the last timestep to the first.
        reach = len(trained) - (settings.strategy not in ("ground-truth", "self-conditioning"))
        self.timestep_sampler = TimestepSampler(reach, settings.timestep_sampling, settings.timestep_weight)

    trained: Tensor

    def loss(self, batch: Batch, stage: Stage, noise: NoiseSource) -> dict[str, Tensor]:
        """Return Dice and cross-entropy of the second pass's estimate (Eq. 4c to 8f)."""
        if batch.label is None:
            raise ValueError("diffusion on masks needs labels")
        told = [item for item, is_told in enumerate(noise.decide(self.settings.condition_share)) if is_told]
        place, weight = self.timestep_sampler.draw(noise)
        x_t, condition = self.second_input(batch.image, self.clean_mask(batch), place, told, noise)
        terms = losses_of_items(
            self._logits(batch.image, x_t, self.trained[place], condition),
            batch.label,
            batch.valid,
            exclusive=self.task.classes_are_exclusive,
            dice_weight=self.settings.dice_weight,
            ce_weight=self.settings.cross_entropy_weight,
            focal_gamma=self.settings.focal_gamma,
        )
        self.timestep_sampler.observe(place, torch.stack(list(terms.values())).detach().sum(0))
        return {name: (weight * values).mean() for name, values in terms.items()}

    def clean_mask(self, batch: Batch) -> Tensor:
        """Return x_0, (batch, class, *spatial): 1 in a class, -1 outside, 0 where nobody annotated."""
        label = batch.label
        assert label is not None
        if self.task.classes_are_exclusive:
            known = label if batch.valid is None else label.where(batch.valid, 0)
            classes = torch.arange(self.task.n_classes, device=label.device)
            label = known[:, None] == classes.view(1, -1, *[1] * (known.ndim - 1))
        x_0 = 2 * label.to(batch.image.dtype) - 1
        return x_0 if batch.valid is None else x_0.where(batch.valid[:, None], 0)

    def second_input(
        self, image: Tensor, x_0: Tensor, place: Tensor, told: Sequence[int], noise: NoiseSource
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the pass with a gradient sees: the noisy mask, and the estimate that conditions it.

        Args:
            place: of the pass's timestep among those that are trained, (batch,).
            told: items that are told an estimate; drawn before, so that the others cost no first pass.
        """
        strategy, shape, last = self.settings.strategy, x_0.shape[1:], len(self.trained) - 1
        first = {"recycling": torch.full_like(place, last), "ground-truth": place, "self-conditioning": place}
        t, t_first = self.trained[place], self.trained[first.get(strategy, place + 1)]
        x_first = q_sample(x_0, t_first, noise.randn(*shape), self.schedule)
        if strategy == "ground-truth":
            return x_first, None
        if strategy in ("recycling", "recycling-next"):
            estimate = self._first_pass(image, x_first, t_first)
            return q_sample(estimate, t, noise.randn(*shape), self.schedule), None
        condition = torch.zeros_like(x_0)
        if told:
            condition[told] = self._shown(self._first_pass(image[told], x_first[told], t_first[told]))
        if strategy == "self-conditioning":
            return x_first, condition
        return p_step(x_0, x_first, t_first, noise.randn(*shape), self.schedule, t), condition

    @torch.no_grad()
    def _first_pass(self, image: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the estimate of x_0 in -1 ... 1 without gradient or kept activations (StopGradient)."""
        nothing = torch.zeros_like(x_t) if self.is_conditioned else None
        return 2 * self._probabilities(self._logits(image, x_t, t, nothing)) - 1

    def _shown(self, estimate: Tensor) -> Tensor:
        """Return an estimate of -1 ... 1 as the network is shown it; 0 stands for none in both ranges."""
        return (estimate + 1) / 2 if self.settings.mask_range == "unit" else estimate

    def _logits(self, image: Tensor, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        # The chain goes on with x_t as it is; only the network sees it clipped.
        masks = [self._shown(x_t.clamp(-1, 1)), *([] if condition is None else [condition])]
        return self.network(torch.cat([image, *(mask.to(image.dtype) for mask in masks)], 1), t)

    def _probabilities(self, logits: Tensor) -> Tensor:
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return exact.softmax(1) if self.task.classes_are_exclusive else exact.sigmoid()

    def walk(self, sampling: Sampling) -> Walk:
        """Return evenly spaced training timesteps from pure noise, or from where a segmentation starts, down to 0."""
        last = self.schedule.T - 1
        start = last if sampling.start is None else sampling.start
        if not 0 <= start <= last:
            raise UsageError(f"timestep {start} to start from", where="--start-t", fix=f"choose 0 to {last}")
        steps = sampling.steps or min(self.settings.sampling_steps, start + 1)
        sampler = get_sampler(sampling.sampler or self.settings.sampler, sampling.eta, "x_0")
        return Walk(linspace_grid(start + 1, steps), sampler)

    def start(self, noise: NoiseSource, shape: Sequence[int], t: int, init: Tensor | None = None) -> Tensor:
        """Return standard normal numbers, or a segmentation noised to t (PD-DDPM, Guo et al. 2022)."""
        epsilon = noise.randn(self.task.n_classes, *shape)
        if init is None:
            return epsilon
        return q_sample(2 * init - 1, torch.full((len(init),), t, device=init.device), epsilon, self.schedule)

    def denoise(self, prepared: Prepared, x_t: Tensor, t: int, before: Tensor | None) -> Tensor:
        """Return the network's estimate; a self-conditioned one is told the estimate of the step before."""
        condition = None
        if self.is_conditioned:
            condition = torch.zeros_like(x_t) if before is None else self._shown(2 * before - 1)
        steps = torch.full((len(x_t),), t, device=x_t.device)
        return self._probabilities(self._logits(prepared.features, x_t, steps, condition))

    def advance(
        self, x_t: Tensor, probabilities: Tensor, t: int, t_next: int, noise: NoiseSource, walk: Walk
    ) -> Tensor:
        """Return the sampler's step towards the estimate."""
        fresh = noise.randn(*x_t.shape[1:]) if walk.sampler.is_stochastic and t_next != CLEAN else None
        x_0 = (2 * probabilities - 1).to(x_t.dtype)
        return walk.sampler.advance(x_t, x_0, t, t_next, fresh, self.schedule, history=walk.history, out=x_t)

    def finish_step(self, total: Callable[[Tensor], Tensor]) -> None:
        """Let the timestep sampler learn from the losses of all processes."""
        self.timestep_sampler.learn(total)

    @property
    def divisor(self) -> tuple[int, ...]:
        """The network's total stride per axis."""
        return tuple(self.network.divisor)
