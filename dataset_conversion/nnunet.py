"""nnU-Net raw datasets: version 2, version 2 with an explicit `dataset` listing, and version 1's spelling.

A version 2 dataset needs no conversion: every command takes it as it is. Converting it renumbers its labels to
consecutive values, changes the file ending, or brings a version 1 task up to date. Regions and ignore are kept.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, DatasetFolder, DatasetJson, Part
from medsegdiff_cli.artifacts.document import read_json, validate
from medsegdiff_cli.atomic import write_json
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.reading import IMAGE_ENDINGS
from medsegdiff_cli.imaging.writing import write_image

from .case_source import CaseSource, safe_name
from .contract import ConversionReport, FormatInfo, Options
from .label_table import table_of_declared
from .phantom import phantom
from .v1_spelling import channel_names_of, labels_by_name, text_of
from .writing_dataset import Declared, write_dataset

FORMAT = FormatInfo(
    name="nnunet",
    title="nnU-Net raw dataset (v1 or v2)",
    reads=(
        "A folder with dataset.json, imagesTr/CASE_0000.nii.gz (a file a channel), labelsTr/CASE.nii.gz and, if there, "
        "imagesTs with or without labelsTs, imagesUn, masksTr/Ts/Un and labelsTr_OBSERVER. The explicit listing "
        "`dataset` and version 1's `modality` and labels {'0': 'background'} are understood. imagesTs become "
        "unlabelled training images with --test-as-unlabelled."
    ),
    example="msd convert nnunet Task005_Prostate --dataset 5 --name Prostate",
    options=frozenset({"test_as_unlabelled"}),
)
_KEPT_KEYS = ("reference", "release", "unlabelled_test_overlap", "synthetic")


def convert(source: Path, destination: Path, options: Options) -> ConversionReport:
    """Write the dataset folder.

    Raises:
        InputDataError: dataset.json is missing or wrong, or a case cannot be used.
    """
    header_file = source / "dataset.json"
    header = read_json(header_file)
    if not isinstance(header, dict) or "labels" not in header:
        fix = "give the folder that holds dataset.json, imagesTr and labelsTr"
        raise InputDataError("dataset.json names no labels", where=str(header_file), fix=fix)
    labels = labels_by_name(header["labels"], str(header_file))
    folder = DatasetFolder(path=source, info=_as_v2(source, header, labels))
    found: list[CaseSource] = []
    for part in get_args(Part):
        target: Part = "Un" if part == "Ts" and options.test_as_unlabelled else part
        found += [_case(source, folder, case, part, target) for case in folder.cases(part)]
    declared = Declared(
        table=table_of_declared(labels, header.get("regions_class_order"), str(header_file)),
        channel_names=channel_names_of(header),
        description=text_of(header, "description"),
        licence=text_of(header, "licence", "license"),
        citation=text_of(header, "citation"),
        more={key: header[key] for key in _KEPT_KEYS if isinstance(header.get(key), str | bool)},
    )
    return write_dataset(FORMAT.name, found, declared, destination, options)


def make_fake_source(folder: Path) -> Options:
    """Write a version 2 dataset with arbitrary label values, overlapping regions, ignore, and all kinds of parts."""
    grid = Geometry.plain((6, 8, 18), (3.0, 0.5, 0.5))
    for index, part in enumerate(("Tr", "Tr", "Ts", "Un")):
        image, label = phantom(grid.shape, (205, 420, 500), seed=index)
        for channel, array in enumerate((image, 255 - image)):
            write_image(folder / f"images{part}" / f"fake{index}_{channel:04d}.nrrd", Image(array=array, geometry=grid))
        if part != "Un":
            write_image(folder / f"labels{part}" / f"fake{index}.nrrd", Image(array=label, geometry=grid))
    header = {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "whole": [205, 420], "core": [420], "ignore": 500},
        "regions_class_order": [205, 420],
        "numTraining": 2,
        "file_ending": ".nrrd",
        "groups": {"fake0": "patientA", "fake1": "patientB"},
    }
    write_json(folder / "dataset.json", header)
    return Options()


def _as_v2(source: Path, header: Mapping[str, Any], labels: Mapping[str, Any]) -> DatasetJson:
    names = channel_names_of(header) or ("image",)
    content = {
        **header,
        "labels": labels,
        "channel_names": {str(index): name for index, name in enumerate(names)},
        "file_ending": header.get("file_ending") or _ending_in(source),
        "numTraining": header.get("numTraining", 0),
    }
    # Version 1 writes lists and numbers under keys that version 2 does not read.
    content = {key: value for key, value in content.items() if key not in ("training", "test", "modality", "name")}
    return validate(DatasetJson, content, str(source / "dataset.json"), InputDataError)


def _ending_in(source: Path) -> str:
    names = [path.name for path in sorted((source / "imagesTr").glob("[!.]*"))] if source.is_dir() else []
    return next((ending for name in names[:1] for ending in IMAGE_ENDINGS if name.lower().endswith(ending)), ".nii.gz")


def _case(source: Path, folder: DatasetFolder, case: CaseFiles, part: Part, target: Part) -> CaseSource:
    if part == "Tr" and case.label is None:
        fix = "add it to labelsTr, or move its images to imagesUn"
        raise InputDataError(f"training case '{case.case}' has no label", where=str(case.images[0]), fix=fix)
    info = folder.info
    extra = {
        observer: path
        for observer in info.extra_labels
        if (path := source / f"labels{part}_{observer}" / f"{case.case}{info.file_ending}").is_file()
    }
    return CaseSource(
        case=safe_name(case.case),
        part=target,
        images=case.images,
        label=case.label if target != "Un" else None,
        extra_labels=extra if target != "Un" else {},
        mask=case.mask,
        group=info.groups.get(case.case, ""),
        domain=case.domain,
    )
