"""Memory of a training step, counted on the real network under fake tensors: no memory is used."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.methods.base import Stage, Trainable, enter_stage
from medsegdiff_cli.methods.registry import find_trainable
from medsegdiff_cli.networks.memory import StepMemory, measure_step

# Activations against resident growth, calibrated once (`make memory` checks it: 1.2 to 1.5 times): oneDNN's scratch
# memory and the allocator's slack are outside of torch's view on the CPU. Weights, gradients and the optimiser's states
# need no scratch; the caching allocator of CUDA follows the count closely.
CPU_FACTOR = 1.4


def measure_training(
    method: str,
    task: Task,
    settings: Mapping[str, Any],
    patch_size: Sequence[int],
    batch_size: int,
    device: torch.device,
) -> int:
    """Return the bytes that one training step of a method needs: activations, weights, gradients, optimiser, EMA."""
    factor = CPU_FACTOR if device.type == "cpu" else 1.0
    as_text = json.dumps(dict(settings), sort_keys=True)  # settings may be nested; a cache's key must be hashable
    memory = _measure(method, task, as_text, tuple(patch_size), batch_size)
    return memory.total_bytes + int((factor - 1) * memory.activations_bytes)


@lru_cache(maxsize=256)
def _measure(name: str, task: Task, settings_text: str, patch_size: tuple[int, ...], batch_size: int) -> StepMemory:
    method_class = find_trainable(name).load()
    settings = validate(method_class.Settings, json.loads(settings_text), f"settings of method '{name}'")

    def measure(index: int) -> StepMemory:
        def build() -> Trainable:
            built = method_class(task, settings)
            enter_stage(built, built.stages[index])
            return built

        def loss(method: Any) -> torch.Tensor:
            stage = method.stages[index]
            noise = NoiseSource([(0, item) for item in range(batch_size)])
            return torch.stack(
                list(method.loss(example_batch(task, patch_size, batch_size, stage), stage, noise).values())
            ).sum()

        return measure_step(build, loss, training=True, ema=True)

    return max(map(measure, range(len(method_class.stages))), key=lambda memory: memory.total_bytes)


def example_batch(task: Task, patch_size: tuple[int, ...], batch_size: int, stage: Stage) -> Batch:
    """Return an all-zero batch of the task as a stage sees it, for counting and timing."""
    image = torch.zeros((batch_size, task.in_channels, *patch_size))
    shape = (batch_size, *patch_size)
    if task.classes_are_exclusive:
        label = torch.zeros(shape, dtype=torch.int64)
    else:
        label = torch.zeros((batch_size, task.n_classes, *patch_size), dtype=torch.uint8)
    return Batch(
        image=image,
        label=None if stage.supervision == "none" else label,
        valid=None,
        case_ids=("",) * batch_size,
        positions=torch.arange(batch_size),
        views=(image,) * (stage.views - 1),
    )
