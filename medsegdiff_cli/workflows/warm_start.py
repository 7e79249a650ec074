"""`--init-from`: what walks start from, checked against the models that refine it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.inference.settings import InferenceSettings
from medsegdiff_cli.paths import PREDICTION_JSON, Workspace
from medsegdiff_cli.prediction.model import LoadedModel, load_models
from medsegdiff_cli.prediction.warm_start import WarmStart
from medsegdiff_cli.preprocessing.transform_settings import transform_settings
from medsegdiff_cli.workflows.models import find_models
from medsegdiff_cli.workflows.sampling import name_of

SettingsOf = Callable[[LoadedModel], InferenceSettings]


def is_predictions(path: Path) -> bool:
    """Tell whether a path is a folder of predictions, and not of a run."""
    return (path / PREDICTION_JSON).is_file()


def find_start(reference: str, workspace: Workspace, dataset: str | None, config: str | None) -> Path:
    """Return what `--init-from` names: a folder of predictions, or a model as `find_models` finds it.

    Raises:
        UsageError: nothing is called so. IntegrityError: a pickle, or an archive of another tool.
    """
    path = Path(reference).expanduser()
    if is_predictions(path):
        return path
    return find_models([reference], workspace, dataset=dataset, config=config)[0]


def require_pair(start_from: Path | None, start_t: int | None) -> None:
    """Refuse one half of a warm start.

    Raises:
        UsageError: one is given without the other.
    """
    if start_t is not None and start_from is None:
        raise UsageError(
            "--start-t needs a segmentation to start from",
            where="--start-t",
            fix="add --init-from PREDICTIONS or --init-from RUN, or leave --start-t out to start from noise",
        )
    if start_from is not None and start_t is None:
        raise UsageError(
            "--init-from needs the timestep to which its segmentation is noised",
            where="--init-from",
            fix="add --start-t T: a small T keeps most of the segmentation, the last one nothing",
        )


def load_start(path: Path, models: Sequence[LoadedModel], settings_of: SettingsOf, device: torch.device) -> WarmStart:
    """Return the start from a folder of predictions, a run or a bundle.

    Args:
        settings_of: the starting models' own inference settings.

    Raises:
        UsageError: its models have other classes or another preprocessing.
        IntegrityError: their weights are damaged.
    """
    if is_predictions(path):
        return WarmStart(folder=path)
    starting = load_models([path], device=device)
    first, other = models[0], starting[0]
    if other.plan.label_scheme() != first.plan.label_scheme():
        raise UsageError(
            f"{name_of(other)} predicts other classes than {name_of(first)}",
            where="--init-from",
            fix="start from a model of the same dataset",
        )
    if transform_settings(other.plan, other.run.config) != transform_settings(first.plan, first.run.config):
        raise UsageError(
            f"{name_of(other)} sees images that were preprocessed in another way than {name_of(first)}'s",
            where="--init-from",
            fix="predict with it into a folder, and name that folder instead",
        )
    return WarmStart(models=starting, inference=settings_of(other))
