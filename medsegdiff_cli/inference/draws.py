"""One draw of one model over a whole image: window by window, or on a canvas that all windows share."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.inference.prepared_windows import PreparedWindows, image_view, network_view
from medsegdiff_cli.inference.settings import InferenceSettings, autocast
from medsegdiff_cli.inference.stitching import Stitcher
from medsegdiff_cli.inference.windows import WindowGrid
from medsegdiff_cli.methods.base import Method
from medsegdiff_cli.methods.iterative import IterativeMethod

OnStep = Callable[[int, Tensor], None]


@dataclass
class WindowedImage:
    """An image in windows, seen by one model.

    Attributes:
        case: part of the noise streams' keys.
        init: segmentation to start walks from, probabilities (class, *grid), or None.
        steps_taken: filled with the number of steps of each walk.
    """

    method: Method
    case: str
    grid: WindowGrid
    settings: InferenceSettings
    prepared: PreparedWindows
    init: Tensor | None = None
    steps_taken: list[int] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return next(self.method.parameters()).device

    @property
    def mirrored_versions(self) -> list[tuple[int, ...]]:
        """Axes of the image grid along which each version is mirrored; the first is the image as it is."""
        return list(_subsets(self.settings.mirror_axes))

    def stitcher(self) -> Stitcher:
        """Return an empty map of the image."""
        return Stitcher(self.grid, self.settings.overlap, self.method.task.classes_are_exclusive)

    def cut(self, canvas: Tensor, numbers: Sequence[int], axes: tuple[int, ...]) -> Tensor:
        """Return windows of a map (class, *grid) as the network sees them, (batch, class, *patch) on its device."""
        windows = [canvas[(slice(None), *self.grid.slices(self.grid.starts[n]))] for n in numbers]
        return network_view(torch.stack(windows), axes, self.settings).to(self.device)

    def noise(self, numbers: Sequence[int], draw: int, version: int) -> NoiseSource:
        """Return one stream a window. Each mirrored version has its own, however much the one before it drew."""
        mirrored = ("mirrored", version) if version else ()
        return NoiseSource([(self.settings.seed, self.case, n, draw, *mirrored) for n in numbers], self.device)


def draw_in_windows(
    image: WindowedImage, draw: int, on_step: OnStep | None = None, on_window: Callable[[int], None] | None = None
) -> Tensor:
    """Predict each window by itself, an iterative method by its whole walk (Fu et al. 2023), and stitch them.

    Args:
        on_step: called with timestep and stitched estimate (class, *grid) of each step; for iterative methods.
        on_window: called with the number of windows done.

    Returns:
        members (member, class, *grid), averaged over the mirrored versions of each window.
    """
    stitcher, versions = image.stitcher(), image.mirrored_versions
    for numbers in image.grid.batches(image.settings.window_batch):
        total: Tensor | None = None
        for version, axes in enumerate(versions):
            noise = image.noise(numbers, draw, version)
            with autocast(image.settings.precision, image.device):
                maps = _predicted(image, numbers, axes, noise, every_step=on_step is not None)
            maps = image_view(maps, axes, image.settings)
            total = maps if total is None else total + maps
        if total is None:
            raise RuntimeError("no version of the window")
        stitcher.add(numbers, total / len(versions))
        if on_window is not None:
            on_window(len(numbers))
    maps = stitcher.result()
    if on_step is None or not isinstance(image.method, IterativeMethod):
        return maps
    for t, estimate in zip(image.method.walk(image.settings.sampling).grid, maps, strict=True):
        on_step(t, estimate)
    return maps[-1:].clone()


def _predicted(
    image: WindowedImage, numbers: range, axes: tuple[int, ...], noise: NoiseSource, *, every_step: bool
) -> Tensor:
    """Return (batch, member, class, *patch); with `every_step`, each step of an iterative method in a member's place.

    A walk that ended early stands still for the steps that it did not take.
    """
    prepared, method, sampling = image.prepared.get(numbers, axes), image.method, image.settings.sampling
    if not isinstance(method, IterativeMethod):
        return method.predict(prepared, noise, sampling)
    init = None if image.init is None else image.cut(image.init, numbers, axes)
    estimates: list[Tensor] = []
    taken = torch.zeros(len(numbers), dtype=torch.int64)
    for step in method.steps(prepared, noise, sampling, init):
        taken += ~step.settled.cpu()
        estimates = [*estimates, step.probabilities] if every_step else [step.probabilities]
    image.steps_taken.extend(taken.tolist())
    if every_step:
        estimates += estimates[-1:] * (len(method.walk(sampling).grid) - len(estimates))
    return torch.stack(estimates, 1)


def draw_on_shared_canvas(
    image: WindowedImage, draw: int, on_step: OnStep | None = None, on_window: Callable[[int], None] | None = None
) -> Tensor:
    """Walk down once for the whole image: at each step the windows' estimates are averaged into one.

    Neighbouring windows then refine the same segmentation, where walks of their own may disagree at the seams. State
    and noise lie on the CPU, so that an image may be larger than the device's memory.

    Returns:
        one member (1, class, *grid).

    Raises:
        TypeError: the method is not iterative.
    """
    method, settings = image.method, image.settings
    if not isinstance(method, IterativeMethod):
        raise TypeError(f"{type(method).__name__} has no state that windows could share")
    iterative, versions = method, image.mirrored_versions

    def estimate(x_t: Tensor, t: int, before: Tensor | None) -> Tensor:
        stitcher = image.stitcher()
        for numbers in image.grid.batches(settings.window_batch):
            total: Tensor | None = None
            for axes in versions:
                state = image.cut(x_t[0], numbers, axes)
                told = None if before is None else image.cut(before[0], numbers, axes)
                with autocast(settings.precision, image.device):
                    found = iterative.denoise(image.prepared.get(numbers, axes), state, t, told)
                found = image_view(found[:, None], axes, settings)
                total = found if total is None else total + found
            if total is None:
                raise RuntimeError("no version of the window")
            stitcher.add(numbers, total / len(versions))
        return stitcher.result()

    noise = NoiseSource([(settings.seed, image.case, "canvas", draw)])
    init = None if image.init is None else image.init[None]
    taken, last = 0, torch.empty(0)
    for step in iterative.descend(estimate, image.grid.shape, noise, settings.sampling, init):
        taken, last = taken + 1, step.probabilities
        if on_step is not None:
            on_step(step.t, last[0].clone())
    image.steps_taken.append(taken)
    if on_step is not None:
        for t in iterative.walk(settings.sampling).grid[taken:]:
            on_step(t, last[0].clone())
    if on_window is not None:
        on_window(len(image.grid.starts))
    return last


def _subsets(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(axes, size) for size in range(len(axes) + 1))
