"""`msd bundle`: a trained run out as one file, looked into, and into another workspace."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.bundle import (
    NOT_STATED,
    Bundle,
    Manifest,
    is_bundle,
    members_of_fold,
    opened_bundle,
    without_personal_data,
    write_bundle,
)
from medsegdiff_cli.artifacts.document import read_json, validate
from medsegdiff_cli.artifacts.fold_files import FoldFolder
from medsegdiff_cli.artifacts.run import find_folds
from medsegdiff_cli.errors import IntegrityError, UsageError
from medsegdiff_cli.leftovers import PART_SUFFIX, hidden_name, remove
from medsegdiff_cli.locks import locked
from medsegdiff_cli.methods.registry import is_pretraining
from medsegdiff_cli.paths import BEST, BUNDLE_SUFFIX, LOCK, MANIFEST_JSON, RUN_JSON, Workspace, best_of
from medsegdiff_cli.prediction.model import LoadedFold, load_fold
from medsegdiff_cli.workflows.models import find_models
from medsegdiff_cli.workflows.run_folder import find_parent, locked_folds

# Hidden, beside the results: a bundle that a training starts from.
_UNPACKED = "unpacked"


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What `msd bundle export` was asked for.

    Attributes:
        output: None takes RUN.msd in the current folder.
        licence, citation, intended_use: None takes those of the bundle that the run was imported from.
        keep_case_names: cases keep their names, by which `msd evaluate` knows a training case again.
    """

    model: str
    workspace: Workspace
    output: Path | None = None
    dataset: str | None = None
    config: str | None = None
    folds: tuple[str, ...] = ()
    licence: str | None = None
    citation: str | None = None
    intended_use: str | None = None
    keep_case_names: bool = False
    overwrite: bool = False


def export_bundle(request: ExportRequest) -> tuple[Path, Manifest]:
    """Write a run as a bundle, after loading every fold of it.

    Returns:
        the bundle's path and manifest.

    Raises:
        UsageError: no such run, one that is not finished, or the file exists.
        IntegrityError: the run is damaged.
    """
    (model,) = find_models([request.model], request.workspace, dataset=request.dataset, config=request.config)
    if model.is_file():
        raise UsageError("this is a bundle already", where=str(model), fix="copy the file, or import it")
    output = (request.output or Path(f"{_run_of(model).name}{BUNDLE_SUFFIX}")).expanduser()
    if not is_bundle(output):
        raise UsageError(f"'{output.name}' is no name of a bundle", where="OUT", fix=f"end it with {BUNDLE_SUFFIX}")
    if output.exists() and not request.overwrite:
        raise UsageError(f"'{output}' exists", where="OUT", fix="name another file, or pass --overwrite")
    folders = find_folds(model, request.folds)
    loaded = {folder: load_fold(FoldFolder(folder)) for folder in folders}
    for folder, fold in loaded.items():
        if not fold.run.is_finished:
            raise UsageError(
                "this run is not finished",
                where=str(folder),
                fix="finish its training first, or leave it out with --folds",
            )
    samplers = _samplers_of(loaded)
    members = {
        name: content
        for folder, fold in loaded.items()
        for name, content in _members(folder, fold, (fold.checkpoint, *map(best_of, samplers)), request)
    }
    return output, write_bundle(output, {**_facts(loaded, request), "samplers": samplers}, members)


def _samplers_of(loaded: dict[Path, LoadedFold]) -> list[str]:
    """Return the samplers for which every fold has best weights of its own, after loading these; ascending."""
    prefix = best_of("")
    there = [{name for name in FoldFolder(folder).checkpoints() if name.startswith(prefix)} for folder in loaded]
    if any(fold.checkpoint != BEST for fold in loaded.values()):
        return []
    common = sorted(set.intersection(*there))
    for folder in loaded:
        for name in common:
            load_fold(FoldFolder(folder), name)
    return [name.removeprefix(prefix) for name in common]


def _members(
    folder: Path, fold: LoadedFold, weights: tuple[str, ...], request: ExportRequest
) -> Iterator[tuple[str, bytes | Path]]:
    record = without_personal_data(fold.run, keep_case_names=request.keep_case_names)
    for name in members_of_fold(fold.run.fold, weights):
        _, _, within = name.partition("/")
        if within == RUN_JSON:
            yield name, _as_json(record.model_dump(mode="json"))
        else:
            yield name, folder / within


def _facts(loaded: dict[Path, LoadedFold], request: ExportRequest) -> dict[str, Any]:
    """Return the manifest's fields but for the members; the folds of a run have them in common."""
    folder, first = next(iter(loaded.items()))
    for other, fold in loaded.items():
        if (fold.run.method, fold.run.config, fold.checkpoint) != (
            first.run.method,
            first.run.config,
            first.checkpoint,
        ):
            raise UsageError(f"{other} and {folder} are of different runs", fix="export them one by one with --folds")
    stated = {key: getattr(request, key) for key in ("licence", "citation", "intended_use")}
    before = _run_of(folder) / MANIFEST_JSON
    if before.is_file():
        manifest = validate(Manifest, read_json(before, IntegrityError), str(before), IntegrityError)
        stated = {key: getattr(manifest, key) if value is None else value for key, value in stated.items()}
    return {
        "name": _run_of(folder).name,
        "kind": "pretraining" if is_pretraining(first.run.method) else "model",
        "method": first.run.method,
        "config": first.run.config,
        "dataset": first.run.dataset,
        "folds": [fold.run.fold for fold in loaded.values()],
        "checkpoint": first.checkpoint,
        "channels": [channel.name for channel in first.plan.channels],
        "labels": first.plan.labels,
        **{key: value or NOT_STATED for key, value in stated.items()},
        "training_cases": {fold.run.fold: len(fold.run.train_cases) for fold in loaded.values()},
    }


def _run_of(model: Path) -> Path:
    """Return the run's folder of a fold or a run."""
    return model.parent if (model / RUN_JSON).is_file() else model


def describe_bundle(path: Path) -> dict[str, Any]:
    """Return the manifest of a bundle and its `digest`, after reading all of it once.

    Raises:
        UsageError: no file of that name.
        IntegrityError: it is damaged or not to be trusted.
    """
    with opened_bundle(_bundle_file(path)) as bundle:
        bundle.verify()
        return {"digest": bundle.digest, "bytes": path.stat().st_size, **bundle.manifest.model_dump(mode="json")}


def import_bundle(
    path: Path, workspace: Workspace, *, name: str | None = None, overwrite: bool = False
) -> tuple[Path, Manifest]:
    """Unpack a bundle into the workspace's results, after loading every fold of it from memory.

    It is unpacked beside its place, under a hidden name, and then moved there as a whole.

    Args:
        name: of the run; None takes the bundle's own.

    Returns:
        the run's folder, and the manifest, which is kept in it.

    Raises:
        UsageError: a run of that name exists and `overwrite` is not set, or a process writes to it or imports it, too;
            or a newer msd wrote the bundle.
        IntegrityError: it is damaged or not to be trusted.
        ResourceError: the disk is full or fails.
    """
    with opened_bundle(_bundle_file(path)) as bundle:
        manifest = bundle.manifest
        # A name from the command line is held to the rule that the manifest's own has passed.
        run = validate(Manifest, {**manifest.model_dump(mode="json"), "name": name or manifest.name}, "--name").name
        target = workspace.results / manifest.dataset / run
        if target.exists() and not overwrite:
            raise UsageError(f"a run '{run}' exists", where=str(target), fix="give another --name, or pass --overwrite")
        for fold in bundle.folds():
            for weights in manifest.weights:
                _check_facts(load_fold(fold, weights), manifest, str(path))
        atomic.require_space(target.parent, sum(member.bytes for member in manifest.members.values()), "the model")
        # The run that is replaced must not be one that somebody trains.
        importing = target.parent / f"{LOCK}.import-{run}"
        with locked(importing), locked_folds(target), atomic.staged_folder(target) as staging:
            _unpack(bundle, staging)
            atomic.write_json(staging / MANIFEST_JSON, manifest.model_dump(mode="json"))
    return target, manifest


def _check_facts(fold: LoadedFold, manifest: Manifest, where: str) -> None:
    """Refuse a manifest that speaks of another model than the one beside it."""
    facts = {
        "method": fold.run.method,
        "kind": "pretraining" if is_pretraining(fold.run.method) else "model",
        "config": fold.run.config,
        "dataset": fold.run.dataset,
        "labels": fold.plan.labels,
        "channels": tuple(channel.name for channel in fold.plan.channels),
    }
    wrong = [key for key, value in facts.items() if getattr(manifest, key) != value]
    if wrong or fold.run.fold not in manifest.folds:
        what = ", ".join(wrong) or f"fold {fold.run.fold}"
        raise IntegrityError(
            f"manifest and model do not agree ({what})", where=where, fix="ask the author for the file"
        )


@contextmanager
def opened_parent(reference: str, workspace: Workspace, fold: str) -> Iterator[Path]:
    """Yield the fold's folder that `--from` names; a bundle is unpacked beside the workspace's results meanwhile.

    Raises:
        UsageError, IntegrityError: see `find_parent` and `import_bundle`.
    """
    (model,) = find_models([reference], workspace)
    if not model.is_file():
        yield find_parent(reference, workspace, fold)
        return
    place = workspace.root / _UNPACKED
    atomic.put_back(place)  # removes what killed processes left
    temporary = hidden_name(place, PART_SUFFIX)
    try:
        with opened_bundle(model) as bundle:
            run = temporary / bundle.manifest.name
            needed = sum(member.bytes for member in bundle.manifest.members.values())
            atomic.require_space(workspace.root, needed, "the unpacked bundle")
            _unpack(bundle, run)
        yield find_parent(str(run), workspace, fold)
    finally:
        remove(temporary)


def _unpack(bundle: Bundle, folder: Path) -> None:
    """Write all members below a folder; names and sizes were checked when the bundle was opened."""
    for name in bundle.manifest.members:
        with atomic.staged(folder / name) as temporary, temporary.open("wb") as stream:
            bundle.copy(name, stream)


def _bundle_file(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"no file '{path}'", where="FILE", fix=f"give a bundle, which ends in {BUNDLE_SUFFIX}")
    if not is_bundle(path):
        raise UsageError(f"'{path.name}' is no bundle", where="FILE", fix=f"give a file that ends in {BUNDLE_SUFFIX}")
    return path


def _as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
