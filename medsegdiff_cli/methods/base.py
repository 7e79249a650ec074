"""The Method contract: what training, validation and prediction know about any segmentation method.

A `Trainable` has stages and a loss. Two kinds of it exist: a `Method` predicts, an `Objective` is a pretraining that
methods start from, with labels or without, as its stage says. Neither ever sees files, epochs, optimisers or devices.
Everything random comes through `noise`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel
from torch import Tensor, nn

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.errors import UsageError

Output = Literal["image", "classes"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A phase of training, as data.

    Attributes:
        supervision: "none" never shows labels, "partial" adds unlabelled images to labelled ones, "full" labels only.
        trains: prefixes of parameter names that are optimised; everything else is frozen and in `eval()`.
            `("",)` trains all.
        views: how many differently augmented views of a patch the loss compares.
        aligned: these views show the same place in the same way and differ in their intensities only.
        effort: optimiser steps as a share of what a whole network needs, for scales that fix the length of training.
    """

    name: str
    supervision: Literal["none", "partial", "full"]
    trains: tuple[str, ...] = ("",)
    views: int = 1
    aligned: bool = False
    effort: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a stochastic method samples; plain data. The noise schedule belongs to the model alone.

    Attributes:
        sampler, steps: None takes the model's own default.
        eta: 0 deterministic DDIM ... 1 ancestral.
        start: training timestep at which the walk starts; None starts from pure noise at the last one.
        stop_change: end the walk when a smaller share of foreground voxels than this changes its class from one step
            to the next; None walks to the end.
        timesteps: training timesteps whose members a timestep ensemble predicts with; None takes all that it has.
    """

    sampler: str | None = None
    steps: int | None = None
    eta: float = 0.0
    start: int | None = None
    stop_change: float | None = None
    timesteps: tuple[int, ...] | None = None


class FeatureKeeper(Protocol):
    """What `Method.keep_features` takes, see `networks.feature_cache`."""

    def features(self, inputs: Tensor, name: str, compute: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        """Return the blocks of a batch, computed for the items that the cache does not hold."""


class Trainable(nn.Module, ABC):
    """What methods and pretraining objectives have in common: a task, settings, stages and a loss.

    Class attributes:
        Settings: frozen pydantic model with `extra="forbid"`; each field documented with unit and source.
        stages: in training order; settings may narrow what a stage of an instance trains.
        outputs: what the channels of the network's output layer speak of, in order: so another method or objective
            that starts from the weights knows which rows it can take.
        n_transitions: how often the network halves the resolution, where no setting `channel_mult` says so.
    """

    Settings: ClassVar[type[BaseModel]]
    stages: tuple[Stage, ...]
    outputs: ClassVar[tuple[Output, ...]] = ("classes",)
    n_transitions: ClassVar[int] = 0

    def __init__(self, task: Task, settings: Any) -> None:
        super().__init__()
        self.task = task
        self.settings = settings

    @abstractmethod
    def loss(self, batch: Batch, stage: Stage, noise: NoiseSource) -> dict[str, Tensor]:
        """Return named, already weighted scalar terms; training minimises their sum.

        Args:
            noise: one stream per batch item.
        """

    def remarks(self) -> tuple[str, ...]:
        """Return sentences about what follows from the settings, for the log of a training that begins."""
        return ()

    def finish_step(self, total: Callable[[Tensor], Tensor]) -> None:  # most have nothing to do
        """Update state that depends on the whole global batch; called once after every optimiser step.

        Args:
            total: returns the sum of a tensor over all training processes.
        """

    @property
    @abstractmethod
    def divisor(self) -> tuple[int, ...]:
        """Numbers, one per axis, by which a patch's edges must be divisible."""


class Method(Trainable):
    """Base of every segmentation method.

    Class attributes:
        inherited: settings that come with the weights of a run that training starts from (its network and noise
            schedule), fields of `Settings`; None when no setting is bound to such weights.
        pretrained: prefixes of the parameter names that such a run fills.
    """

    inherited: ClassVar[type[BaseModel] | None] = None
    pretrained: ClassVar[tuple[str, ...]] = ("",)

    @property
    def stochastic(self) -> bool:
        """Whether `predict` depends on `noise`; then several draws make an ensemble."""
        return False

    @property
    def timesteps(self) -> tuple[int, ...]:
        """Timesteps of an ensemble, one or more members each; empty for every other method."""
        return ()

    def keep_features(self, cache: "FeatureKeeper") -> None:
        """Take the features of frozen layers from a cache while training, where inputs come again.

        Raises:
            UsageError: the method has no such features, or its inputs never come again.
        """
        raise UsageError(
            f"{type(self).__name__} has no features to keep", where="training.feature_cache", fix="leave it out"
        )

    def prepare(self, image: Tensor) -> Any:
        """Return everything that does not depend on noise or steps; called once per window.

        Args:
            image: (batch, channel, *spatial).
        """
        return image

    @abstractmethod
    def predict(self, prepared: Any, noise: NoiseSource, sampling: Sampling) -> Tensor:
        """Return probabilities (batch, member, class, *spatial); deterministic given `noise`.

        Members are an intrinsic ensemble (timesteps, classifiers); else a stochastic method returns one member a call.
        """


class Objective(Trainable):
    """Base of every pretraining objective: it learns what methods then start from, and predicts nothing itself.

    Whether it is shown labels is its stage's `supervision`: "none" never; "partial" where an image has one; "full"
    of every image.
    """

    @abstractmethod
    def illustrate(self, noise: NoiseSource, shape: Sequence[int]) -> Tensor | None:
        """Return pictures of what was learnt, (batch, channel, *shape), or None when there is nothing to look at.

        Args:
            noise: one stream per picture.
            shape: spatial size, multiples of the divisor.
        """


def parameters_of_stage(method: Trainable, stage: Stage) -> dict[str, nn.Parameter]:
    """Return the parameters that a stage optimises, by name.

    Raises:
        ValueError: a prefix of `stage.trains` matches nothing.
    """
    named = dict(method.named_parameters())
    for prefix in stage.trains:
        if not any(name.startswith(prefix) for name in named):
            raise ValueError(f"stage '{stage.name}' trains '{prefix}', but no parameter is called so")
    return {name: p for name, p in named.items() if name.startswith(stage.trains)}


def enter_stage(method: Trainable, stage: Stage) -> None:
    """Freeze and `eval()` everything outside `stage.trains`; the rest trains.

    Frozen modules must be in eval mode too: a frozen BatchNorm left in train mode still drifts.
    """
    trained = set(parameters_of_stage(method, stage))
    for name, parameter in method.named_parameters():
        parameter.requires_grad_(name in trained)
    for name, module in method.named_modules():
        # The dot keeps a frozen `norm` apart from a trained `norm2`; what contains a trained module trains too.
        path = f"{name}." if name else ""
        module.training = any(path.startswith(prefix) or prefix.startswith(path) for prefix in stage.trains)
