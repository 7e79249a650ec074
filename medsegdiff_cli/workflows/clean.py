"""`msd runs clean`: what takes space and serves nothing any more; listed first, deleted only when that is asked for.

Two kinds of things may go: preprocessed stores that no plan asks for any more, and runs by their state and age. A run
that another one started from stays, whatever its age, for the other one's record names it; so does everything that was
written to lately, and what somebody put there as a link.
"""

import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medsegdiff_cli.artifacts.dataset_folder import CaseFiles
from medsegdiff_cli.artifacts.plan import Plan, read_plan
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.artifacts.run import read_run
from medsegdiff_cli.errors import MsdError, UsageError, did_you_mean
from medsegdiff_cli.locks import locked
from medsegdiff_cli.paths import LOCK, Workspace, find_dataset
from medsegdiff_cli.preprocessing.case import CaseJob
from medsegdiff_cli.preprocessing.transform_settings import transform_settings
from medsegdiff_cli.workflows.run_folder import clear_fold
from medsegdiff_cli.workflows.runs import bytes_below, files_below, list_runs

STATES = ("planned", "running", "damaged", "finished")
UNFINISHED = ("planned", "running")
_DAY_S = 86_400.0
_CONFIGS = ("2d", "3d")


@dataclass(frozen=True, kw_only=True)
class Removable:
    """A folder that may go.

    Attributes:
        kind: a fold of a run, or the preprocessed store of one configuration.
        reason: why, in words.
        days: since a file in it was last written to.
    """

    kind: Literal["run", "store"]
    path: Path
    reason: str
    days: float
    n_bytes: int


def find_removable(
    workspace: Workspace,
    *,
    dataset: str | None = None,
    older_than_s: float = 30 * _DAY_S,
    states: Collection[str] = UNFINISHED,
) -> list[Removable]:
    """List what may go, runs first; nothing is changed.

    Args:
        dataset: id, name or path; None looks at all.
        older_than_s: only what nobody has written to for so many seconds.
        states: of the runs to list. Finished and damaged ones are listed only when they are asked for.

    Raises:
        UsageError: an unknown state or dataset.
    """
    if unknown := sorted(set(states) - set(STATES)):
        raise UsageError(f"no state '{unknown[0]}'", where="--state", fix=did_you_mean(unknown[0], STATES))
    name = None if dataset is None else find_dataset(dataset, workspace).name
    runs = list_runs(workspace)
    parents = set(_parents(Path(row["path"]) for row in runs))
    found, busy = [], set()
    for row in runs:
        path, days = Path(row["path"]), _days_since_a_change(Path(row["path"]))
        is_old = days * _DAY_S > older_than_s
        if row["state"] in UNFINISHED and not is_old:
            busy.add(row["dataset"])
        if name in (None, row["dataset"]) and is_old and row["state"] in states and not _is_parent(path, parents):
            reason = f"{row['state']}, {row['steps'] or '?'} steps"
            found.append(Removable(kind="run", path=path, reason=reason, days=days, n_bytes=row["bytes"]))
    # A training that may still be at work reads the stores of its dataset.
    stores = (store for store in _stores(workspace) if name in (None, store.parent.name))
    for store in stores:
        days, reason = _days_since_a_change(store), _why_superseded(store)
        if reason and days * _DAY_S > older_than_s and store.parent.name not in busy:
            size = bytes_below(store)
            found.append(Removable(kind="store", path=store, reason=reason, days=days, n_bytes=size))
    return found


def remove(found: Removable) -> None:
    """Delete one of the folders listed; an interrupted deletion can be asked for again.

    Raises:
        UsageError: a process is writing there right now.
    """
    with locked(found.path / LOCK):
        if found.kind == "run":
            clear_fold(found.path)
        else:
            store = PreprocessedStore(found.path)
            for case in store.cases():
                store.remove(case)
    # rmtree removes links as links and refuses to start at one.
    shutil.rmtree(found.path)
    if found.kind == "run" and not any(found.path.parent.iterdir()):
        found.path.parent.rmdir()


def _parents(folders: Iterator[Path]) -> Iterator[str]:
    """Yield the runs that others started from, as their records name them: `RUN/fold_K`."""
    for folder in folders:
        try:
            yield read_run(folder).parent.get("run", "")
        except MsdError:
            # A damaged record names nothing; what it had started from is then protected by its age alone.
            continue


def _is_parent(fold: Path, parents: Collection[str]) -> bool:
    return f"{fold.parent.name}/{fold.name}" in parents


def _stores(workspace: Workspace) -> list[Path]:
    """Return the folders `preprocessed/DATASET/PLANS_CONFIG` that hold cases."""
    if not workspace.preprocessed.is_dir():
        return []
    folders = [
        path for parent in sorted(workspace.preprocessed.iterdir()) if _is_folder(parent) for path in parent.iterdir()
    ]
    named = (path for path in sorted(folders) if path.name.rpartition("_")[2] in _CONFIGS and _is_folder(path))
    return [path for path in named if PreprocessedStore(path).cases()]


def _why_superseded(folder: Path) -> str:
    """Return why no plan asks for a store, in words; "" when one does, or when that cannot be told."""
    plans_name, _, config = folder.name.rpartition("_")
    file = folder.parent / f"{plans_name}.yaml"
    if not file.is_file():
        return f"its plan ({file.name}) is gone"
    try:
        plan = read_plan(file)
        if config not in plan.configurations:
            return f"its plan has no configuration {config} any more"
        return "" if _has_a_case_of(plan, config, PreprocessedStore(folder)) else "made with an earlier plan"
    except MsdError:
        # A plan or an entry that cannot be read decides over nothing.
        return ""


def _has_a_case_of(plan: Plan, config: str, store: PreprocessedStore) -> bool:
    """Return whether a case is stored under the key that the plan gives it, for the files that it was made from."""
    settings, scheme = transform_settings(plan, config), plan.label_scheme()
    for case in store.cases():
        properties = store.properties(case)
        files = CaseFiles(case=case, images=(), group=case)
        job = CaseJob(files=files, part="", settings=settings, scheme=scheme, store=store, seed=0)
        if properties.get("key") == job.key({role: known["sha256"] for role, known in properties["inputs"].items()}):
            return True
    return False


def _days_since_a_change(folder: Path) -> float:
    changes = [path.lstat().st_mtime for path in files_below(folder)]
    return (time.time() - max(changes, default=folder.stat().st_mtime)) / _DAY_S


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
