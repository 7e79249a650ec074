"""Any registered method or pretraining objective, made small, and made-up data for it.

An objective goes by the name of its runs here, `pretrain-OBJECTIVE`, as in recipes and run folders.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource, stream_seed
from medsegdiff_cli.methods.base import Method, Sampling, Stage, Trainable
from medsegdiff_cli.methods.registry import METHODS, OBJECTIVES, PRETRAINING, find_trainable, is_pretraining

# Width and depth under the names that settings of networks have here; what a method lacks is left out.
SMALL: dict[str, Any] = {
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (),
    "strides": None,
    "width": 8,
    "blocks": (1, 1, 1, 1),
    "dropout": 0.0,
    "drop_path": 0.0,
    "head_width": 16,
    "hidden_features": 16,
    "projected_features": 16,
}
# An ensemble over timesteps keeps three of them: each one runs the network.
_TIMESTEPS = 3
TRAINABLES = (*METHODS, *(f"{PRETRAINING}{name}" for name in OBJECTIVES))


@dataclass(frozen=True)
class Variant:
    """A method or objective, on images of 2 or 3 axes, for exclusive classes or for regions."""

    name: str
    n_dims: int
    exclusive: bool = True

    def __str__(self) -> str:
        return f"{self.name}-{self.n_dims}d-{'classes' if self.exclusive else 'regions'}"

    @property
    def task(self) -> Task:
        names = ("background", "organ", "nodule") if self.exclusive else ("whole", "nodule")
        return Task(
            n_dims=self.n_dims,
            in_channels=1,
            class_names=names,
            classes_are_exclusive=self.exclusive,
            ignore=True,
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages as its own, small settings make them."""
        with torch.device("meta"):
            return tuple(build(self).stages)

    @property
    def predicts(self) -> bool:
        """Whether it is a method; objectives only train."""
        return not is_pretraining(self.name)


def variants(*, regions: bool = True, objectives: bool = False) -> list[Variant]:
    """Return all methods, and with `objectives` these too; of those that look at no classes one kind is all."""
    kinds = (True, False) if regions else (True,)
    found = [Variant(name, n, kind) for name, entry in METHODS.items() for n in entry.n_dims for kind in kinds]
    for name, entry in OBJECTIVES.items() if objectives else ():
        sees_labels = any(stage.supervision != "none" for stage in entry.load().stages)
        own = kinds if sees_labels else (True,)
        found += [Variant(f"{PRETRAINING}{name}", n, kind) for n in entry.n_dims for kind in own]
    return found


def as_parameters(chosen: list[Variant], *, slow_2d: bool = False) -> list[Any]:
    """Return variants as pytest parameters; the second and later names of one class, and two stages in 3D, are slow.

    Args:
        slow_2d: also in 2D for exclusive classes, where each name is otherwise tested at once.
    """
    first_names: dict[str, str] = {}
    parameters = []
    for variant in chosen:
        is_first = first_names.setdefault(find_trainable(variant.name).target, variant.name) == variant.name
        quick = is_first or (variant.n_dims == 2 and variant.exclusive and not slow_2d)
        quick = quick and not (variant.n_dims == 3 and len(variant.stages) > 1)
        parameters.append(pytest.param(variant, marks=[] if quick else [pytest.mark.slow], id=str(variant)))
    return parameters


def small_settings(name: str, **changes: Any) -> BaseModel:
    """Return the method's settings with every width that it has, also in nested settings, made small."""
    entry = find_trainable(name)
    model = entry.load().Settings
    settings = {**entry.preset, **_shrunk(model), **changes}
    steps = settings.get("timesteps", ())
    if "timesteps" not in changes and len(steps) > _TIMESTEPS:
        settings["timesteps"] = (steps[0], steps[len(steps) // 2], steps[-1])
    return validate(model, settings, f"settings of {name}")


def _shrunk(model: type[BaseModel]) -> dict[str, Any]:
    small = {key: value for key, value in SMALL.items() if key in model.model_fields}
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            small[key] = _shrunk(field.annotation)
    return small


def build(variant: Variant, *, seed: int = 0, zero_init: bool = True, **changes: Any) -> Any:
    """Build a small method or objective.

    Args:
        zero_init: leave layers at 0 that start there; False gives every parameter random numbers, so that outputs
            depend on all of them.
    """
    torch.manual_seed(seed)
    method = find_trainable(variant.name).load()(variant.task, small_settings(variant.name, **changes))
    if not zero_init:
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape) + (parameter.ndim == 1))
    return method


def edges(method: Trainable, *factors: int) -> tuple[int, ...]:
    """Return patch edges that are multiples of the divisor, different per axis."""
    return tuple(divisor * factor for divisor, factor in zip(method.divisor, factors or (4, 6, 5), strict=False))


def organs(number: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return image (1, *shape) and label (*shape) of a bright ellipsoid that holds a brighter one, anywhere."""
    random = torch.Generator().manual_seed(stream_seed("organs", number, *shape))
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    column = (-1, *[1] * len(shape))
    size = torch.tensor(shape, dtype=torch.float32)
    radii = size * (0.2 + 0.08 * torch.rand(len(shape), generator=random))
    centre = radii + (size - 2 * radii) * torch.rand(len(shape), generator=random)
    distance = (((position - centre.view(column)) / radii.view(column)) ** 2).sum(0)
    label = (distance < 1).long() + (distance < 0.3).long()
    image = label.float() - 0.5 + 0.15 * torch.randn(shape, generator=random)
    return image[None], label


def targets(labels: Tensor, exclusive: bool) -> Tensor:
    """Return int64 labels as they are, or uint8 regions (batch, region, *spatial): whole and nodule."""
    return labels if exclusive else torch.stack([labels > 0, labels > 1], 1).to(torch.uint8)


def batch_of(
    numbers: list[int], shape: tuple[int, ...], stage: Stage, *, exclusive: bool = True, ignore: bool = False
) -> Batch:
    """Return the phantoms of these numbers as a stage sees them.

    Args:
        ignore: nobody annotated the first rows, nor (with partial supervision) the last item.
    """
    images, labels = (torch.stack(part) for part in zip(*(organs(n, shape) for n in numbers), strict=True))
    valid = torch.ones(labels.shape, dtype=torch.bool)
    valid[:, : shape[0] // 3] = not ignore
    if stage.supervision == "partial":
        valid[-1] = False
    return Batch(
        image=images,
        label=None if stage.supervision == "none" else targets(labels, exclusive),
        valid=valid if ignore or stage.supervision == "partial" else None,
        case_ids=tuple(f"case{n}" for n in numbers),
        positions=torch.arange(len(numbers)),
        views=tuple((images if stage.aligned else images.flip(-1)) + 0.1 * view for view in range(1, stage.views)),
    )


def with_garbage(batch: Batch) -> Batch:
    """Return the batch with labels that no class has where nobody annotated."""
    assert batch.label is not None
    assert batch.valid is not None
    valid = batch.valid if batch.label.ndim == batch.valid.ndim else batch.valid[:, None]
    return replace(batch, label=batch.label.where(valid, torch.full_like(batch.label, 200)))


def noise_for(batch: Batch, seed: int = 0) -> NoiseSource:
    return NoiseSource([(seed, position) for position in batch.positions.tolist()])


def predicted(method: Method, image: Tensor, numbers: list[int] | None = None) -> Tensor:
    """Return probabilities (batch, member, class, *spatial); item i has the noise of `numbers[i]`."""
    keys = [("test", number) for number in (numbers or range(len(image)))]
    with torch.inference_mode():
        return method.eval().predict(method.prepare(image), NoiseSource(keys), Sampling())


def stream_of_batches(start: int, steps: int, shape: tuple[int, ...], stage: Stage, **kind: Any) -> Iterator[Batch]:
    """Yield batches of two that are a function of the step."""
    for step in range(start, steps):
        yield batch_of([2 * step, 2 * step + 1], shape, stage, **kind)


def mean_dice(labels: Tensor, reference: Tensor, n_classes: int = 3) -> float:
    """Return the mean over foreground classes of the pooled Dice."""
    scores = []
    for index in range(1, n_classes):
        p, r = labels == index, reference == index
        scores.append(float(2 * (p & r).sum() / (p.sum() + r.sum()).clamp(min=1)))
    return sum(scores) / len(scores)
