"""DICOM: every folder below the source that holds one image series becomes a case.

The plain case: one series a folder, evenly spaced slices. Segmentations come as volumes (NIfTI, NRRD, MHA) of the
same name; DICOM SEG and RTSTRUCT are not read.
"""

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from medsegdiff_cli.artifacts.dataset_folder import Part
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.dicom import list_dicom_series
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.writing import write_image

from .case_source import CaseSource, bare_name, is_hidden, safe_name
from .contract import ConversionReport, FormatInfo, Options
from .folder import choose_table, find_files, group_in, pair_labels
from .phantom import phantom
from .test_set import set_aside
from .writing_dataset import Declared, write_dataset

FORMAT = FormatInfo(
    name="dicom",
    title="DICOM series, one a folder",
    reads=(
        "Folders with one DICOM image series each, at any depth; the path below the source names the case, for example "
        "patient1_ct for patient1/ct. --labels is a glob of volumes named like the cases (default labels/*). Series "
        "without a label become unlabelled. The modality in the files names the channel, so CT is normalised as CT."
    ),
    example="msd convert dicom export --dataset 21 --name Liver --labels 'labels/*.nii.gz' --label-map 1:liver",
    options=frozenset(
        {"labels", "label_suffix", "label_map", "threshold", "group_regex", "test_list", "test_count", "seed"}
    ),
)
_MODALITY = "0008|0060"


def convert(source: Path, destination: Path, options: Options) -> ConversionReport:
    """Write the dataset folder.

    Raises:
        InputDataError: no series, several in one folder, a damaged one, or a label without a series.
    """
    names = series_folders(source)
    if not names:
        raise InputDataError("no DICOM series below this folder", where=str(source), fix="check the path")
    candidates = find_files(source, options.labels or "labels/*")
    label_files = [path for path in candidates if bare_name(path).endswith(options.label_suffix)]
    # Cases are paired by name: a stand-in path gives each series folder its case name as file name.
    stand_ins = {source / name: name for name in names.values()}
    folder_of = {source / name: folder for folder, name in names.items()}
    labels = pair_labels(stand_ins, label_files, options.label_suffix)
    sources = []
    for stand_in, name in stand_ins.items():
        label = labels.get(stand_in)
        part: Part = "Un" if label is None else "Tr"
        group = group_in(stand_in, options.group_regex)
        sources.append(CaseSource(case=name, part=part, images=(folder_of[stand_in],), label=label, group=group))
    sources, notes = set_aside(sources, options)
    declared = Declared(
        table=choose_table([case.label for case in sources if case.label], options),
        channel_names=None if options.channel_names else (_modality_of(list(names)),),
        notes=notes,
    )
    return write_dataset(FORMAT.name, sources, declared, destination, options)


def make_fake_source(folder: Path) -> Options:
    """Write two CT series of two patients and a NIfTI label for the first."""
    grid = Geometry.plain((5, 16, 12), (2.5, 0.7, 0.7))
    for index, case in enumerate(("patient1/ct", "patient2/ct")):
        image, label = phantom(grid.shape, (1,), seed=index)
        _write_series(
            folder / case, image[0].astype(np.int16) - 100, grid, uid=f"1.2.826.0.1.3680043.2.1125.{index + 1}"
        )
        if index == 0:
            write_image(folder / "labels" / "patient1_ct.nii.gz", Image(array=label, geometry=grid))
    return Options(label_map={1: "liver"})


def _write_series(folder: Path, voxels: np.ndarray, grid: Geometry, uid: str) -> None:
    folder.mkdir(parents=True)
    for index, voxels_2d in enumerate(voxels):
        native = sitk.GetImageFromArray(voxels_2d[np.newaxis])
        native.SetSpacing(grid.spacing_mm[::-1])
        native.SetOrigin((0.0, 0.0, index * grid.spacing_mm[0]))
        tags = {
            _MODALITY: "CT",
            "0020|000e": uid,
            "0020|000d": uid,
            "0008|0018": f"{uid}.{index}",
            "0020|0013": str(index),
            "0020|0032": f"0\\0\\{index * grid.spacing_mm[0]}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            native.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"slice{index:02d}.dcm"))
        writer.Execute(native)


def series_folders(source: Path) -> dict[Path, str]:
    """Return the folders that hold a series and their case names, sorted.

    Raises:
        InputDataError: two folders would be called the same.
    """
    folders = [source, *sorted(path for path in source.rglob("*") if path.is_dir() and not is_hidden(source, path))]
    found: dict[Path, str] = {}
    for folder in folders:
        if any(path.is_file() for path in folder.iterdir()) and list_dicom_series(folder):
            name = safe_name("_".join(folder.relative_to(source).parts) or source.name)
            if name in found.values():
                raise InputDataError(f"two folders would be case '{name}'", where=str(folder), fix="rename one")
            found[folder] = name
    return found


def _modality_of(folders: list[Path]) -> str:
    """Return the one modality of all series, from each folder's first file.

    Raises:
        InputDataError: the series are of several modalities.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(list_dicom_series(folder)[0].files[0]))
        reader.SetImageIO("GDCMImageIO")
        try:
            reader.ReadImageInformation()
            modality = reader.GetMetaData(_MODALITY).strip() if reader.HasMetaDataKey(_MODALITY) else ""
        except RuntimeError:
            # The shared writer reads the file next and reports it with its case.
            continue
        found.setdefault(modality or "image", folder)
    if len(found) > 1:
        raise InputDataError(
            f"series of several modalities: {', '.join(sorted(found))}",
            where=", ".join(str(folder) for folder in found.values()),
            fix="convert them into separate datasets, or name the channel yourself (--channel)",
        )
    return next(iter(found), "image")
