"""Folds: nnU-Net's five, whole groups together, and smaller label budgets nested within a fold."""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder
from medsegdiff_cli.artifacts.splits import Fold, Splits, read_splits
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.paths import SPLITS_JSON

N_FOLDS = 5
SPLIT_SEED = 12345

log = logging.getLogger(__name__)


def make_splits(groups: Mapping[str, str], n_folds: int = N_FOLDS) -> Splits:
    """Split labelled cases; without groups the folds are those of nnU-Net.

    That is scikit-learn's KFold(5, shuffle=True, random_state=12345) on sorted ids. Groups are split in the same
    way, so that no patient is on both sides. Fewer groups than folds make one fold a group; a single group trains
    in one fold that validates on nothing.

    Args:
        groups: labelled case to its group (the case itself when there are no groups).

    Raises:
        InputDataError: there is no labelled case.
    """
    if not groups:
        raise InputDataError(
            "no labelled case to train or validate on",
            fix="put images and labels into imagesTr and labelsTr; unlabelled images serve pretraining only",
        )
    units = sorted(set(groups.values()))
    if len(units) == 1:
        return Splits(folds=(Fold(train=tuple(sorted(groups)), val=()),))
    folds = []
    for held_out in _k_fold(len(units), min(n_folds, len(units))):
        held_units = {units[index] for index in held_out}
        val = tuple(case for case in sorted(groups) if groups[case] in held_units)
        train = tuple(case for case in sorted(groups) if groups[case] not in held_units)
        folds.append(Fold(train=train, val=val))
    return Splits(folds=tuple(folds))


def splits_of(dataset: DatasetFolder, preprocessed_folder: Path | None = None) -> Splits:
    """Return the user's `splits_final.json` (beside the plans, else in the dataset folder), else `make_splits`.

    A file with just the folds that `make_splits` gives for its cases is ours: it follows when cases come or go.

    Raises:
        InputDataError: the file is wrong, or there is no labelled case.
    """
    groups = {case.case: case.group for case in dataset.cases("Tr") if case.label is not None}
    for folder in (preprocessed_folder, dataset.path):
        if folder is not None and (folder / SPLITS_JSON).is_file() and not _is_ours(folder / SPLITS_JSON, groups):
            splits = read_splits(folder / SPLITS_JSON, sorted(groups))
            _warn_of_leaks(splits, groups, folder / SPLITS_JSON)
            return splits
    return make_splits(groups)


def explain_splits(splits: Splits, groups: Mapping[str, str]) -> tuple[str, ...]:
    """Return sentences on how validation is done."""
    n_cases, n_groups, n_folds = len(groups), len(set(groups.values())), len(splits.folds)
    units = f"{n_cases} labelled cases" + (f" of {n_groups} groups" if n_groups < n_cases else "")
    if not any(fold.val for fold in splits.folds):
        return (f"{units}: one fold that trains on all and validates on none; scores need a test set.",)
    folds = "one fold" if n_folds == 1 else f"{n_folds} folds"
    sentences = [f"{units}: {folds} of at most {max(len(fold.val) for fold in splits.folds)} validation cases."]
    if splits != make_splits(groups):
        return (*sentences, f"They are those of the {SPLITS_JSON} that was there.")
    if n_groups < n_cases:
        sentences.append("Groups (patients) are never split between training and validation.")
    if n_folds < N_FOLDS:
        sentences.append(f"Fewer than {N_FOLDS} folds, because each needs at least one case or group of its own.")
    return tuple(sentences)


def limit_cases(
    train_ids: Iterable[str],
    groups: Mapping[str, str],
    n: int,
    seed: int = 0,
    count: Literal["groups", "cases"] = "groups",
) -> tuple[str, ...]:
    """Return the cases whose labels `--cases N` keeps, in the order in which they are drawn.

    For a seed, N cases are the first of N + 1. The order is a hash of seed and name, so that it depends neither on
    the fold nor on the other cases.

    Args:
        n: labelled units to keep: groups (patients), or single cases with `count="cases"`.

    Raises:
        UsageError: `n` is below 1 or above what the fold has.
    """
    units: dict[str, list[str]] = {}
    for case in sorted(set(train_ids)):
        units.setdefault(groups.get(case, case) if count == "groups" else case, []).append(case)
    if not 1 <= n <= len(units):
        what = "groups" if count == "groups" and len(units) < sum(map(len, units.values())) else "cases"
        raise UsageError(
            f"{n} labelled {what} are asked for, the fold trains on {len(units)}",
            where="--cases",
            fix=f"choose 1 to {len(units)}" + (", or --count cases" if what == "groups" else ""),
        )
    drawn = sorted(units, key=lambda unit: hashlib.sha256(f"{seed}:{unit}".encode()).digest())[:n]
    return tuple(case for unit in drawn for case in units[unit])


def _k_fold(n: int, n_folds: int) -> list[list[int]]:
    """Return the indices held out by each fold; the first n % n_folds folds hold one more."""
    order = np.arange(n)
    np.random.RandomState(SPLIT_SEED).shuffle(order)
    return [sorted(part.tolist()) for part in np.array_split(order, n_folds)]


def _is_ours(path: Path, groups: Mapping[str, str]) -> bool:
    splits = read_splits(path)
    used = {case for fold in splits.folds for case in (*fold.train, *fold.val)}
    return bool(used) and splits == make_splits({case: groups.get(case, case) for case in used})


def _warn_of_leaks(splits: Splits, groups: Mapping[str, str], path: Path) -> None:
    """Say which cases a user's file leaves out, and which groups it splits; both may be meant."""
    used = {case for fold in splits.folds for case in (*fold.train, *fold.val)}
    if left_out := sorted(set(groups) - used):
        log.warning("%s: %d labelled cases are in no fold (%s ...)", path, len(left_out), left_out[0])
    for index, fold in enumerate(splits.folds):
        if shared := sorted({groups[c] for c in fold.train} & {groups[c] for c in fold.val}):
            log.warning("%s: fold %d trains and validates on group '%s'", path, index, shared[0])
