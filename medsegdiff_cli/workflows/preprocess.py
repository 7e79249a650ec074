"""`msd preprocess`: the store of one configuration, for all training and unlabelled images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder, open_dataset
from medsegdiff_cli.artifacts.fingerprint import read_fingerprint
from medsegdiff_cli.artifacts.plan import Plan, read_plan
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.paths import FINGERPRINT_JSON, PLANS_NAME, Workspace, find_dataset
from medsegdiff_cli.planning.memory import format_bytes
from medsegdiff_cli.preprocessing.store import PreprocessReport, forecast_store_bytes, preprocess
from medsegdiff_cli.workflows.plan import PlanRequest, plan_dataset


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

    Returns:
        the store's folder and what happened to each case.
    """
    dataset, plan = _dataset_and_plan(request)
    config, _ = plan.configuration(request.config)
    folder = request.workspace.store_folder(dataset.name, plan.plans_name, config)
    report = preprocess(dataset, plan, config, PreprocessedStore(folder), workers=request.workers, progress=progress)
    return folder, report


def forecast_preprocess(request: PreprocessRequest) -> dict[str, str]:
    """Return what the store will take, in words."""
    dataset, plan = _dataset_and_plan(request)
    config, _ = plan.configuration(request.config)
    fingerprint = read_fingerprint(request.workspace.preprocessed / dataset.name / FINGERPRINT_JSON)
    return {
        "configuration": config,
        "cases": str(len(fingerprint.cases)),
        "disk": format_bytes(forecast_store_bytes(fingerprint, plan, config)),
    }


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
