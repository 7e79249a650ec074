"""Prediction of one image on the network's grid: windows x draws x models, fused as they come."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medsegdiff_cli.inference.draws import OnStep, WindowedImage, draw_in_windows, draw_on_shared_canvas
from medsegdiff_cli.inference.fusion import RunningFusion
from medsegdiff_cli.inference.prepared_windows import PreparedWindows
from medsegdiff_cli.inference.settings import InferenceSettings, autocast
from medsegdiff_cli.inference.windows import WindowGrid, pad_to_patch
from medsegdiff_cli.methods.base import Method

__all__ = ["InferenceSettings", "StepRecord", "autocast", "predict_volume", "windows_of"]


@dataclass
class StepRecord:
    """What the walks of iterative methods did, filled by `predict_volume`.

    Attributes:
        keep_steps: fuse the members' estimates of each step as well; that keeps their mean once a step (and while an
            image is predicted window by window, the present draw's estimates once more).
        keep_labels: keep the members' label maps of each step.
        fusions: timestep to the fused estimates, from noisy to clean.
        steps_taken: steps of each walk: of each draw, and each window and mirrored version unless they share a canvas.
    """

    keep_steps: bool = False
    keep_labels: bool = False
    fusions: dict[int, RunningFusion] = field(default_factory=dict)
    steps_taken: list[int] = field(default_factory=list)

    @property
    def mean_steps_taken(self) -> float | None:
        """Mean over the walks; None without any."""
        return sum(self.steps_taken) / len(self.steps_taken) if self.steps_taken else None


def predict_volume(
    methods: Sequence[Method],
    image: Tensor,
    case: str,
    settings: InferenceSettings,
    *,
    keep_variance: bool = False,
    keep_labels: bool = False,
    keep_votes: bool = False,
    init: Tensor | None = None,
    record: StepRecord | None = None,
    on_window: Callable[[int], None] | None = None,
) -> RunningFusion:
    """Predict one preprocessed image.

    Args:
        methods: models whose members are fused with equal weight; all of one task, in eval mode, on one device.
        image: float32 (channel, *grid), on the CPU; windows are moved to the models' device.
        case: part of the noise streams' keys.
        init: segmentation that the walks of iterative methods start from, probabilities (class, *grid) on the CPU.
        record: filled with what walks did; it can be used once.
        on_window: called with the number of windows done, for progress.

    Returns:
        the fused members; `mean` and `scores` are (class, *grid) on the CPU.
    """
    exclusive = methods[0].task.classes_are_exclusive

    def new_fusion(*, variance: bool, labels: bool, votes: bool) -> RunningFusion:
        return RunningFusion(
            exclusive=exclusive, keep_variance=variance, keep_labels=labels, rule=settings.fusion, keep_votes=votes
        )

    padded, inside = pad_to_patch(image, settings.window)
    place = (slice(None), *inside)

    def on_step(t: int, estimate: Tensor) -> None:
        if record is not None:
            if t not in record.fusions:
                record.fusions[t] = new_fusion(variance=False, labels=record.keep_labels, votes=False)
            record.fusions[t].add(estimate[place])

    fusion = new_fusion(variance=keep_variance, labels=keep_labels, votes=keep_votes)
    grid = WindowGrid(tuple(padded.shape[1:]), settings.window, settings.step_size, settings.window_weights)
    start = None if init is None else _padded_segmentation(init, settings.window, exclusive)
    with torch.inference_mode():
        for number, method in enumerate(methods):
            draws = settings.draws if method.stochastic else 1
            is_shared = settings.canvas == "shared"
            draw_all = draw_on_shared_canvas if is_shared else draw_in_windows
            told: OnStep | None = on_step if record is not None and record.keep_steps else None
            with closing(PreparedWindows(method, padded, grid, settings, keep=is_shared or draws > 1)) as prepared:
                windowed = WindowedImage(method, case, grid, settings, prepared, start)
                for draw in range(draws):
                    # Models do not share noise.
                    _add(draw_all(windowed, number * settings.draws + draw, told, on_window), place, fusion)
            if record is not None:
                record.steps_taken += windowed.steps_taken
    return fusion


def _add(members: Tensor, place: tuple[slice, ...], fusion: RunningFusion) -> None:
    """Fuse a draw's members; nothing of them is held when the next draw makes its own."""
    for member in members:
        fusion.add(member[place])


def windows_of(shape: Sequence[int], settings: InferenceSettings) -> int:
    """Return how many windows an image grid has (per draw and model), for forecasts."""
    padded = tuple(max(size, p) for size, p in zip(shape, settings.window, strict=True))
    return len(WindowGrid(padded, settings.window, settings.step_size).starts)


def _padded_segmentation(init: Tensor, window: Sequence[int], exclusive: bool) -> Tensor:
    """Pad a segmentation like its image; there is background around it."""
    padded, inside = pad_to_patch(init, window)
    if exclusive:
        background = torch.ones(padded.shape[1:])
        background[inside] = padded[0][inside]
        padded[0] = background
    return padded
