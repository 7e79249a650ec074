"""Checks on names alone: what nnU-Net's file name pattern silently passes over."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder, Part
from medsegdiff_cli.checking.problem import Problem
from medsegdiff_cli.imaging.reading import ending_of
from medsegdiff_cli.paths import DATASET_JSON

# As for predictions: the files written beside a case have longer names than the case.
LONGEST_NAME_BYTES = 180


def check_listing(dataset: DatasetFolder) -> list[Problem]:
    """Check the names in all folders, and that images and labels belong together."""
    problems: list[Problem] = []
    has_listing = bool((dataset.info.model_extra or {}).get("dataset"))
    for part in get_args(Part):
        if not (part == "Tr" and has_listing):
            problems += _check_image_names(dataset, part)
            problems += _check_label_names(dataset, part)
    problems += _check_links(dataset)
    cases = {part: dataset.cases(part) for part in get_args(Part)}
    for case in cases["Tr"]:
        if case.label is None:
            fix = "add it to labelsTr, or move the images to imagesUn"
            problems.append(
                Problem(severity="error", code="label-missing", case=case.case, message="no label", fix=fix)
            )
    if len(cases["Tr"]) != dataset.info.numTraining:
        message = f"numTraining is {dataset.info.numTraining}, {len(cases['Tr'])} training cases are there"
        fix = f"correct the number in {DATASET_JSON}"
        problems.append(Problem(severity="error", code="num-training", message=message, fix=fix))
    if not any(cases.values()):
        fix = f"check file_ending ({dataset.info.file_ending}) and the names: CASE_0000{dataset.info.file_ending}"
        problems.append(Problem(severity="error", code="no-cases", message="the dataset holds no image", fix=fix))
    names = {case.case for found in cases.values() for case in found}
    problems += [*_check_known_cases(dataset, names), *_check_spelling(names)]
    return problems


def _check_image_names(dataset: DatasetFolder, part: Part) -> Iterator[Problem]:
    folder, ending = dataset.path / f"images{part}", dataset.info.file_ending
    pattern = re.compile(r"(.+)_(\d{4})")
    channels: dict[str, list[int]] = {}
    endings_of: dict[str, set[str]] = {}
    for path in _visible_files(folder):
        if not (found := ending_of(path)):
            yield Problem(severity="note", code="foreign-file", message=f"{folder.name}/{path.name} is no image")
            continue
        match = pattern.fullmatch(path.name[: -len(found)])
        if match is None:
            message = f"{folder.name}/{path.name} has no channel number and is ignored"
            fix = f"rename it to CASE_0000{ending}"
            yield Problem(severity="error", code="channel-number", case=_stem(path), message=message, fix=fix)
            continue
        endings_of.setdefault(match[1], set()).add(path.name[-len(found) :])
        if path.name.endswith(ending):
            channels.setdefault(match[1], []).append(int(match[2]))
    yield from _check_endings(folder, ending, endings_of)
    for case, numbers in channels.items():
        missing = sorted(set(range(max(numbers) + 1)) - set(numbers))
        if missing:
            message = f"{folder.name}: channel {', '.join(f'{n:04d}' for n in missing)} is missing"
            fix = "add the file, or number the channels from 0000"
            yield Problem(severity="error", code="channel-missing", case=case, message=message, fix=fix)


def _check_endings(folder: Path, ending: str, endings_of: dict[str, set[str]]) -> Iterator[Problem]:
    for case, endings in sorted(endings_of.items()):
        others = ", ".join(sorted(endings - {ending}))
        if len(endings) > 1:
            message = f"{folder.name}: the case is there with {', '.join(sorted(endings))}"
            fix = f"keep one of them ({ending})"
            yield Problem(severity="error", code="duplicate-case", case=case, message=message, fix=fix)
        elif others:
            message = f"{folder.name}: {others} is not the dataset's file_ending {ending}, the file is ignored"
            fix = "convert it (`msd convert nnunet`), or correct file_ending"
            yield Problem(severity="error", code="mixed-endings", case=case, message=message, fix=fix)


def _check_label_names(dataset: DatasetFolder, part: Part) -> Iterator[Problem]:
    ending = dataset.info.file_ending
    cases = {case.case for case in dataset.cases(part)}
    folders = [dataset.path / f"labels{part}", dataset.path / f"masks{part}"]
    folders += sorted(path for path in dataset.path.glob(f"labels{part}_*") if path.is_dir())
    for folder in folders:
        for path in _visible_files(folder):
            found = ending_of(path)
            if found and not path.name.endswith(ending):
                message = f"{folder.name}/{path.name} does not end in {ending} and is ignored"
                fix = "convert it, or correct file_ending"
                yield Problem(severity="error", code="mixed-endings", case=_stem(path), message=message, fix=fix)
            elif found and _stem(path) not in cases:
                message = f"{folder.name}/{path.name} belongs to no image in images{part}"
                fix = "add the image, or remove the file"
                yield Problem(severity="warning", code="orphan-label", case=_stem(path), message=message, fix=fix)
        observer = folder.name.partition("_")[2]
        if observer and observer not in dataset.info.extra_labels:
            message = f"{folder.name} is not declared"
            fix = f"add '{observer}' to extra_labels in {DATASET_JSON}"
            yield Problem(severity="note", code="observer-undeclared", message=message, fix=fix)


def _check_known_cases(dataset: DatasetFolder, cases: set[str]) -> Iterator[Problem]:
    for key, mapping in (("groups", dataset.info.groups), ("domains", dataset.info.domains)):
        unknown = sorted(set(mapping) - cases)
        if unknown:
            message = f"{key} names {len(unknown)} cases that are not there: {', '.join(unknown[:5])}"
            yield Problem(severity="warning", code="unknown-case", message=message, fix=f"correct {DATASET_JSON}")
    names = Counter(case.case for part in get_args(Part) for case in dataset.cases(part))
    for case in sorted(case for case, n in names.items() if n > 1):
        message = "several parts of the dataset have a case of this name"
        yield Problem(severity="warning", code="same-name", case=case, message=message, fix="rename one of them")


def _check_links(dataset: DatasetFolder) -> Iterator[Problem]:
    """Links that lead nowhere or in a circle look like files and folders that are not there."""
    for folder in sorted(dataset.path.iterdir()):
        if not folder.name.startswith(("images", "labels", "masks")):
            continue
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in (folder, *inside):
            if path.is_symlink() and not path.exists():
                name = path.relative_to(dataset.path).as_posix()
                message = f"{name!r} is a link that leads nowhere, or in a circle"
                fix = "put the file or folder itself there"
                yield Problem(severity="error", code="broken-link", message=message, fix=fix)


def _check_spelling(cases: set[str]) -> Iterator[Problem]:
    """Names that cannot be written beside, or that another system takes for one and the same."""
    forms: dict[str, list[str]] = {}
    for case in sorted(cases):
        forms.setdefault(unicodedata.normalize("NFC", case).casefold(), []).append(case)
        if not case.isprintable() or len(os.fsencode(case)) > LONGEST_NAME_BYTES:
            message = f"the name {case!r} is too long or has unprintable characters"
            fix = f"use at most {LONGEST_NAME_BYTES} bytes of printable characters"
            yield Problem(severity="error", code="odd-name", case=case, message=message, fix=fix)
    for same in forms.values():
        if len(same) > 1:
            message = f"names that some file systems take for one: {', '.join(map(repr, same))}"
            fix = "rename all but one"
            yield Problem(severity="warning", code="similar-names", case=same[0], message=message, fix=fix)


def _visible_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(ending_of(path))]
