"""`msd check`: a dataset with its folds, a mended copy of it, or new images for a model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder, open_dataset
from medsegdiff_cli.artifacts.splits import Splits
from medsegdiff_cli.checking.check import check_dataset
from medsegdiff_cli.checking.mending import Change, mend_dataset
from medsegdiff_cli.checking.new_images import ModelNeeds, NewCase, check_new_images
from medsegdiff_cli.checking.problem import CheckReport, Problem
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.paths import Workspace, find_dataset
from medsegdiff_cli.planning.splits import splits_of

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Mended:
    """A mended copy: what was changed, and what is still wrong with it."""

    output: Path
    changes: tuple[Change, ...]
    report: CheckReport

    def to_json(self) -> dict[str, Any]:
        """Return the report on the copy, with the changes."""
        changes = [change.to_json() for change in self.changes]
        return {**self.report.to_json(), "output": str(self.output), "changes": changes}


def check(reference: str, workspace: Workspace, *, workers: int = 1, progress: Progress | None = None) -> CheckReport:
    """Check a dataset and the folds that a training would use.

    Raises:
        UsageError: no such dataset. InputDataError: dataset.json is missing or wrong.
    """
    dataset = open_dataset(find_dataset(reference, workspace))
    folds, problems = _folds(dataset, workspace)
    return check_dataset(dataset, folds=folds, known_problems=problems, workers=workers, progress=progress)


def check_and_mend(
    reference: str, output: Path, workspace: Workspace, *, workers: int = 1, progress: Progress | None = None
) -> Mended:
    """Write a mended copy of a dataset and check that.

    Raises:
        UsageError: see `mend_dataset`.
    """
    changes = mend_dataset(open_dataset(find_dataset(reference, workspace)), output, progress)
    report = check(str(output), workspace, workers=workers, progress=progress)
    return Mended(output=output, changes=changes, report=report)


def check_for_model(
    source: Path, model: str, workspace: Workspace, *, workers: int = 1, progress: Progress | None = None
) -> CheckReport:
    """Check new images against a trained model, which is loaded to prove that it can be.

    Raises:
        UsageError: no such model or images. IntegrityError: the model is damaged. InputDataError: no image at all.
    """
    import torch

    from medsegdiff_cli.prediction.flags import image_flags
    from medsegdiff_cli.prediction.inputs import find_inputs
    from medsegdiff_cli.prediction.model import load_models
    from medsegdiff_cli.workflows.channel_order import require_same_channels
    from medsegdiff_cli.workflows.models import find_models

    models = load_models(find_models([model], workspace), device=torch.device("cpu"))
    plan, config = models[0].plan, models[0].run.config
    inputs = find_inputs(source, len(plan.channels), plan.file_ending)
    require_same_channels(source, plan)
    spacing: list[float | None] = [None] * plan.n_dims_of_images
    for axis, edge in zip(plan.transpose, plan.configuration(config)[1].spacing_mm or (), strict=False):
        spacing[axis] = edge
    needs = ModelNeeds(
        name=model,
        n_dims=plan.n_dims_of_images,
        n_channels=len(plan.channels),
        spacing_mm=tuple(spacing),
        flags=lambda image: image_flags(image, plan.channels),
        training_cases=frozenset(case for loaded in models for case in loaded.run.train_cases),
    )
    cases = [NewCase(case=case.case, images=case.images) for case in inputs.cases]
    return check_new_images(source, cases, inputs.skipped, needs, workers=workers, progress=progress)


def _folds(dataset: DatasetFolder, workspace: Workspace) -> tuple[Splits | None, tuple[Problem, ...]]:
    """Return the folds in use; a file of folds that cannot be used is a problem of its own."""
    if not any(case.label is not None for case in dataset.cases("Tr")):
        return None, ()
    try:
        return splits_of(dataset, workspace.preprocessed / dataset.name), ()
    except InputDataError as error:
        problem = Problem(
            severity="error",
            code="folds-wrong",
            message=f"{error.what} ({error.where})",
            fix=error.fix or "mend or delete the file",
        )
        return None, (problem,)
