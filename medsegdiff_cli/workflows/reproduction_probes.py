"""Probes: what an iterative method does on the way to its predictions, scored on test images.

They see the network's grid, where the phantoms' images lie unchanged; noise has the keys of prediction, so that a
walk ends with the prediction of the same draw.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import read_json
from medsegdiff_cli.artifacts.experiment_arms import LeakProbe, WalkProbe
from medsegdiff_cli.diffusion.gaussian import q_sample
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.channels import read_channels
from medsegdiff_cli.imaging.reading import case_name_of, read_label
from medsegdiff_cli.imaging.transform import forward
from medsegdiff_cli.inference.settings import autocast
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.methods.mask_diffusion import MaskDiffusion
from medsegdiff_cli.metrics.overlap import overlap_of_masks
from medsegdiff_cli.prediction.model import LoadedModel, load_models
from medsegdiff_cli.preprocessing.transform_settings import transform_settings

_BATCH = 25
_WINDOW = 0  # the number of an image's only window

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class _Images:
    """Some test images.

    Attributes:
        image: float32 (batch, channel, *spatial).
        truth: bool (batch, *spatial).
    """

    names: tuple[str, ...]
    image: Tensor
    truth: np.ndarray


def probe_scores(
    probe: WalkProbe | LeakProbe,
    run: Path,
    *,
    images: Path,
    labels: Path,
    output: Path,
    sampling: Sampling,
    seed: int,
    device: torch.device,
) -> Scores:
    """Return test image to metric to value (a share of 1) and write it to `output`, or read what is there.

    Args:
        run: trained fold; of another model, the scores are made again.
        images, labels: folders with the same file names; a label is 1 in the one class.

    Raises:
        UsageError: the run's method does not diffuse masks of one class.
        InputDataError: the images do not have the size of the network's window.
    """
    model = load_models((run,), device=device)[0]
    made_of = {"model": model.digest, "probe": probe.model_dump(mode="json"), "sampling": str(sampling), "seed": seed}
    if output.is_file() and (found := read_json(output))["made_of"] == made_of:
        return {name: dict(values) for name, values in found["scores"].items()}
    method = model.method
    if not isinstance(method, MaskDiffusion) or method.task.n_classes != 2:
        raise UsageError(f"'{model.run.method}' does not diffuse masks of one class", where="probe")
    scores: Scores = {}
    with torch.inference_mode(), autocast(model.run.precision, device):
        for batch in _batches(model, images, labels):
            if isinstance(probe, WalkProbe):
                scores |= _walk(method, batch, probe, sampling, seed, device)
            else:
                scores |= _leak(method, batch, probe, seed, device)
    atomic.write_json(output, {"made_of": made_of, "scores": scores})
    return scores


def shifted_inwards(truth: np.ndarray, by: int) -> np.ndarray:
    """Return masks (batch, y, x) moved by so many voxels along y, each towards the middle: none leaves its image."""
    shifted = np.zeros_like(truth)
    for mask, moved in zip(truth, shifted, strict=True):
        rows = np.flatnonzero(mask.any(axis=1))
        is_above = rows.size and rows.mean() < (len(mask) - 1) / 2
        if is_above:
            moved[by:] = mask[:-by]
        else:
            moved[:-by] = mask[by:]
    return shifted


def _walk(
    method: MaskDiffusion, batch: _Images, probe: WalkProbe, sampling: Sampling, seed: int, device: torch.device
) -> Scores:
    prepared = method.prepare(batch.image.to(device))
    of_draws = []
    for draw in range(probe.draws):
        noise = NoiseSource([(seed, name, _WINDOW, draw) for name in batch.names], device)
        steps = method.steps(prepared, noise, sampling)
        of_draws.append([_dice(step.probabilities, batch.truth) for step in steps])
    dice = np.array(of_draws)  # (draw, step, image)
    mean, spread = dice.mean(axis=0), np.ptp(dice, axis=0)
    return {
        name: {
            metric(step + 1): float(values[step, item])
            for metric, values in ((probe.dice_at, mean), (probe.range_at, spread))
            for step in range(len(values))
        }
        for item, name in enumerate(batch.names)
    }


def _leak(method: MaskDiffusion, batch: _Images, probe: LeakProbe, seed: int, device: torch.device) -> Scores:
    prepared = method.prepare(batch.image.to(device))
    fed = shifted_inwards(batch.truth, probe.shift_voxels)
    one_hot = torch.from_numpy(np.stack([~fed, fed], axis=1)).to(device)
    x_0 = 2 * one_hot.float() - 1
    scores: Scores = {name: {} for name in batch.names}
    for t in probe.timesteps:
        noise = NoiseSource([(seed, name, probe.name, t) for name in batch.names], device)
        at = torch.full((len(x_0),), t, device=device)
        x_t = q_sample(x_0, at, noise.randn(*x_0.shape[1:]), method.schedule)
        estimate = method.denoise(prepared, x_t, t, None)
        for metric, reference in ((probe.to_fed(t), fed), (probe.to_truth(t), batch.truth)):
            for name, value in zip(batch.names, _dice(estimate, reference), strict=True):
                scores[name][metric] = value
    return scores


def _dice(probabilities: Tensor, reference: np.ndarray) -> list[float]:
    """Return Dice per item of estimates (batch, class, *spatial) and masks (batch, *spatial)."""
    found = probabilities.argmax(1).cpu().numpy() == 1
    return [overlap_of_masks(one, truth).dice for one, truth in zip(found, reference, strict=True)]


def _batches(model: LoadedModel, images: Path, labels: Path) -> Iterator[_Images]:
    files: Sequence[Path] = sorted(images.iterdir())
    transform = transform_settings(model.plan, model.run.config)
    for first in range(0, len(files), _BATCH):
        chosen, arrays, masks = files[first : first + _BATCH], [], []
        for file in chosen:
            image = read_channels((file,), n_channels=len(model.plan.channels))
            native = read_label(labels / file.name).array[0]
            transformed = forward(image, transform, label=native)
            assert transformed.label is not None
            if transformed.label.shape != native.shape or transformed.label.shape != model.recipe.patch_size_voxels:
                raise InputDataError(
                    f"{native.shape} pixels, the network's window has {model.recipe.patch_size_voxels}", where=str(file)
                )
            arrays.append(np.asarray(transformed.image, dtype=np.float32))
            masks.append(transformed.label == 1)
        names = tuple(case_name_of(file) for file in chosen)
        yield _Images(names, torch.from_numpy(np.stack(arrays)), np.stack(masks))
