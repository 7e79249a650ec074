"""`msd preview`: a contact sheet of a dataset, or of predictions over their images beside the reference."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, DatasetFolder, Part, open_dataset
from medsegdiff_cli.artifacts.prediction_folder import PredictionInfo, read_prediction_info, read_sidecar
from medsegdiff_cli.artifacts.scores import read_scores
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.image import Image
from medsegdiff_cli.imaging.reading import case_name_of, ending_of, read_image, read_label
from medsegdiff_cli.paths import (
    DATASET_JSON,
    PICTURES,
    PREDICTION_JSON,
    PREVIEW_PNG,
    SUMMARY_JSON,
    Workspace,
    find_dataset,
)
from medsegdiff_cli.reporting.contact_sheet import SheetItem, contact_sheet, item_of_case, sheet_items_of_dataset

log = logging.getLogger(__name__)

_PARTS: tuple[Part, ...] = ("Ts", "Tr", "Un")


def draw_preview(target: str, workspace: Workspace, output: Path | None = None, count: int = 12) -> Path:
    """Draw a dataset (id, name or path) or a prediction folder.

    Args:
        output: PNG; None writes `preview.png` into the folder shown.
        count: cases shown, spread evenly; scored predictions from the worst to the best.

    Returns:
        the picture's path.

    Raises:
        UsageError: the target is neither. InputDataError: nothing in it can be shown.
    """
    path = Path(target).expanduser()
    if output is not None and output.suffix.lower() != ".png":
        raise UsageError(f"'{output.name}' is no PNG", where="--output", fix="choose a name that ends in .png")
    if (path / PREDICTION_JSON).is_file():
        picture = output or path / PREVIEW_PNG
        info = read_prediction_info(path)
        contact_sheet(_items_of_predictions(path, info, count), info.classes, picture)
        return picture
    if path.is_dir() and not (path / DATASET_JSON).is_file():
        raise UsageError(
            f"'{target}' is neither a dataset nor a prediction folder",
            where=str(path),
            fix=f"give a folder with {DATASET_JSON} or {PREDICTION_JSON}",
        )
    dataset = open_dataset(find_dataset(target, workspace))
    items = sheet_items_of_dataset(dataset, count)
    if not items:
        raise InputDataError("the dataset has no image", where=str(dataset.path), fix="see `msd check`")
    picture = output or dataset.path / PREVIEW_PNG
    contact_sheet(items, dataset.label_scheme().file_values(), picture)
    return picture


def _items_of_predictions(folder: Path, info: PredictionInfo, count: int) -> list[SheetItem]:
    """Return the predictions whose images are found in the dataset, each beside its reference where there is one.

    Raises:
        InputDataError: no prediction has a known image.
    """
    predictions = {case_name_of(path): path for path in sorted(folder.iterdir()) if path.is_file() and _is_label(path)}
    known = _known_cases(Path(info.dataset_path))
    showable = [case for case in predictions if case in known and _is_input(folder, case, known[case])]
    if not showable:
        raise InputDataError(
            f"none of the {len(predictions)} predictions has a known image",
            where=str(folder),
            fix=f"images are looked up by case name in the dataset that was trained on ({info.dataset_path})",
        )
    if len(showable) < len(predictions):
        log.info(
            "%d of %d predictions have no known image and are left out",
            len(predictions) - len(showable),
            len(predictions),
        )
    dice = _dice_of_cases(folder)
    showable.sort(key=lambda case: dice.get(case, -1.0))
    chosen = [showable[int(i)] for i in np.linspace(0, len(showable) - 1, min(count, len(showable))).round()]
    has_reference = any(known[case].label is not None for case in chosen)
    return [_item(case, predictions[case], known[case], dice, beside_reference=has_reference) for case in chosen]


def _item(
    case: str, prediction: Path, files: CaseFiles, dice: Mapping[str, float], *, beside_reference: bool
) -> SheetItem:
    """Return prediction and reference on the same slice: the one on which most of either lies."""
    try:
        image, predicted = read_image(files.images[0]), read_label(prediction)
        reference = None if files.label is None else read_label(files.label)
    except InputDataError as error:
        return SheetItem(title=case, panels=(), note=f"cannot be read: {error.what}")
    if reference is not None and reference.geometry.shape != predicted.geometry.shape:
        return SheetItem(title=case, panels=(), note="prediction and reference differ in shape")
    # One number a voxel holds both labels, so that both are cut at one slice.
    base = int(predicted.array.max()) + 1
    both: np.ndarray = predicted.array.astype(np.int64) + (
        0 if reference is None else base * reference.array.astype(np.int64)
    )
    note = f"Dice {dice[case]:.3f}" if case in dice else ""
    item = item_of_case(case, image, Image(array=both, geometry=predicted.geometry), note=note)
    panels = []
    for panel in item.panels:
        codes = np.zeros(panel.image.shape[:2], np.int64) if panel.label is None else panel.label
        panels.append(replace(panel, label=codes % base, caption=_caption("prediction", panel.caption)))
        if beside_reference:
            word = "reference" if reference is not None else "no reference"
            panels.append(replace(panel, label=None if reference is None else codes // base, caption=word))
    return replace(item, panels=tuple(panels))


def _caption(word: str, where: str) -> str:
    return f"{word}, {where}" if where else word


def _is_label(path: Path) -> bool:
    # The preview is our own picture, not a case.
    return bool(ending_of(path)) and not path.name.startswith(".") and path.name not in PICTURES


def _known_cases(dataset: Path) -> dict[str, CaseFiles]:
    if not (dataset / DATASET_JSON).is_file():
        return {}
    folder: DatasetFolder = open_dataset(dataset)
    # Earlier parts win: a test case may be among the unlabelled images too.
    return {case.case: case for part in reversed(_PARTS) for case in folder.cases(part)}


def _is_input(folder: Path, case: str, files: CaseFiles) -> bool:
    """Return whether the dataset's image is the one that was predicted, as far as the sidecar tells."""
    sidecar = read_sidecar(folder, case)
    return sidecar is None or _digests(files.images) <= set(sidecar.input_digests.values())


def _digests(paths: Sequence[Path]) -> set[str]:
    return {atomic.digest_of_file(path) for path in paths}


def _dice_of_cases(folder: Path) -> dict[str, float]:
    """Return each case's mean Dice over classes, where the predictions were evaluated."""
    if not (folder / SUMMARY_JSON).is_file():
        return {}
    means = {}
    for case in read_scores(folder).cases:
        values = [score.dice for score in case.classes if score.dice is not None]
        if values:
            means[case.case] = sum(values) / len(values)
    return means
