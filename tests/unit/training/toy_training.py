"""A method of a few hundred parameters and batches that are a function of the step, for tests of the training loop.

Run as a program, it trains one rank of several: `python toy_training.py FOLDER BATCH_SIZE [FAILING_RANK]`.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.recipe import TrainingSettings
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource, stream_seed
from medsegdiff_cli.methods.base import Method, Sampling, Stage
from medsegdiff_cli.training.distributed import join_team
from medsegdiff_cli.training.loop import train_stage
from medsegdiff_cli.training.outcome import StageResult, ValidationScore

CPU = torch.device("cpu")
STAGE = Stage(name="train", supervision="full")


class ToySettings(BaseModel):
    dropout: float = 0.0
    batch_norm: bool = False


class Toy(Method):
    """Body (conv, norm, dropout) and head; its loss adds noise to the image, as a diffusion method would."""

    Settings = ToySettings
    stages = (STAGE,)

    def __init__(self, task: Task, settings: ToySettings) -> None:
        super().__init__(task, settings)
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[task.n_dims]
        batch_norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[task.n_dims]
        norm = batch_norm(8) if settings.batch_norm else nn.GroupNorm(2, 8)
        self.body = nn.Sequential(conv(1, 8, 3, padding=1), norm, nn.SiLU(), nn.Dropout(settings.dropout))
        self.head = conv(8, 2, 1)

    def loss(self, batch: Batch, stage: Stage, noise: NoiseSource) -> dict[str, Tensor]:
        noisy = batch.image + 0.1 * noise.randn(*batch.image.shape[1:])
        logits = self.head(self.body(noisy))
        size = (logits**2).mean()
        return {"ce": nn.functional.cross_entropy(logits.float(), batch.label), "size": 0.01 * size}

    def predict(self, prepared: Any, noise: NoiseSource, sampling: Sampling) -> Tensor:
        return torch.softmax(self.head(self.body(prepared)), 1)[:, None]

    @property
    def divisor(self) -> tuple[int, ...]:
        return (1,) * self.task.n_dims


def toy(n_dims: int = 2, **settings: Any) -> Toy:
    """Return a toy with weights that depend on nothing."""
    torch.manual_seed(0)
    task = Task(n_dims=n_dims, in_channels=1, class_names=("background", "blob"))
    return Toy(task, ToySettings(**settings))


def patch(n_dims: int, number: int) -> tuple[Tensor, Tensor]:
    """Return image and label of the `number`-th patch: noise, and where it is positive."""
    image = torch.randn(1, *(8,) * n_dims, generator=torch.Generator().manual_seed(stream_seed("patch", number)))
    return image, (image[0] > 0).long()


def batches(
    steps: int, *, n_dims: int = 2, batch_size: int = 4, rank: int = 0, world_size: int = 1
) -> Callable[[int], Iterator[Batch]]:
    """Return a `make_batches`."""

    def make(start: int) -> Iterator[Batch]:
        for step in range(start, steps):
            positions = range(rank, batch_size, world_size)
            images, labels = zip(*(patch(n_dims, step * batch_size + p) for p in positions), strict=True)
            yield Batch(
                image=torch.stack(images),
                label=torch.stack(labels),
                valid=None,
                case_ids=tuple(f"case{step * batch_size + p}" for p in positions),
                positions=torch.tensor(list(positions)),
            )

    return make


def accuracy(method: Method) -> ValidationScore:
    """Return the share of right voxels on one patch that training does not see."""
    assert not method.training
    image, label = patch(method.task.n_dims, 10**6)
    # Consume random numbers, as a validation of a stochastic method may: training must not notice.
    torch.rand(3)
    with torch.inference_mode():
        right = method.predict(image[None], NoiseSource([("v",)]), Sampling())[0, 0].argmax(0) == label
    return ValidationScore(value=float(right.float().mean()), cases=1, details={"blob": 0.5})


def settings(steps: int = 12, **changes: Any) -> TrainingSettings:
    """Return quick settings: a line each step, a validation every fourth."""
    quick: dict[str, Any] = {"steps": steps, "learning_rate": 1e-2, "warmup_steps": 3, "validate_every_steps": 4}
    return TrainingSettings(**{**quick, **changes})


def train(method: Method, folder: Path, chosen: TrainingSettings, **changes: Any) -> StageResult:
    """Call `train_stage` with the toy's defaults."""
    arguments: dict[str, Any] = {
        "make_batches": batches(chosen.steps, n_dims=method.task.n_dims),
        "validate": accuracy,
        "seed": 7,
        "device": CPU,
    }
    return train_stage(method, changes.pop("stage", STAGE), chosen, folder=folder, **{**arguments, **changes})


def main() -> None:
    folder, batch_size = Path(sys.argv[1]), int(sys.argv[2])
    failing = int(sys.argv[3]) if len(sys.argv) > 3 else -1
    chosen = settings(6, checkpoint_minutes=1e-9)
    with join_team(CPU) as team:
        make = batches(chosen.steps, batch_size=batch_size, rank=team.rank, world_size=team.world_size)

        def make_or_die(start: int) -> Iterator[Batch]:
            for number, batch in enumerate(make(start)):
                if team.rank == failing and number == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

        method = toy()
        train(method, folder, chosen, make_batches=make_or_die, team=team)
        print(" ".join(f"{value:.9g}" for p in method.parameters() for value in p.flatten().tolist()))


if __name__ == "__main__":
    main()
