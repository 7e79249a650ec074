"""The run folder: its name, its frozen settings, and the check that a resumed run is the same run."""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from medsegdiff_cli.artifacts.plan import Plan, Scale, changed_keys, read_plan, write_plan
from medsegdiff_cli.artifacts.recipe import ResolvedRecipe, read_resolved_recipe, write_resolved_recipe
from medsegdiff_cli.artifacts.run import RunRecord, find_folds, read_run, run_name, write_run
from medsegdiff_cli.atomic import digest_of_content
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.locks import locked
from medsegdiff_cli.methods.registry import is_pretraining
from medsegdiff_cli.paths import FOLD_PREFIX, LOCK, PLANS_NAME, RUN_JSON, RUN_PLAN, RUN_RECIPE, Workspace
from medsegdiff_cli.workflows.models import find_models
from medsegdiff_cli.workflows.run_request import TrainRequest

_LONGEST_OVERRIDES = 100
_LONGEST_PART = 60
_DIGITS = 8


def open_run_folder(
    folder: Path, plan: Plan, recipe: ResolvedRecipe, record: RunRecord, *, overwrite: bool
) -> RunRecord:
    """Create the run folder, or check that an existing one is the same run; return its record.

    Raises:
        UsageError: the folder holds a run with other settings; names the keys that differ.
    """
    if (folder / RUN_JSON).is_file() and overwrite:
        clear_fold(folder)
        (folder / RUN_JSON).unlink()
    if (folder / RUN_JSON).is_file():
        existing = read_run(folder)
        differences = [f"plan: {key}" for key in changed_keys(read_plan(folder / RUN_PLAN), plan)]
        differences += [f"recipe: {key}" for key in changed_keys(read_resolved_recipe(folder / RUN_RECIPE), recipe)]
        for key in ("seed", "train_cases", "val_cases", "hidden_labels", "parent"):
            if getattr(existing, key) != getattr(record, key):
                differences.append(key)
        if differences:
            raise UsageError(
                f"this run exists with other settings ({', '.join(differences[:8])})",
                where=str(folder),
                fix=_ways_out(record.method),
            )
        return existing
    write_plan(folder / RUN_PLAN, plan)
    write_resolved_recipe(folder / RUN_RECIPE, recipe)
    write_run(folder, record)
    return record


def _ways_out(method: str) -> str:
    if is_pretraining(method):  # flags of `msd train` change the run of the method alone
        return "undo the change, or make the pretraining anew: msd pretrain with --overwrite (or --name, then --from)"
    return "undo the change, or give this run a name of its own with --name, or start over with --overwrite"


def clear_fold(folder: Path) -> None:
    """Delete everything in a fold's folder but its lock and `run.json`, which the caller removes last.

    Links are not followed.

    In another order, a deletion that is interrupted would leave checkpoints in a folder that counts as new, and the
    next training there would go on from them.
    """
    for path in [child for child in folder.iterdir() if child.name not in (RUN_JSON, LOCK)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def locked_folds(folder: Path) -> Iterator[list[Path]]:
    """Yield the folds of a run, or the one fold that `folder` is, while no other process may write to any of them.

    Raises:
        UsageError: a process is writing to one.
    """
    is_fold = (folder / RUN_JSON).is_file()
    folds = [folder] if is_fold else sorted(path.parent for path in folder.glob(f"{FOLD_PREFIX}*/{RUN_JSON}"))
    folds = [fold for fold in folds if not fold.is_symlink()]
    with ExitStack() as stack:
        for fold in folds:
            stack.enter_context(locked(fold / LOCK))
        yield folds


def run_folder(
    request: TrainRequest, dataset: str, plan: Plan, config: str, scale: Scale, overrides: Mapping[str, str]
) -> Path:
    """Return the fold's folder; a part of the run's name stands for each setting that is not the default.

    Args:
        overrides: the `--set` assignments that change a default, each in its one spelling.
    """
    parts = []
    if request.cases is not None:
        parts.append(f"n{request.cases}" + ("cases" if request.count == "cases" else ""))
    if request.seed:
        parts.append(f"seed{request.seed}")
    if request.preset != "recommended":
        parts.append(f"preset-{request.preset}")
    if request.recipe:
        parts.append(f"recipe-{Path(request.recipe).stem.replace('__', '-')}")
    if scale != plan.default_scale:
        parts.append(f"scale-{scale}")
    if request.plans_name and request.plans_name != PLANS_NAME:
        parts.append(f"plans-{request.plans_name.replace('__', '-')}")
    if request.parent is not None:
        parts.append(_shortened(f"from-{request.parent.parent.name.replace('__', '-')}"))
    if request.selection is not None:
        parts.append(f"selection-{request.selection}")
    parts += _parts_of_overrides(overrides)
    if request.name:
        parts.append(request.name)
    run = run_name(request.method, config, parts)
    return request.workspace.results / dataset / run / f"{FOLD_PREFIX}{request.fold}"


def _parts_of_overrides(overrides: Mapping[str, str]) -> list[str]:
    """Return a part for each `--set`; many of them become one part, for file systems end names at 255 bytes."""
    parts = [f"{key.replace('.', '-')}-{_for_file_name(value)}" for key, value in sorted(overrides.items())]
    if len("__".join(parts)) <= _LONGEST_OVERRIDES:
        return parts
    return [f"set-{digest_of_content(parts)[:_DIGITS]}"]


def _shortened(part: str) -> str:
    if len(part) <= _LONGEST_PART:
        return part
    return f"{part[:_LONGEST_PART].rstrip('_-')}-{digest_of_content(part)[:_DIGITS]}"


def _for_file_name(value: str) -> str:
    """Return `[1, 2]` as `1_2`, and a file's path as its name."""
    return re.sub(r"[^\w.+-]+|_+", "_", value.rpartition("/")[2]).strip("_")


def find_parent(reference: str, workspace: Workspace, fold: str) -> Path:
    """Return the fold folder that `--from` names: a fold, or a run's fold of the same number, else its first.

    Raises:
        UsageError: no such run.
    """
    (model,) = find_models([reference], workspace)
    folders = find_folds(model)
    return next((folder for folder in folders if folder.name == f"{FOLD_PREFIX}{fold}"), folders[0])
