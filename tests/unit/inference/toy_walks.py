"""An iterative method without a network: every voxel's estimate follows from its own intensity and state.

Since no voxel looks at another one, windows of any size must give what the whole image gives, up to their noise.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.gaussian import q_sample
from medsegdiff_cli.diffusion.grids import linspace_grid
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.diffusion.samplers import get_sampler
from medsegdiff_cli.diffusion.schedules import CLEAN, ScheduleSettings
from medsegdiff_cli.methods.base import Sampling, Stage
from medsegdiff_cli.methods.iterative import IterativeMethod, Prepared, Walk

SCHEDULE = ScheduleSettings(name="linear", T=101).build()


class ToyWalk(IterativeMethod):
    """Class logits are the intensity plus `state` times the noisy mask plus `memory` times the estimate before.

    Args:
        names: of the classes.
        widened: channels of the features that `prepare` makes of the image; 0 takes the image itself.
    """

    def __init__(
        self,
        n_dims: int = 2,
        *,
        names: Sequence[str] = ("background", "a", "b"),
        exclusive: bool = True,
        state: float = 0.7,
        memory: float = 0.0,
        widened: int = 2,
    ) -> None:
        task = Task(n_dims=n_dims, in_channels=1, class_names=tuple(names), classes_are_exclusive=exclusive)
        super().__init__(task, None)
        self.weight = nn.Parameter(torch.ones(()))  # its device is the method's
        self.state, self.memory, self.widened = state, memory, widened
        self.prepared_windows = 0
        self.denoised_at: list[int] = []

    def loss(self, batch: Batch, stage: Stage, noise: NoiseSource) -> dict[str, Tensor]:
        return {}

    @property
    def divisor(self) -> tuple[int, ...]:
        return (1,) * self.task.n_dims

    def walk(self, sampling: Sampling) -> Walk:
        start = 100 if sampling.start is None else sampling.start
        sampler = get_sampler(sampling.sampler or "ddpm", sampling.eta)
        return Walk(linspace_grid(start + 1, sampling.steps or 3), sampler)

    def prepare(self, image: Tensor) -> Prepared:
        self.prepared_windows += len(image)
        features: Any = image
        if self.widened:
            features = {"blocks": [image.expand(-1, self.widened, *image.shape[2:]) * 1.0], "image": (image,)}
        return Prepared(tuple(image.shape[2:]), features)

    def start(self, noise: NoiseSource, shape: Sequence[int], t: int, init: Tensor | None = None) -> Tensor:
        epsilon = noise.randn(self.task.n_classes, *shape)
        return epsilon if init is None else q_sample(2 * init - 1, torch.full((len(init),), t), epsilon, SCHEDULE)

    def denoise(self, prepared: Prepared, x_t: Tensor, t: int, before: Tensor | None) -> Tensor:
        self.denoised_at.append(t)
        image = prepared.features["blocks"][0][:, :1] if self.widened else prepared.features
        signs = torch.linspace(-1, 1, self.task.n_classes).view(1, -1, *[1] * (image.ndim - 2))
        logits = 2 * image * signs + self.state * x_t.clamp(-1, 1)
        if before is not None:
            logits = logits + self.memory * (before - 0.5)
        return logits.softmax(1) if self.task.classes_are_exclusive else logits.sigmoid()

    def advance(
        self, x_t: Tensor, probabilities: Tensor, t: int, t_next: int, noise: NoiseSource, walk: Walk
    ) -> Tensor:
        fresh = noise.randn(*x_t.shape[1:]) if walk.sampler.is_stochastic and t_next != CLEAN else None
        return walk.sampler.advance(
            x_t, 2 * probabilities - 1, t, t_next, fresh, SCHEDULE, history=walk.history, out=x_t
        )
