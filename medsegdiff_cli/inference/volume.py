"""Prediction of one image on the network's grid: windows x draws x models, fused as they come."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.inference.fusion import Fusion, RunningFusion
from medsegdiff_cli.inference.windows import WindowGrid, pad_to_patch
from medsegdiff_cli.methods.base import Method, Sampling


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """How an image is predicted; everything that changes bytes is here.

    Attributes:
        patch_size: window edges, as many axes as the network has.
        slices: the network is 2D and the image 3D: each slice of the first axis is a window of its own.
        step_size: distance of windows as a share of the patch.
        mirror_axes: axes of the image grid over whose mirrored versions a window's probabilities are averaged.
        draws: repetitions of a stochastic method.
        window_batch: windows per network call; recorded, since other values may change the last bits.
        precision: "float32" or "bfloat16" (autocast).
        seed: first part of each noise stream's key.
        fusion: how members become one label map (see `RunningFusion`).
    """

    patch_size: tuple[int, ...]
    slices: bool = False
    step_size: float = 0.5
    mirror_axes: tuple[int, ...] = ()
    draws: int = 1
    window_batch: int = 1
    precision: str = "float32"
    seed: int = 0
    fusion: Fusion = "mean"
    sampling: Sampling = field(default_factory=Sampling)


def predict_volume(
    methods: Sequence[Method],
    image: Tensor,
    case: str,
    settings: InferenceSettings,
    *,
    keep_variance: bool = False,
    keep_labels: bool = False,
    keep_votes: bool = False,
    on_window: Callable[[int], None] | None = None,
) -> RunningFusion:
    """Predict one preprocessed image.

    Args:
        methods: models whose members are fused with equal weight; all of one task, in eval mode, on one device.
        image: float32 (channel, *grid), on the CPU; windows are moved to the models' device.
        case: part of the noise streams' keys.
        on_window: called with the number of windows done, for progress.

    Returns:
        the fused members; `mean` and `scores` are (class, *grid) on the CPU.
    """
    task = methods[0].task
    fusion = RunningFusion(
        exclusive=task.classes_are_exclusive,
        keep_variance=keep_variance,
        keep_labels=keep_labels,
        rule=settings.fusion,
        keep_votes=keep_votes,
    )
    patch = (1, *settings.patch_size) if settings.slices else settings.patch_size
    padded, inside = pad_to_patch(image, patch)
    grid = WindowGrid(tuple(padded.shape[1:]), patch, settings.step_size)
    with torch.inference_mode():
        for number, method in enumerate(methods):
            for draw in range(settings.draws if method.stochastic else 1):
                for member in _members(method, padded, grid, case, number * settings.draws + draw, settings, on_window):
                    fusion.add(member[(slice(None), *inside)])
    return fusion


def windows_of(shape: Sequence[int], settings: InferenceSettings) -> int:
    """Return how many windows an image grid has (per draw and model), for forecasts."""
    patch = (1, *settings.patch_size) if settings.slices else settings.patch_size
    padded = tuple(max(size, p) for size, p in zip(shape, patch, strict=True))
    return len(WindowGrid(padded, patch, settings.step_size).starts)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the autocast context of a recorded precision."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _members(
    method: Method,
    image: Tensor,
    grid: WindowGrid,
    case: str,
    draw: int,
    settings: InferenceSettings,
    on_window: Callable[[int], None] | None,
) -> Iterator[Tensor]:
    """Yield the stitched members (class, *grid) of one draw of one model."""
    device = next(method.parameters()).device
    weight = grid.weight
    canvas: Tensor | None = None
    for numbers in grid.batches(settings.window_batch):
        windows = torch.stack([image[(slice(None), *grid.slices(grid.starts[n]))] for n in numbers]).to(device)
        noise = NoiseSource([(settings.seed, case, n, draw) for n in numbers], device)
        with autocast(settings.precision, device):
            probabilities = _predict_windows(method, windows, noise, settings).float().cpu()
        if canvas is None:
            canvas = torch.zeros((*probabilities.shape[1:3], *grid.shape))
        for number, window in zip(numbers, probabilities, strict=True):
            canvas[(slice(None), slice(None), *grid.slices(grid.starts[number]))] += window * weight
        if on_window is not None:
            on_window(len(numbers))
    if canvas is None:
        raise RuntimeError("an image without windows")
    canvas /= grid.total_weight
    yield from canvas


def _predict_windows(method: Method, windows: Tensor, noise: NoiseSource, settings: InferenceSettings) -> Tensor:
    """Return (batch, member, class, *patch), averaged over the mirrored versions of each window.

    Mirrored versions share the window's noise stream in a fixed order, so the result depends on nothing else.
    """
    total: Tensor | None = None
    flips = list(_subsets(settings.mirror_axes))
    for axes in flips:
        mirrored = windows.flip([axis + 2 for axis in axes]) if axes else windows
        inputs = mirrored.squeeze(2) if settings.slices else mirrored
        output = method.predict(method.prepare(inputs), noise, settings.sampling)
        output = output.unsqueeze(3) if settings.slices else output
        output = output.flip([axis + 3 for axis in axes]) if axes else output
        total = output if total is None else total + output
    if total is None:
        raise RuntimeError("no version of the window")
    return total / len(flips)


def _subsets(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(axes, size) for size in range(len(axes) + 1))
