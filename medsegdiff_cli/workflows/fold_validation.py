"""Validation of a fold: quick scores during training, and the ordinary predictor and scores at its end."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from medsegdiff_cli.artifacts.dataset_folder import CaseFiles
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.artifacts.recipe import ResolvedRecipe, ValidationMetric
from medsegdiff_cli.artifacts.scores import Scores
from medsegdiff_cli.inference.fusion import label_map
from medsegdiff_cli.inference.volume import InferenceSettings, predict_volume
from medsegdiff_cli.methods.base import Method, Sampling
from medsegdiff_cli.metrics.overlap import Overlap, overlap_of_masks
from medsegdiff_cli.paths import VALIDATION
from medsegdiff_cli.prediction.case_steps import PredictionJob
from medsegdiff_cli.prediction.inputs import InputCase
from medsegdiff_cli.prediction.model import load_models
from medsegdiff_cli.prediction.predictor import predict_cases
from medsegdiff_cli.prediction.settings import OutputSettings
from medsegdiff_cli.prediction.volumes import write_volumes
from medsegdiff_cli.preprocessing.case import uses_mask
from medsegdiff_cli.preprocessing.transform_settings import transform_settings
from medsegdiff_cli.training.outcome import ValidationScore
from medsegdiff_cli.workflows.evaluate import EvaluateRequest, evaluate_predictions
from medsegdiff_cli.workflows.predict import inference_settings
from medsegdiff_cli.workflows.prediction_info import write_info
from medsegdiff_cli.workflows.provenance import command_line
from medsegdiff_cli.workflows.run_setup import RunSetup

BACKGROUND = "background"


def quick_validator(setup: RunSetup, store: PreprocessedStore) -> Callable[[Method], ValidationScore]:
    """Return the function that scores a method while it trains: its `validation_metric` on the network's grid.

    At most `training.validation_cases` cases are *predicted*, through the same windows as `msd predict`, with the
    model's own sampler and again with each other one of `training.validation_samplers`.
    """
    cases = spread(setup.record.val_cases, setup.recipe.training.validation_cases)
    scheme = setup.plan.label_scheme()
    settings = InferenceSettings(
        patch_size=setup.recipe.patch_size_voxels,
        slices=setup.slices,
        step_size=setup.recipe.prediction.step_size,
        precision=setup.record.precision,
        seed=setup.record.seed,
        fusion=setup.recipe.prediction.fusion,
        overlap=setup.recipe.prediction.overlap,
        window_weights=setup.recipe.prediction.window_weights,
    )

    def score(method: Method, settings: InferenceSettings) -> tuple[float, dict[str, float]]:
        overlaps = []
        for case in cases:
            stored = store.read(case)
            image = torch.from_numpy(np.array(stored.image, dtype=np.float32))
            predicted = label_map(predict_volume([method], image, case, settings).scores, scheme.classes_are_exclusive)
            overlaps.append(grid_overlaps(predicted.numpy(), np.asarray(stored.label), scheme))
        return mean_score(overlaps, setup.recipe.training.validation_metric)

    def validate(method: Method) -> ValidationScore:
        value, details = score(method, settings)
        with_sampler = {
            name: replace(settings, sampling=Sampling(sampler=name)) for name in other_samplers(setup.recipe)
        }
        others = {name: score(method, chosen)[0] for name, chosen in with_sampler.items()}
        return ValidationScore(value=value, cases=len(cases), details=details, others=others)

    return validate


def other_samplers(recipe: ResolvedRecipe) -> tuple[str, ...]:
    """Return the samplers to validate with beside the model's own, in order, each once."""
    own = recipe.method_settings.get("sampler")
    return tuple(dict.fromkeys(name for name in recipe.training.validation_samplers if name != own))


def mean_score(overlaps: Sequence[Mapping[str, Overlap]], metric: ValidationMetric) -> tuple[float, dict[str, float]]:
    """Return the mean over classes, and the value of each class that has one; NaN when none has.

    Args:
        overlaps: what `grid_overlaps` returned, a case each.
        metric: `dice` and `iou` are means over the cases that have the class, without background; `dataset_iou` is of
            the counts of all cases together, background among the classes.
    """
    names = dict.fromkeys(name for case in overlaps for name in case)
    values: dict[str, float] = {}
    for name in names:
        if metric == "dataset_iou":
            found = [sum((case[name] for case in overlaps), Overlap(tp=0, fp=0, fn=0, tn=0)).iou]
        else:
            found = [getattr(case[name], metric) for case in overlaps] if name != BACKGROUND else []
        if defined := [value for value in found if not math.isnan(value)]:
            values[name] = sum(defined) / len(defined)
    return (sum(values.values()) / len(values) if values else math.nan), values


def grid_overlaps(predicted: np.ndarray, label: np.ndarray, scheme: LabelScheme) -> dict[str, Overlap]:
    """Return the overlap of the background, which is what belongs to no class, and of each foreground class.

    Args:
        predicted: (*grid) class indices, or for regions a bit code (see `inference.fusion.label_map`).
        label: (*grid) inner indices.
    """
    ignore = label == scheme.ignore_index if scheme.ignore_value is not None else None
    overlaps: dict[str, Overlap] = {}
    anything = (np.zeros(label.shape, dtype=bool), np.zeros(label.shape, dtype=bool))
    for index, name in enumerate(scheme.foreground_names):
        if scheme.regions is None:
            pair = (predicted == index + 1, label == index + 1)
        else:
            pair = ((predicted >> index) & 1 == 1, np.isin(label, scheme.regions[index]))
        overlaps[name] = overlap_of_masks(*pair, ignore)
        for union, mask in zip(anything, pair, strict=True):
            union |= mask
    return {BACKGROUND: overlap_of_masks(~anything[0], ~anything[1], ignore), **overlaps}


def validate_fold(setup: RunSetup) -> Scores:
    """Predict the fold's validation cases into `fold_K/validation/` and score them on the native grid."""
    cases = {case.case: case for case in setup.dataset.cases("Tr")}
    (model,) = load_models([setup.folder], device=setup.request.device)
    transform = transform_settings(setup.plan, setup.record.config)
    job = PredictionJob(
        models=[model],
        output=setup.folder / VALIDATION,
        transform=transform,
        inference=inference_settings(model),
        wanted=OutputSettings(postprocessing=model.recipe.prediction.postprocessing),
        masks=_mask_folder(cases) if uses_mask(transform) else None,
        ending=setup.plan.file_ending,
        overwrite=True,
        workers=1,
        command=command_line(),
    )
    write_info(job)
    inputs = [InputCase(case=name, images=cases[name].images) for name in setup.record.val_cases]
    predict_cases(job, inputs)
    write_volumes(job.output)
    request = EvaluateRequest(
        predictions=job.output, reference=setup.dataset.path, cases=setup.record.val_cases, workers=0
    )
    return evaluate_predictions(request)


def spread(cases: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Return at most `count` cases, evenly spread over the list."""
    if len(cases) <= count:
        return cases
    return tuple(cases[int(index * len(cases) / count)] for index in range(count))


def _mask_folder(cases: Mapping[str, CaseFiles]) -> Path | None:
    masks = [case.mask for case in cases.values() if case.mask is not None]
    return masks[0].parent if masks else None
