"""Medical Segmentation Decathlon: TaskXX_Name folders.

Source: A. L. Simpson et al., arXiv:1902.09063 (2019). The layout has no channel suffix, keeps channels in a fourth
axis, spells labels {"0": "background"}, lists its files in dataset.json, and its archives hold hidden `._*` files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsegdiff_cli.artifacts.dataset_folder import Part
from medsegdiff_cli.artifacts.document import read_json
from medsegdiff_cli.atomic import write_bytes, write_json
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.reading import ending_of
from medsegdiff_cli.imaging.writing import write_image

from .case_source import CaseSource, bare_name, name_cases, visible_files
from .contract import ConversionReport, FormatInfo, Options
from .label_table import table_of_declared
from .phantom import phantom
from .v1_spelling import channel_names_of, labels_by_name, text_of
from .writing_dataset import Declared, write_dataset

FORMAT = FormatInfo(
    name="decathlon",
    title="Medical Segmentation Decathlon (TaskXX_Name)",
    reads=(
        "A folder with dataset.json, imagesTr, labelsTr and, if there, imagesTs. 4-D files become one file a channel; "
        "hidden ._ files are skipped; the training and test lists of dataset.json are followed where they are given. "
        "imagesTs become test cases, or unlabelled training images with --test-as-unlabelled."
    ),
    example="msd convert decathlon Task04_Hippocampus --dataset 4 --name Hippocampus --test-as-unlabelled",
    options=frozenset({"test_as_unlabelled"}),
    licence="CC BY-SA 4.0",
    citation="M. Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128 (2022)",
)


def convert(source: Path, destination: Path, options: Options) -> ConversionReport:
    """Write the dataset folder.

    Raises:
        InputDataError: dataset.json is missing or wrong, a listed file is missing, or a case cannot be used.
    """
    header_file = source / "dataset.json"
    header = read_json(header_file)
    if not isinstance(header, dict) or "labels" not in header:
        raise InputDataError("dataset.json names no labels", where=str(header_file), fix="is this a Decathlon task?")
    listed_training = header.get("training") if isinstance(header.get("training"), list) else []
    listed_test = header.get("test") if isinstance(header.get("test"), list) else []
    training = _files(source, "imagesTr", [_image_of(item, header_file) for item in listed_training or []])
    test_part: Part = "Un" if options.test_as_unlabelled else "Ts"
    has_test = (source / "imagesTs").is_dir()
    test = _files(source, "imagesTs", [_image_of(item, header_file) for item in listed_test or []]) if has_test else []
    labels = {bare_name(path): path for path in visible_files(source / "labelsTr")}
    sources = [_case(name, "Tr", image, labels) for image, name in name_cases(source / "imagesTr", training).items()]
    sources += [_case(name, test_part, image, {}) for image, name in name_cases(source / "imagesTs", test).items()]
    declared = Declared(
        table=table_of_declared(labels_by_name(header["labels"], str(header_file)), None, str(header_file)),
        channel_names=channel_names_of(header),
        description=text_of(header, "description"),
        licence=text_of(header, "licence", "license") or FORMAT.licence,
        citation=FORMAT.citation,
        notes=_notes(source, training, test, has_test=has_test),
        more={key: header[key] for key in ("reference", "release") if isinstance(header.get(key), str)},
    )
    return write_dataset(FORMAT.name, sources, declared, destination, options)


def make_fake_source(folder: Path) -> Options:
    """Write a task of two channels in a fourth axis, with hidden files and a test image."""
    grid = Geometry.plain((6, 8, 10), (2.0, 1.0, 1.0))
    for index, part in enumerate(("Tr", "Tr", "Ts")):
        image, label = phantom(grid.shape, (1, 2), seed=index)
        both = np.concatenate([image, 255 - image])
        write_image(folder / f"images{part}" / f"fake_{index:03d}.nii.gz", Image(array=both, geometry=grid))
        write_bytes(folder / f"images{part}" / f"._fake_{index:03d}.nii.gz", b"resource fork")
        if part == "Tr":
            label_file = folder / "labelsTr" / f"fake_{index:03d}.nii.gz"
            write_image(label_file, Image(array=label.astype(np.float32), geometry=grid))
    training = [
        {"image": f"./imagesTr/fake_{index:03d}.nii.gz", "label": f"./labelsTr/fake_{index:03d}.nii.gz"}
        for index in range(2)
    ]
    header = {
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema", "2": "tumour"},
        "training": training,
        "test": ["./imagesTs/fake_002.nii.gz"],
    }
    write_json(folder / "dataset.json", header)
    return Options()


def _image_of(item: Any, where: Path) -> str:
    image = item.get("image") if isinstance(item, dict) else item
    if not isinstance(image, str):
        raise InputDataError(f"the list of cases has an entry without an image: {item!r}", where=str(where))
    return image


def _files(source: Path, folder: str, listed: Sequence[str]) -> list[Path]:
    """Return the listed files, or all of the folder when none is listed."""
    if not listed:
        return visible_files(source / folder)
    files = [source / folder / Path(name).name for name in listed]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputDataError(
            f"{len(missing)} files listed in dataset.json are missing: {', '.join(f.name for f in missing[:5])}",
            where=str(source / folder),
            fix="complete the download, or remove the lists `training` and `test` to use the files that are there",
        )
    return [file for file in files if ending_of(file) and not file.name.startswith(".")]


def _case(name: str, part: Part, image: Path, labels: Mapping[str, Path]) -> CaseSource:
    label = labels.get(bare_name(image))
    if part == "Tr" and label is None:
        raise InputDataError(
            f"training case '{name}' has no label", where=str(image), fix="add it to labelsTr, or move the image away"
        )
    return CaseSource(case=name, part=part, images=(image,), label=label)


def _notes(source: Path, training: Sequence[Path], test: Sequence[Path], *, has_test: bool) -> tuple[str, ...]:
    notes = [] if has_test else ["there is no imagesTs"]
    for folder, used in (("imagesTr", training), ("imagesTs", test)):
        unlisted = sorted(set(visible_files(source / folder)) - set(used)) if (source / folder).is_dir() else []
        if unlisted:
            notes.append(f"{len(unlisted)} files of {folder} are not listed in dataset.json and were left out")
    return tuple(notes)
