"""The Method contract: what training, validation and prediction know about any segmentation method.

A method never sees files, epochs, optimisers or devices. Everything random comes through `noise`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel
from torch import Tensor, nn

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A phase of training, as data.

    Attributes:
        supervision: "none" never shows labels, "partial" adds unlabelled images to labelled ones, "full" labels only.
        trains: prefixes of parameter names that are optimised; everything else is frozen and in `eval()`.
            `("",)` trains all.
        views: how many differently augmented views of a patch the loss compares.
    """

    name: str
    supervision: Literal["none", "partial", "full"]
    trains: tuple[str, ...] = ("",)
    views: int = 1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a stochastic method samples; plain data. The noise schedule belongs to the model alone.

    Attributes:
        sampler, steps: None takes the model's own default.
        eta: 0 deterministic DDIM ... 1 ancestral.
    """

    sampler: str | None = None
    steps: int | None = None
    eta: float = 0.0


class Method(nn.Module, ABC):
    """Base of every method.

    Class attributes:
        Settings: frozen pydantic model with `extra="forbid"`; each field documented with unit and source.
        stages: in training order.
        stochastic: whether `predict` depends on `noise` (then several draws make an ensemble).
    """

    Settings: ClassVar[type[BaseModel]]
    stages: ClassVar[tuple[Stage, ...]]
    stochastic: ClassVar[bool] = False

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

    def prepare(self, image: Tensor) -> Any:
        """Return everything that does not depend on noise or steps; called once per window.

        Args:
            image: (batch, channel, *spatial).
        """
        return image

    @abstractmethod
    def predict(self, prepared: Any, noise: NoiseSource, sampling: Sampling) -> Tensor:
        """Return probabilities (batch, member, class, *spatial); deterministic given `noise`.

        Members are an intrinsic ensemble (timesteps, classifiers). A stochastic method returns one member a call.
        """

    @property
    @abstractmethod
    def divisor(self) -> tuple[int, ...]:
        """Numbers, one per axis, by which a patch's edges must be divisible."""


def parameters_of_stage(method: Method, stage: Stage) -> dict[str, nn.Parameter]:
    """Return the parameters that a stage optimises, by name.

    Raises:
        ValueError: a prefix of `stage.trains` matches nothing.
    """
    named = dict(method.named_parameters())
    for prefix in stage.trains:
        if not any(name.startswith(prefix) for name in named):
            raise ValueError(f"stage '{stage.name}' trains '{prefix}', but no parameter is called so")
    return {name: p for name, p in named.items() if name.startswith(stage.trains)}


def enter_stage(method: Method, stage: Stage) -> None:
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
