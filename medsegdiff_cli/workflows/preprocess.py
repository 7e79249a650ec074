"""`msd preprocess`: the store of one configuration, for all training and unlabelled images."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder, open_dataset
from medsegdiff_cli.artifacts.fingerprint import read_fingerprint
from medsegdiff_cli.artifacts.plan import Plan, read_plan
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.imaging.channels import read_channels
from medsegdiff_cli.imaging.reading import read_label
from medsegdiff_cli.imaging.transform import forward
from medsegdiff_cli.paths import FINGERPRINT_JSON, PLANS_NAME, Workspace, find_dataset
from medsegdiff_cli.planning.memory import format_bytes
from medsegdiff_cli.preprocessing.store import PreprocessReport, forecast_store_bytes, preprocess
from medsegdiff_cli.preprocessing.transform_settings import transform_settings
from medsegdiff_cli.workflows.forecast import duration_in_words
from medsegdiff_cli.workflows.plan import PlanRequest, plan_dataset
from medsegdiff_cli.workflows.preflight import require_store_space

# An estimate: the file's own type, float32 twice while it is resampled, and the label.
_BYTES_A_VOXEL = 16


@dataclass(frozen=True, kw_only=True)
class PreprocessRequest:
    """What `msd preprocess` was asked for."""

    dataset: str
    workspace: Workspace
    config: str | None = None
    plans_name: str = PLANS_NAME
    workers: int = 0


def run_preprocess(
    request: PreprocessRequest, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, PreprocessReport]:
    """Fill the store, planning first when there is no plan.

    Raises:
        ResourceError: the disk is too full, or cannot be written. UsageError: another process fills the store.

    Returns:
        the store's folder and what happened to each case.
    """
    dataset, plan = _dataset_and_plan(request)
    config, _ = plan.configuration(request.config)
    folder = request.workspace.store_folder(dataset.name, plan.plans_name, config)
    fingerprint = request.workspace.preprocessed / dataset.name / FINGERPRINT_JSON
    if fingerprint.is_file():
        require_store_space(folder, read_fingerprint(fingerprint), plan, config)
    report = preprocess(dataset, plan, config, PreprocessedStore(folder), workers=request.workers, progress=progress)
    return folder, report


def forecast_preprocess(request: PreprocessRequest) -> dict[str, str]:
    """Return what filling the store anew would take, in words; one case of middling size is timed, nothing written."""
    dataset, plan = _dataset_and_plan(request)
    config, _ = plan.configuration(request.config)
    fingerprint = read_fingerprint(request.workspace.preprocessed / dataset.name / FINGERPRINT_JSON)
    by_size = sorted(fingerprint.cases, key=lambda case: math.prod(case.shape_voxels) * case.n_channels)
    seconds = _seconds_of_a_case(dataset, plan, config, by_size[len(by_size) // 2].case)
    processes = max(request.workers, 1)
    largest = math.prod(by_size[-1].shape_voxels) * by_size[-1].n_channels
    return {
        "configuration": config,
        "cases": str(len(fingerprint.cases)),
        "time": f"{duration_in_words(seconds * len(by_size) / processes)} ({processes} processes, one case timed)",
        "memory": f"about {format_bytes(_BYTES_A_VOXEL * largest * processes)} for the largest cases",
        "disk": format_bytes(forecast_store_bytes(fingerprint, plan, config)),
        "network forwards": "0",
    }


def _seconds_of_a_case(dataset: DatasetFolder, plan: Plan, config: str, case: str) -> float:
    files = next(files for part in ("Tr", "Un") for files in dataset.cases(part) if files.case == case)
    started = time.perf_counter()
    image = read_channels(files.images, len(plan.channels))
    mask = None if files.mask is None else read_label(files.mask).array[0] > 0
    forward(image, transform_settings(plan, config), mask=mask)
    return time.perf_counter() - started


def _dataset_and_plan(request: PreprocessRequest) -> tuple[DatasetFolder, Plan]:
    dataset = open_dataset(find_dataset(request.dataset, request.workspace))
    path = request.workspace.plans_file(dataset.name, request.plans_name)
    if not path.is_file():
        plan_dataset(
            PlanRequest(
                dataset=request.dataset,
                workspace=request.workspace,
                plans_name=request.plans_name,
                workers=request.workers,
            )
        )
    return dataset, read_plan(path)
