"""Iterative methods: prediction as a walk from noise to a segmentation, in verbs that inference may drive itself.

A walk visits training timesteps from noisy to clean. At each one the network estimates the segmentation (`denoise`),
and a sampler leads to the next, cleaner state (`advance`). What is estimated are always probabilities, whatever the
process (Gaussian on masks of -1 and 1, categorical, ...): windows average them, and a walk can start from them.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medsegdiff_cli.diffusion.grids import Grid, transitions
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.diffusion.samplers import History, Sampler
from medsegdiff_cli.diffusion.schedules import CLEAN
from medsegdiff_cli.methods.base import Method, Sampling

Estimator = Callable[[Tensor, int, Tensor | None], Tensor]


@dataclass(frozen=True)
class Prepared:
    """All of an image that does not see x_t.

    Attributes:
        shape: spatial size of the image.
        features: what the network is given of the image, (batch, channel, *spatial) or whatever the method keeps.
    """

    shape: tuple[int, ...]
    features: Any


@dataclass
class Walk:
    """One way down: which timesteps, by which rule, and what a multistep rule remembers."""

    grid: Grid
    sampler: Sampler
    history: History = field(default_factory=History)


@dataclass(frozen=True)
class Step:
    """One step of a walk.

    Attributes:
        t: training timestep of the state that the estimate was made from.
        probabilities: the estimate, (batch, class, *spatial).
        settled: items whose walk has ended and whose estimate is that of the step before, bool (batch,).
    """

    t: int
    probabilities: Tensor
    settled: Tensor


class IterativeMethod(Method):
    """Base of methods that predict by a walk: they give the verbs, `predict` is composed of them."""

    @property
    def stochastic(self) -> bool:
        """Always: a walk starts from noise."""
        return True

    @abstractmethod
    def walk(self, sampling: Sampling) -> Walk:
        """Return a new walk.

        Raises:
            UsageError: a sampler, number of steps or start that the model does not have.
        """

    def prepare(self, image: Tensor) -> Prepared:
        """Return the image itself; networks that see image and state apart compute their image's part here."""
        return Prepared(tuple(image.shape[2:]), image)

    @abstractmethod
    def start(self, noise: NoiseSource, shape: Sequence[int], t: int, init: Tensor | None = None) -> Tensor:
        """Return the first state (batch, class, *shape): pure noise, or a segmentation noised to timestep t.

        Args:
            init: the segmentation to start from, probabilities (batch, class, *shape) (PD-DDPM, Guo et al. 2022).
        """

    @abstractmethod
    def denoise(self, prepared: Prepared, x_t: Tensor, t: int, before: Tensor | None) -> Tensor:
        """Return the estimate of the segmentation, float32 probabilities (batch, class, *spatial).

        Args:
            before: the estimate of the step before, None at the first: what a self-conditioned network is told.
        """

    @abstractmethod
    def advance(
        self, x_t: Tensor, probabilities: Tensor, t: int, t_next: int, noise: NoiseSource, walk: Walk
    ) -> Tensor:
        """Return the state at `t_next`; `x_t` may be overwritten.

        Args:
            noise: one stream per item of `x_t`.
        """

    def steps(
        self, prepared: Prepared, noise: NoiseSource, sampling: Sampling, init: Tensor | None = None
    ) -> Iterator[Step]:
        """Walk down and yield each step's estimate of a prepared image; see `descend`."""

        def estimate(x_t: Tensor, t: int, before: Tensor | None) -> Tensor:
            return self.denoise(prepared, x_t, t, before)

        return self.descend(estimate, prepared.shape, noise, sampling, init)

    def descend(
        self,
        estimate: Estimator,
        shape: Sequence[int],
        noise: NoiseSource,
        sampling: Sampling,
        init: Tensor | None = None,
    ) -> Iterator[Step]:
        """Walk down and yield each step's estimate; only the running state is kept.

        With `sampling.stop_change`, an item whose labels have settled keeps its estimate, and the walk ends when all
        items have settled: an item's result does not depend on its neighbours in the batch.

        Args:
            estimate: (x_t, t, estimate of the step before) -> probabilities: `denoise` of an image, or of the parts
                of one that is too large for the network. The walk's tensors are on the noise's device.
            shape: spatial size of the state.
            init: see `start`.
        """
        walk = self.walk(sampling)
        x_t = self.start(noise, shape, walk.grid[0], init)
        before: Tensor | None = None
        settled = torch.zeros(len(x_t), dtype=torch.bool, device=x_t.device)
        for t, t_next in transitions(walk.grid):
            now, kept = estimate(x_t, t, before), settled
            if sampling.stop_change is not None and before is not None:
                now = torch.where(settled.view(-1, *[1] * (now.ndim - 1)), before, now)
                settled = settled | (self.changed_share(before, now) < sampling.stop_change)
            yield Step(t, now, kept)
            if t_next == CLEAN or (sampling.stop_change is not None and bool(settled.all())):
                return
            before = now  # first: the estimate that it replaces is not needed beside what the step makes
            x_t = self.advance(x_t, now, t, t_next, noise, walk)

    def predict(self, prepared: Prepared, noise: NoiseSource, sampling: Sampling) -> Tensor:
        """Return the last step's estimate as the one member, (batch, 1, class, *spatial)."""
        last: Tensor | None = None
        for step in self.steps(prepared, noise, sampling):
            last = step.probabilities
        assert last is not None, "a grid has a timestep"
        return last[:, None]

    def changed_share(self, before: Tensor, after: Tensor) -> Tensor:
        """Return per item the share of foreground voxels (of either) whose class changed, (batch,); 0 without any."""
        if self.task.classes_are_exclusive:
            old, new = before.argmax(1), after.argmax(1)
            changed, foreground = old != new, (old != 0) | (new != 0)
        else:
            one, other = before > 0.5, after > 0.5
            changed, foreground = (one != other).any(1), (one | other).any(1)
        return changed.flatten(1).sum(1) / foreground.flatten(1).sum(1).clamp(min=1)
