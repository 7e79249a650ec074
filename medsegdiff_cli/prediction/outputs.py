"""Writing the images of one predicted case: the label map and the maps asked for."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.imaging.export import export_labels, export_map
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.reading import ending_of
from medsegdiff_cli.imaging.transform import Placement
from medsegdiff_cli.imaging.writing import write_image, write_label
from medsegdiff_cli.inference.fusion import RunningFusion, entropy
from medsegdiff_cli.prediction.postprocessing import postprocessed
from medsegdiff_cli.prediction.settings import OutputSettings

# Folders of OUTPUT for what is written beside the label maps.
MAP_FOLDERS = ("probabilities", "uncertainty", "members", "steps")
_LOSSLESS = {".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".tif", ".tiff"}
_HOLD_FLOATS = {".nii.gz", ".nii", ".nrrd", ".mha"}


def label_ending(source: Path) -> str:
    """Return the ending of label maps for an input file: its own when lossless, .png for photographs, else NIfTI."""
    ending = "" if source.is_dir() else ending_of(source)
    if ending in _LOSSLESS:
        return ending
    return ".png" if ending in (".jpg", ".jpeg", ".bmp") else ".nii.gz"


def write_case(
    folder: Path,
    case: str,
    ending: str,
    fusion: RunningFusion,
    placement: Placement,
    geometry: Geometry,
    scheme: LabelScheme,
    wanted: OutputSettings,
    steps: Mapping[int, RunningFusion] | None = None,
) -> tuple[np.ndarray, dict[str, str]]:
    """Write everything but the sidecar.

    Args:
        steps: timestep to the fused estimates of that step, for `wanted.steps`.

    Returns:
        the label map (*native) in the dataset's own values, and file name -> sha256 of what was written.
    """

    def written(name: str, found: np.ndarray) -> np.ndarray:
        found = postprocessed(found, scheme, geometry, wanted.postprocessing)
        paths.append(folder / f"{name}{ending}")
        write_label(paths[-1], found, geometry)
        return found

    paths: list[Path] = []
    label = written(case, _fused_label(fusion, placement, scheme))
    map_ending = ending if ending in _HOLD_FLOATS else ".nii.gz"
    for name, values, fill in _maps(fusion, scheme, wanted):
        path = folder / f"{name.replace('CASE', case)}{map_ending}"
        exported_map: np.ndarray = export_map(values, placement, fill=fill).astype(np.float32, copy=False)
        write_image(path, Image(array=exported_map[None], geometry=geometry))
        paths.append(path)
    for part, of_step in (("", fusion), *((f"_t{t:04d}", one) for t, one in (steps or {}).items())):
        if part:
            written(f"steps/{case}{part}", _fused_label(of_step, placement, scheme))
        for number, member in enumerate(of_step.member_labels if wanted.members else ()):
            written(f"members/{case}_{number:03d}{part}", _member_label(member.numpy(), placement, scheme))
    return label, {str(path.relative_to(folder)): atomic.digest_of_file(path) for path in paths}


def _maps(fusion: RunningFusion, scheme: LabelScheme, wanted: OutputSettings) -> list[tuple[str, np.ndarray, float]]:
    """Return (file name, map on the network's grid, value outside the crop) of the maps asked for."""
    maps: list[tuple[str, np.ndarray, float]] = []
    if wanted.probabilities:
        for index, name in enumerate(scheme.class_names):
            is_background = scheme.classes_are_exclusive and index == 0
            file = f"probabilities/CASE_{_file_safe(name)}"
            maps.append((file, fusion.mean[index].numpy(), 1.0 if is_background else 0.0))
    if wanted.uncertainty:
        maps.append(("uncertainty/CASE_entropy", entropy(fusion.mean, scheme.classes_are_exclusive).numpy(), 0.0))
        if fusion.count > 1:
            maps.append(("uncertainty/CASE_variance", fusion.variance.mean(0).numpy(), 0.0))
    return maps


def _fused_label(fusion: RunningFusion, placement: Placement, scheme: LabelScheme) -> np.ndarray:
    """Export what the members say together, (*native) in the dataset's values."""
    return scheme.decode(export_labels(fusion.scores.numpy(), placement, exclusive=scheme.classes_are_exclusive))


def _member_label(member: np.ndarray, placement: Placement, scheme: LabelScheme) -> np.ndarray:
    """Export one member's label map; a member is kept as integers, so its borders follow the voxels."""
    if scheme.classes_are_exclusive:
        scores = np.stack([member == index for index in range(len(scheme.class_names))])
    else:
        scores = np.stack([(member >> index) & 1 for index in range(len(scheme.class_names))])
    exported = export_labels(scores.astype(np.float32), placement, exclusive=scheme.classes_are_exclusive)
    return scheme.decode(exported)


def _file_safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
