"""`msd plan`: fingerprint, plan and folds of a dataset; and what a method would make of them."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, DatasetFolder, open_dataset
from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.fingerprint import Fingerprint
from medsegdiff_cli.artifacts.plan import Plan, Scale, changed_keys, read_plan, write_plan
from medsegdiff_cli.artifacts.run import find_folds
from medsegdiff_cli.artifacts.splits import write_splits
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.checking.listing import check_listing
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.fingerprinting.extract import extract_fingerprint
from medsegdiff_cli.locks import locked
from medsegdiff_cli.methods.registry import find_method, find_trainable
from medsegdiff_cli.paths import FINGERPRINT_JSON, LOCK, PLANS_NAME, RUN_PLAN, SPLITS_JSON, Workspace, find_dataset
from medsegdiff_cli.planning.advice import DataCounts, advise
from medsegdiff_cli.planning.memory import default_memory_bytes, default_scale, parse_bytes
from medsegdiff_cli.planning.nnunet_rules import Cost
from medsegdiff_cli.planning.overrides import PlanOverrides
from medsegdiff_cli.planning.planner import make_plan, measured_cost
from medsegdiff_cli.planning.resolve import fit_strides
from medsegdiff_cli.planning.splits import explain_splits, splits_of
from medsegdiff_cli.workflows.memory_forecast import measure_training
from medsegdiff_cli.workflows.method_settings import known_to, transitions_of, with_scale
from medsegdiff_cli.workflows.models import find_models
from medsegdiff_cli.workflows.recipes import RecipeChoice, load_recipe, planned_by, sections_of

log = logging.getLogger(__name__)

BASELINE = "supervised"


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What `msd plan` was asked for.

    Attributes:
        plans_name: None takes `plans`, or the name of a recipe's own plan (see `plans_name_of`).
        method: patches are fitted to this method's network; None takes the baseline's.
        memory: for example "8G"; None takes the GPU's, else half of the RAM.
        like: plan whose geometry is taken over.
        overrides: content of `planning.overrides.PlanOverrides`.
    """

    dataset: str
    workspace: Workspace
    plans_name: str | None = None
    method: str | None = None
    preset: str = "recommended"
    memory: str | None = None
    like: Plan | None = None
    workers: int = 0
    overwrite: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """The plan and where it was written."""

    path: Path
    plan: Plan

    def to_json(self) -> dict[str, Any]:
        """Return plain data with a version."""
        return {"schema_version": 1, "path": str(self.path), "plan": self.plan.model_dump(mode="json")}


def plan_dataset(request: PlanRequest, progress: Callable[[int, int], None] | None = None) -> PlanReport:
    """Measure and plan a dataset, and write fingerprint, plan and folds.

    Raises:
        UsageError: the plan exists with other content (it may have been edited) and `overwrite` is not set.
        InputDataError: images that cannot be used, all listed.
        ResourceError: the plan's folder cannot be written.
    """
    dataset = open_dataset(find_dataset(request.dataset, request.workspace))
    _refuse_doubles(dataset)
    folder = request.workspace.preprocessed / dataset.name
    # Trainings that are started together plan together: the second waits, and finds everything measured.
    with locked(folder / LOCK, wait=True):
        return _plan(request, dataset, folder, progress)


def _plan(
    request: PlanRequest, dataset: DatasetFolder, folder: Path, progress: Callable[[int, int], None] | None
) -> PlanReport:
    fingerprint = extract_fingerprint(dataset, folder / FINGERPRINT_JSON, workers=request.workers, progress=progress)
    _warn_of_absent_classes(fingerprint)
    find_method(request.method or BASELINE)
    choice = planned_by(request.method or BASELINE, None, request.preset)
    method, recipe_section = choice.method, choice.sections()["plan"] if request.method else {}
    plans_name = request.plans_name or (plans_name_of(choice) if request.method else PLANS_NAME)
    overrides = validate(PlanOverrides, {"plans_name": plans_name, **recipe_section, **request.overrides}, "msd plan")
    scale = overrides.default_scale or default_scale()[0]
    memory, source = (parse_bytes(request.memory), "as asked for") if request.memory else default_memory_bytes()
    plan = make_plan(
        fingerprint,
        dataset.info,
        memory_bytes=memory,
        memory_source=source,
        cost_of=lambda n_dims: network_cost(method, dataset, n_dims, memory, scale),
        overrides=overrides,
        like=request.like,
        supported_dims=find_trainable(method).n_dims,
    )
    path = request.workspace.plans_file(dataset.name, plans_name)
    reasons = (*plan.explanation, *_write_splits(dataset, folder), *advise(count_data(dataset, plan), dataset.name))
    plan = plan.model_copy(update={"explanation": reasons})
    _refuse_other_plan(path, plan, request.overwrite)
    write_plan(path, plan)
    return PlanReport(path=path, plan=plan)


def plans_name_of(choice: RecipeChoice) -> str:
    """Return the name of the plan that a training uses by default: a recipe with its own geometry has its own plan."""
    return f"{PLANS_NAME}_{choice.recipe}_{choice.preset}" if choice.sections()["plan"] else PLANS_NAME


def network_cost(method: str, dataset: DatasetFolder, n_dims: int, memory_bytes: int, scale: Scale) -> Cost:
    """Return the measured cost of the network that a method trains at the plan's default scale."""
    settings = with_scale(method, sections_of(method, load_recipe(method), "recommended")["method"], scale, n_dims)
    scheme = dataset.label_scheme()
    task = Task(
        n_dims=n_dims,
        in_channels=len(dataset.info.channel_names),
        class_names=scheme.class_names,
        classes_are_exclusive=scheme.classes_are_exclusive,
        ignore=scheme.ignore_value is not None,
    )
    transitions = transitions_of(method, settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def measure(patch: tuple[int, ...], batch: int, strides: tuple[tuple[int, ...], ...]) -> int:
        fitted = known_to(method, {"strides": fit_strides(strides, transitions, n_dims)})
        return measure_training(method, task, {**settings, **fitted}, patch, batch, device)

    return measured_cost(measure, memory_bytes)


def _refuse_doubles(dataset: DatasetFolder) -> None:
    """A case under two file endings would be read from one of them, and nobody would know which."""
    doubles = [problem for problem in check_listing(dataset) if problem.code == "duplicate-case"]
    if doubles:
        listed = "; ".join(f"{problem.case}: {problem.message}" for problem in doubles[:5])
        raise InputDataError(
            f"{len(doubles)} cases are there twice ({listed})", where=str(dataset.path), fix="keep one file of each"
        )


def _warn_of_absent_classes(fingerprint: Fingerprint) -> None:
    counted = [case.class_voxels for case in fingerprint.cases if case.class_voxels]
    absent = [name for name in (counted[0] if counted else ()) if not any(voxels[name] for voxels in counted)]
    if absent:
        log.warning(
            "no training label holds %s: it cannot be learnt (`msd check` calls it an error)", ", ".join(absent)
        )


def _write_splits(dataset: DatasetFolder, folder: Path) -> tuple[str, ...]:
    """Write the folds beside the plan, keeping what the user put there; return sentences about them."""
    groups = {case.case: case.group for case in dataset.cases("Tr") if case.label is not None}
    if not groups:
        return ("No labelled case: there is nothing to train on yet.",)
    splits = splits_of(dataset, folder)
    write_splits(folder / SPLITS_JSON, splits)
    return explain_splits(splits, groups)


def count_data(dataset: DatasetFolder, plan: Plan) -> DataCounts:
    """Return what the choice of a method depends on."""
    labelled = [case for case in dataset.cases("Tr") if case.label is not None]
    unlabelled = dataset.cases("Un")

    def domains(cases: Iterable[CaseFiles]) -> frozenset[str]:
        return frozenset(case.domain for case in cases if case.domain)

    return DataCounts(
        labelled_groups=len({case.group for case in labelled}),
        unlabelled=len(unlabelled),
        n_dims=plan.n_dims_of_images,
        labelled_domains=domains(labelled),
        unlabelled_domains=domains(unlabelled),
        test_domains=domains(dataset.cases("Ts")),
    )


def find_plan_to_copy(reference: str | None, workspace: Workspace) -> Plan | None:
    """Return the plan that `--like` names: a plan file, or a run's.

    Raises:
        UsageError: no such plan or run.
    """
    if reference is None:
        return None
    if Path(reference).suffix in (".yaml", ".yml"):
        return read_plan(Path(reference))
    (run,) = find_models([reference], workspace)
    return read_plan(find_folds(run)[0] / RUN_PLAN)


def _refuse_other_plan(path: Path, plan: Plan, overwrite: bool) -> None:
    if not path.is_file() or overwrite:
        return
    changed = changed_keys(read_plan(path), plan)
    if changed:
        raise UsageError(
            f"a plan exists that differs in {', '.join(changed[:8])}",
            where=str(path),
            fix="keep it (train uses it), or pass --overwrite, or give this one a name with --plans-name",
        )
