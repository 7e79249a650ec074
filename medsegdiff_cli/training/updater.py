"""One optimiser step: loss, gradient, clipping, update, average; and the tensors that this leaves behind."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.checkpoint import Checkpoint
from medsegdiff_cli.artifacts.recipe import TrainingSettings
from medsegdiff_cli.diffusion.noise import NoiseSource, stream_seed
from medsegdiff_cli.errors import IntegrityError, MsdError
from medsegdiff_cli.inference.volume import autocast
from medsegdiff_cli.methods.base import Stage, Trainable, parameters_of_stage
from medsegdiff_cli.training.distributed import Team
from medsegdiff_cli.training.ema import Ema
from medsegdiff_cli.training.optimisation import (
    build_optimiser,
    gradient_norm,
    learning_rate,
    learning_rate_factors,
    load_optimiser_tensors,
    optimiser_tensors,
    set_learning_rate,
)


@dataclass(frozen=True)
class StepFigures:
    """What a step reports: the loss terms over the global batch and the gradient's norm before clipping."""

    terms: Mapping[str, float]
    gradient_norm: float

    @property
    def loss(self) -> float:
        """Sum of the terms."""
        return sum(self.terms.values())


class Updater:
    """A method being optimised in one stage.

    Args:
        seed: first part of every random stream's key.
        precision: "float32" or "bfloat16" (autocast).
    """

    def __init__(
        self,
        method: Trainable,
        stage: Stage,
        settings: TrainingSettings,
        *,
        seed: int,
        device: torch.device,
        precision: str,
        channels_last: bool,
        team: Team,
    ) -> None:
        self.method, self.stage, self.settings, self.team = method, stage, settings, team
        self._seed, self._device, self._precision, self._channels_last = seed, device, precision, channels_last
        self._parameters = parameters_of_stage(method, stage)
        self.rate_factors = learning_rate_factors(method, self._parameters, settings)
        self._optimiser = build_optimiser(self._parameters, settings, self.rate_factors)
        self._ema = None if settings.ema_decay is None else Ema(self._parameters, settings.ema_decay)

    def update(self, batch: Batch, step: int) -> StepFigures:
        """Make step number `step`, counted from 0.

        Raises:
            MsdError: a loss term or the gradient is no finite number; the weights are those before the step.
        """
        # For dropout and its like; a method's own noise comes from `noise`.
        torch.manual_seed(stream_seed(self._seed, self.stage.name, step, self.team.rank))
        keys = [(self._seed, self.stage.name, step, position) for position in batch.positions.tolist()]
        noise = NoiseSource(keys, self._device)
        self._optimiser.zero_grad(set_to_none=True)
        with autocast(self._precision, self._device):
            terms = self.method.loss(batch.to(self._device, self._channels_last), self.stage, noise)
        stacked = torch.stack([term.float() for term in terms.values()])
        stacked.sum().backward()
        means = self.team.average(list(self._parameters.values()), stacked.detach(), len(batch.positions))
        norm = gradient_norm(self._parameters, self.settings.gradient_clip)
        *values, length = torch.cat([means, norm.reshape(1)]).tolist()
        figures = StepFigures(dict(zip(terms, values, strict=True)), length)
        if not (math.isfinite(figures.loss) and math.isfinite(length)):
            self._refuse(figures, batch, step, own_is_finite=bool(torch.isfinite(stacked).all()))
        set_learning_rate(self._optimiser, learning_rate(step, self.settings))
        self._optimiser.step()
        self.method.finish_step(self.team.total)
        self.team.copy_from_lead(list(self.method.buffers()))
        if self._ema is not None:
            self._ema.update(step)
        return figures

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the method holds its prediction weights."""
        return contextlib.nullcontext() if self._ema is None else self._ema.applied()

    def adopt_averages(self) -> None:
        """Give the method its prediction weights for good."""
        if self._ema is not None:
            self._ema.swap()

    def tensors(self) -> dict[str, Tensor]:
        """Return all that resuming needs, by dotted name."""
        parts = {
            "model": self.method.state_dict(),
            "optimiser": optimiser_tensors(self._optimiser, self._parameters),
            "ema": {} if self._ema is None else self._ema.averages,
        }
        return {f"{part}.{name}": tensor for part, content in parts.items() for name, tensor in content.items()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from saved tensors.

        Raises:
            IntegrityError: they belong to another method or stage.
        """
        load_weights(self.method, checkpoint)
        load_optimiser_tensors(self._optimiser, self._parameters, checkpoint.part("optimiser"))
        if self._ema is not None:
            self._ema.load(checkpoint.part("ema"))

    def share(self) -> None:
        """Give all ranks rank 0's weights and averages."""
        self.team.copy_from_lead([*self.method.parameters(), *self.method.buffers()])
        if self._ema is not None:
            self.team.copy_from_lead(list(self._ema.averages.values()))

    def _refuse(self, figures: StepFigures, batch: Batch, step: int, *, own_is_finite: bool) -> NoReturn:
        wrong = [f"{name} = {value}" for name, value in figures.terms.items() if not math.isfinite(value)]
        what = ", ".join(wrong) or f"norm of the gradient = {figures.gradient_norm}"
        elsewhere = self.team.world_size > 1 and wrong and own_is_finite
        cases = "another process's cases" if elsewhere else f"cases {', '.join(dict.fromkeys(batch.case_ids))}"
        raise MsdError(
            f"training diverged in stage '{self.stage.name}' at step {step + 1}: {what}",
            where=cases,
            fix="look at these cases with `msd check` and `msd preview`; if they are sound, lower "
            "training.learning_rate or use training.precision=float32, under a new --name. The last checkpoint "
            "before this step is kept",
        )


def load_weights(method: Trainable, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's `model` part.

    Raises:
        IntegrityError: it belongs to another method.
    """
    try:
        method.load_state_dict(checkpoint.part("model"))
    except RuntimeError as error:
        raise IntegrityError(f"the checkpoint's weights do not fit this method ({error})") from None
