"""`msd runs`: which runs there are, in what state, how good and how large; and deleting one."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medsegdiff_cli.artifacts.document import read_json
from medsegdiff_cli.artifacts.run import RunRecord, read_run
from medsegdiff_cli.errors import MsdError, UsageError, did_you_mean
from medsegdiff_cli.paths import (
    CHECKPOINTS,
    FOLD_PREFIX,
    METRICS_JSONL,
    RUN_JSON,
    SUMMARY_JSON,
    VALIDATION,
    Workspace,
    find_dataset,
)
from medsegdiff_cli.planning.memory import format_bytes
from medsegdiff_cli.workflows.run_folder import clear_fold, locked_folds


def list_runs(workspace: Workspace, dataset: str | None = None) -> list[dict[str, Any]]:
    """Return one row a fold, sorted by dataset, run and fold.

    Args:
        dataset: id, name or path; None lists all.

    Returns:
        rows with `dataset`, `run`, `fold`, `state` (planned, running, finished, damaged), `steps` ("120/300" over all
        stages), `dice` (mean foreground Dice of the fold's validation, or None), `bytes`, `size` in words, `path`.
    """
    return [_row(folder) for parent in _run_folders(workspace, dataset) for folder in _folds_of(parent)]


def delete_run(
    name: str, workspace: Workspace, dataset: str | None = None, confirm: Callable[[str], bool] | None = None
) -> tuple[Path, str]:
    """Delete a run with all its folds, or one fold (`RUN/fold_0`).

    Args:
        name: the run's name, `DATASET/RUN`, or its path; it must lie in the workspace's results.
        confirm: asked with a sentence; None deletes without asking.

    Returns:
        the run's folder and what was freed, in words; "" when the answer was no.

    Raises:
        UsageError: no such run, several of that name, or a link instead of a folder; or a process is writing there.
    """
    folder = _find(name, workspace, dataset)
    size = format_bytes(bytes_below(folder))
    if confirm is not None and not confirm(f"delete {folder} ({size})?"):
        return folder, ""
    _remove(folder)
    return folder, size


def _run_folders(workspace: Workspace, dataset: str | None) -> list[Path]:
    """Return the folders `results/DATASET/RUN` that hold a run; links are left out."""
    results = workspace.results
    if not results.is_dir():
        return []
    only = None if dataset is None else find_dataset(dataset, workspace).name
    parents = [parent for parent in sorted(results.iterdir()) if only in (None, parent.name) and _is_folder(parent)]
    return [run for parent in parents for run in sorted(parent.iterdir()) if _is_folder(run) and _folds_of(run)]


def _folds_of(run: Path) -> list[Path]:
    return [fold for fold in sorted(run.glob(f"{FOLD_PREFIX}*")) if _is_folder(fold) and (fold / RUN_JSON).is_file()]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _row(folder: Path) -> dict[str, Any]:
    size = bytes_below(folder)
    row = {
        "dataset": folder.parent.parent.name,
        "run": folder.parent.name,
        "fold": folder.name.removeprefix(FOLD_PREFIX),
        "state": "damaged",
        "steps": "",
        "dice": _validation_dice(folder / VALIDATION / SUMMARY_JSON),
        "bytes": size,
        "size": format_bytes(size),
        "path": str(folder),
    }
    try:
        record = read_run(folder)
    except MsdError:
        # A listing shows a broken run instead of failing on it; reading the run itself gives the reason.
        return row
    done = _steps_done(folder, record)
    state = "finished" if record.is_finished else "running" if done else "planned"
    return {**row, "state": state, "steps": f"{done}/{sum(stage.steps for stage in record.stages)}"}


def _steps_done(folder: Path, record: RunRecord) -> int:
    """Return the optimiser steps done: of run.json, and of journal and checkpoints for the stage under way."""
    recorded = sum(stage.steps_done for stage in record.stages)
    if record.is_finished:
        return recorded
    finished = sum(stage.steps_done for stage in record.stages if stage.status == "finished")
    return max(recorded, finished + _last_step(folder / METRICS_JSONL), _saved_step(folder / CHECKPOINTS))


def _saved_step(checkpoints: Path) -> int:
    """Return the newest checkpoint's step within its stage: a training may stop before its journal's next line."""
    steps = (path.stem.removeprefix("step_") for path in checkpoints.glob("step_*.json"))
    return max((int(step) for step in steps if step.isdigit()), default=0)


def _last_step(journal: Path) -> int:
    """Return the step of the last complete line of a journal, 0 when there is none."""
    for text in reversed(_last_lines(journal)):
        try:
            return int(json.loads(text)["step"])
        except (json.JSONDecodeError, KeyError, TypeError):
            # The last line is cut short while the training writes it.
            continue
    return 0


def _last_lines(path: Path, n_bytes: int = 1 << 14) -> list[str]:
    if not path.is_file():
        return []
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - n_bytes))
        return stream.read().decode(errors="replace").splitlines()


def _validation_dice(summary: Path) -> float | None:
    if not summary.is_file():
        return None
    try:
        dice = read_json(summary)["foreground_mean"]["Dice"]
    except (MsdError, KeyError, TypeError):
        return None
    return None if dice is None else float(dice)


def bytes_below(folder: Path) -> int:
    """Return the bytes of all files below; links count as themselves, so nothing outside is looked at."""
    return sum(path.lstat().st_size for path in files_below(folder))


def files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, links as themselves."""
    for parent, _, names in os.walk(folder, followlinks=False):
        for name in names:
            yield Path(parent) / name


def _find(name: str, workspace: Workspace, dataset: str | None) -> Path:
    runs = _run_folders(workspace, dataset)
    candidates = [*runs, *(fold for run in runs for fold in _folds_of(run))]
    as_path = Path(name).expanduser()
    if as_path.is_symlink():
        raise UsageError(f"'{name}' is a link", where="--delete", fix="name the run that it points to")
    results = workspace.results
    matches = [
        folder
        for folder in candidates
        if name in (folder.name, str(folder.relative_to(results)), f"{folder.parent.name}/{folder.name}")
        or (as_path.exists() and as_path.resolve() == folder.resolve())
    ]
    # `fold_0` alone names no run, however many or few there are.
    matches = [folder for folder in matches if name != folder.name or folder in runs]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(str(folder.relative_to(results)) for folder in matches)
        raise UsageError(f"'{name}' names {len(matches)} runs: {names}", where="--delete", fix="give DATASET/RUN")
    raise UsageError(
        f"no run '{name}'", where=str(results), fix=f"{did_you_mean(name, [run.name for run in runs])}; see `msd runs`"
    )


def _remove(folder: Path) -> None:
    """Delete a run's folder, its markers last: an interrupted deletion can be asked for again."""
    with locked_folds(folder) as folds:
        for fold in folds:
            clear_fold(fold)
        # rmtree removes links as links and refuses to start at one.
        shutil.rmtree(folder)
