"""Post-processing of a case: the stored steps, applied to a label map on its native grid."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.postprocessing import (
    Dilation,
    Erosion,
    FillHoles,
    KeepComponents,
    LargestComponent,
    MuscleUltrasound,
    Opening,
    RemoveBelow,
    Step,
)
from medsegdiff_cli.errors import InputDataError, UsageError, did_you_mean
from medsegdiff_cli.imaging.image import Geometry
from medsegdiff_cli.imaging.postprocess import (
    MaskChange,
    PaintedClass,
    change_class,
    dilated,
    eroded,
    fill_holes,
    largest_components,
    margin_of,
    muscle_ultrasound,
    opened,
    without_small_components,
)

_WITH_RADIUS = {Erosion: eroded, Dilation: dilated, Opening: opened}


def postprocessed(label: np.ndarray, scheme: LabelScheme, geometry: Geometry, steps: Sequence[Step]) -> np.ndarray:
    """Apply the steps in order, each to its classes in their order.

    Args:
        label: (*native) in the dataset's values.

    Returns:
        a label map of the same shape and dtype; the same object when there is no step.

    Raises:
        InputDataError: millimetres are asked for, and the image has no physical spacing.
    """
    classes = painted_classes(scheme)
    for step in steps:
        change, margin = _change_of(step, geometry)
        for name in step.classes or tuple(classes):
            label = change_class(label, classes, name, change, margin=margin)
    return label


def painted_classes(scheme: LabelScheme) -> dict[str, PaintedClass]:
    """Return the scored classes in the order in which they are painted."""
    values = scheme.file_values()
    paints = [own[0] for own in values.values()] if scheme.region_values is None else scheme.region_values
    return {
        name: PaintedClass(values=own, paint=paint) for (name, own), paint in zip(values.items(), paints, strict=True)
    }


def require_applicable(steps: Sequence[Step], scheme: LabelScheme, n_dims: int) -> None:
    """Refuse steps that no image of this kind could go through, before any work.

    Raises:
        UsageError: an unknown class, or a step for slices on volumes.
    """
    known = tuple(scheme.file_values())
    for step in steps:
        if unknown := [name for name in step.classes or () if name not in known]:
            what = f"the step '{step.step}' is for a class '{unknown[0]}' that the model has not"
            raise UsageError(what, where="postprocessing", fix=did_you_mean(unknown[0], known))
        if isinstance(step, MuscleUltrasound) and n_dims != 2:
            what = f"the step '{step.step}' is for 2D images, these have {n_dims} axes"
            raise UsageError(what, where="postprocessing", fix="leave it out: --postprocess none, or a list of others")


def require_units(steps: Sequence[Step], geometry: Geometry) -> None:
    """Refuse an image that a step's millimetres mean nothing for, before it is predicted.

    Raises:
        InputDataError: see `postprocessed`.
    """
    for step in steps:
        _change_of(step, geometry)


def _change_of(step: Step, geometry: Geometry) -> tuple[MaskChange, tuple[int, ...] | None]:
    """Return what a step does to a mask, and by how many voxels the mask may grow."""
    if isinstance(step, Erosion | Dilation | Opening):
        spacing = (1.0,) * geometry.n_dims if step.radius_mm is None else _physical(geometry, step)
        radius = float(step.radius_mm or step.radius_voxels or 0)
        return partial(_WITH_RADIUS[type(step)], radius=radius, spacing=spacing), margin_of(radius, spacing)
    if isinstance(step, RemoveBelow):
        voxel = 1.0 if step.volume_mm3 is None else float(np.prod(_physical(geometry, step)))
        smallest = float(step.volume_mm3 or step.volume_voxels or 0)
        full = step.connectivity == "full"
        return partial(without_small_components, smallest=smallest, voxel=voxel, full=full), None
    if isinstance(step, LargestComponent | KeepComponents):
        n = step.n if isinstance(step, KeepComponents) else 1
        return partial(largest_components, n=n, full=step.connectivity == "full"), None
    if isinstance(step, FillHoles):
        return fill_holes, None
    # Filling, eroding and opening see the whole slice: its border is the image's, not that of a box.
    chain = partial(muscle_ultrasound, superficial=step.superficial, disks=step.disks)
    return chain, tuple(geometry.shape)


def _physical(geometry: Geometry, step: Step) -> tuple[float, ...]:
    if not geometry.has_physical_spacing:
        raise InputDataError(
            f"the step '{step.step}' is in millimetres, and the image has no physical spacing",
            where="postprocessing",
            fix="give its size in voxels: radius_voxels or volume_voxels (--postprocess)",
        )
    return geometry.spacing_mm
