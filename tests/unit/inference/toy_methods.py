"""Methods without a network, whose predictions can be worked out by hand."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.inference.fusion import RunningFusion
from medsegdiff_cli.inference.volume import InferenceSettings, predict_volume
from medsegdiff_cli.methods.base import Method, Sampling, Stage


class ToyMethod(Method):
    """Applies a function to (batch, channel, *spatial); its output is (batch, member, class, *spatial).

    Args:
        function: gets the images and the noise.
    """

    def __init__(
        self, function: Callable[[Tensor, NoiseSource], Tensor], *, n_dims: int, stochastic: bool = False
    ) -> None:
        task = Task(n_dims=n_dims, in_channels=1, class_names=("background", "blob"))
        super().__init__(task, None)
        self.function = function
        self.weight = nn.Parameter(torch.ones(()))  # its device is the method's
        self.is_stochastic = stochastic
        self.calls: list[int] = []

    @property
    def stochastic(self) -> bool:
        return self.is_stochastic

    def loss(self, batch: Batch, stage: Stage, noise: NoiseSource) -> dict[str, Tensor]:
        return {}

    def predict(self, prepared: Tensor, noise: NoiseSource, sampling: Sampling) -> Tensor:
        self.calls.append(len(prepared))
        return self.function(prepared, noise)

    @property
    def divisor(self) -> tuple[int, ...]:
        return (1,) * self.task.n_dims


def predicted(methods: ToyMethod | Sequence[ToyMethod], image: Tensor, **changes: object) -> RunningFusion:
    """Predict `image` as the case "case"."""
    chosen = [methods] if isinstance(methods, ToyMethod) else list(methods)
    keep = {name: bool(changes.pop(name, False)) for name in ("keep_variance", "keep_labels", "keep_votes")}
    case = str(changes.pop("case", "case"))
    settings = InferenceSettings(**changes)  # type: ignore[arg-type]
    return predict_volume(chosen, image, case, settings, **keep)


def identity(image: Tensor, noise: NoiseSource) -> Tensor:
    """One member, one class: the image itself."""
    return image[:, None]


def noisy(image: Tensor, noise: NoiseSource) -> Tensor:
    """One member, one class: the image plus standard normal noise."""
    return (image + noise.randn(*image.shape[1:]))[:, None]
