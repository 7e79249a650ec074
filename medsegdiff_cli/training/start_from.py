"""Starting from another run's weights: what fits is taken, and a table says what became of every tensor."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medsegdiff_cli.artifacts.checkpoint import checkpoint_exists, read_checkpoint
from medsegdiff_cli.artifacts.plan import read_plan
from medsegdiff_cli.artifacts.recipe import read_resolved_recipe
from medsegdiff_cli.artifacts.run import find_folds, read_run
from medsegdiff_cli.atomic import digest_of_file
from medsegdiff_cli.errors import IntegrityError, UsageError
from medsegdiff_cli.methods.base import Method
from medsegdiff_cli.methods.registry import find_trainable
from medsegdiff_cli.networks.transfer import Transfer, TransferRow, adapt_state, input_layers
from medsegdiff_cli.paths import CHECKPOINTS, RUN_PLAN, RUN_RECIPE
from medsegdiff_cli.training.checkpoints import LAST

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """Where the initial weights came from.

    Attributes:
        digest: sha256 of the parent's weights' file.
        transfer: what became of each tensor.
    """

    folder: Path
    digest: str
    transfer: Transfer


def start_from(method: Method, parent: Path, *, min_coverage: float = 0.5) -> StartingPoint:
    """Load what fits of a trained run's prediction weights into a fresh method, and log the table.

    Args:
        parent: a run's fold folder, or its parent when it has one fold only.
        min_coverage: least share of the method's pretrained numbers that must come from the parent.

    Raises:
        UsageError: no such run, or too little of it fits.
        IntegrityError: the parent's weights are damaged.
    """
    folders = find_folds(parent)
    if len(folders) > 1:
        raise UsageError(
            f"'{parent}' has {len(folders)} folds",
            where="--from",
            fix=f"name one: {', '.join(str(folder) for folder in folders)}",
        )
    path = weights_of(folders[0])
    state = read_checkpoint(path).part("model")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise IntegrityError(f"'{broken[0]}' holds numbers that are not finite", where=str(path), fix="train it again")
    transfer = adapt_state(state, method, method.pretrained, output_rows(method, folders[0], state))
    log.info("starting from %s\n%s", folders[0], transfer_table(transfer))
    if transfer.coverage < min_coverage:
        raise UsageError(
            f"only {transfer.coverage:.1%} of the network can start from that run (at least {min_coverage:.1%} wanted)",
            where=f"--from {parent}",
            fix="start from a run of the same method and network settings (see the table), or train from the beginning",
        )
    method.load_state_dict(transfer.state)
    return StartingPoint(folder=folders[0], digest=digest_of_file(path.with_suffix(".safetensors")), transfer=transfer)


def output_rows(method: Method, parent: Path, state: Mapping[str, Tensor]) -> slice | None:
    """Return the rows of a run's output layer that speak of what the method's do; None when there are none.

    Args:
        parent: the run's fold folder.
        state: its weights.
    """
    theirs = find_trainable(read_resolved_recipe(parent / RUN_RECIPE).method).load().outputs
    if "classes" in theirs and "classes" in method.outputs and not _are_classes_alike(method, parent):
        return None
    if theirs == method.outputs:
        return slice(None)
    first = next((state.get(f"{name}.weight") for name in input_layers(method)), None)
    if theirs != ("image", "classes") or first is None:
        return None
    # The image's rows come first, as many as the input has channels.
    return slice(0, first.shape[1]) if method.outputs == ("image",) else slice(first.shape[1], None)


def _are_classes_alike(method: Method, parent: Path) -> bool:
    """Return whether a run's rows mean background and classes, or regions, as the method's do; names may differ."""
    scheme = read_plan(parent / RUN_PLAN).label_scheme()
    if scheme.classes_are_exclusive != method.task.classes_are_exclusive:
        return False
    pairs = zip(scheme.class_names, method.task.class_names, strict=False)
    renamed = [f"{there} -> {here}" for there, here in pairs if there != here]
    if renamed and len(scheme.class_names) == len(method.task.class_names):
        log.info("the output layer's rows are taken by number: %s", ", ".join(renamed))
    return True


def transfer_table(transfer: Transfer) -> str:
    """Return the table for people: a count of each status, then every tensor that was not simply loaded."""
    counts = Counter(row.status for row in transfer.rows)
    summary = ", ".join(f"{counts[status]} {status}" for status in ("loaded", "adapted", "new", "unused"))
    rows = [("tensor", "status", "there", "here")]
    rows += [
        (row.name, row.status, _shape(row.source_shape), _shape(row.target_shape))
        for row in sorted(transfer.rows, key=_order)
        if row.status != "loaded"
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"tensors: {summary}; {transfer.coverage:.1%} of the weights", *(lines if len(rows) > 1 else [])])


def weights_of(folder: Path) -> Path:
    """Return the checkpoint (without ending) that the run in a fold folder predicts with.

    Raises:
        UsageError: its training is not finished: of several stages the first also leaves weights.
    """
    run = read_run(folder)
    if not run.is_finished:
        open_stages = ", ".join(stage.name for stage in run.stages if stage.status != "finished")
        raise UsageError(
            f"its training is not finished (stage {open_stages})",
            where=str(folder),
            fix=f"run its command again: {run.command}" if run.command else "run its command again",
        )
    selected = read_resolved_recipe(folder / RUN_RECIPE).training.selection
    for name in (selected, LAST):
        if checkpoint_exists(folder / CHECKPOINTS / name):
            return folder / CHECKPOINTS / name
    raise IntegrityError("this finished run has no weights", where=str(folder), fix="train it again with --overwrite")


def _order(row: TransferRow) -> int:
    return ("loaded", "adapted", "new", "unused").index(row.status)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape)) or "1"
