"""From the native grid to the network's grid: one function for the training store and for prediction.

The order is nnU-Net's: transpose, crop, normalise, resample; then a centre crop or padding to a fixed size.
What is needed to go back (`imaging.export`) is the `Placement`, plain data that is stored beside the voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.crop import (
    Box,
    box_shape,
    centre_crop_box,
    crop,
    mask_bounding_box,
    nonzero_bounding_box,
    nonzero_mask,
    whole_box,
)
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.normalise import needs_mask, normalise_channel
from medsegdiff_cli.imaging.resample import Interpolation, resize_image, resize_labels, should_separate_z


@dataclass(frozen=True, kw_only=True)
class ChannelScheme:
    """Normalisation of one channel.

    Attributes:
        scheme: a key of `imaging.normalise.SCHEMES`.
        use_mask: normalise inside the case's mask (where none is given: inside its non-zero voxels).
        statistics: of the data set's foreground, as the scheme needs them.
    """

    name: str
    scheme: str
    use_mask: bool = False
    statistics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TransformSettings:
    """All that decides how a case comes onto the network's grid; axes are in transposed order.

    `spacing_mm`, `size_voxels` and `centre_crop` may be shorter than the image has axes: they then speak of its
    last axes. An axis without an entry, or with None, keeps the case's own spacing and size (the slices of a 2D
    configuration of volumes).

    Attributes:
        transpose: array axis of the native image that becomes each axis.
        crop: cut to the bounding box of the non-zero voxels, of the case's mask, or not at all.
        geometry: "spacing" resamples to `spacing_mm`, "resize" maps the whole (cropped) image to `size_voxels`.
        keep_aspect: with "resize", keep the physical aspect and pad with 0 instead of stretching.
        interpolation: of the image; labels always follow nnU-Net's rule.
        centre_crop: fixed size cut from the centre at the end, padded with 0 where the image is smaller.
        channel_copies: the result holds the channels so many times, one block after the other.
        store_dtype: dtype of the result, in training and prediction alike.
    """

    transpose: tuple[int, ...]
    crop: Literal["nonzero", "none", "mask"]
    channels: tuple[ChannelScheme, ...]
    geometry: Literal["spacing", "resize"]
    spacing_mm: tuple[float | None, ...] | None = None
    size_voxels: tuple[int | None, ...] | None = None
    keep_aspect: bool = False
    interpolation: Interpolation = "cubic"
    centre_crop: tuple[int | None, ...] | None = None
    channel_copies: int = 1
    store_dtype: Literal["float16", "float32"] = "float32"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the network's grid lies in the native image; all but `geometry` is in transposed order.

    Attributes:
        geometry: of the native image.
        transpose: native axis that became each axis.
        crop_box: part of the transposed image that was resampled.
        resampled_shape: voxels of that part after resampling.
        window: box of the resampled part that is the grid; beyond it (start < 0 and so on) the grid is padding.
        spacing_mm: of the grid.
        nearest_axis: axis whose scores go back to the native grid by nearest neighbour (nnU-Net's separate z).
    """

    geometry: Geometry
    transpose: tuple[int, ...]
    crop_box: Box
    resampled_shape: tuple[int, ...]
    window: Box
    spacing_mm: tuple[float, ...]
    nearest_axis: int | None

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Voxels per axis of the network's grid."""
        return box_shape(self.window)

    def to_json(self) -> dict[str, Any]:
        """Return plain data from which `from_json` restores an equal placement."""
        return {
            "geometry": self.geometry.to_json(),
            "transpose": list(self.transpose),
            "crop_box": [[edge.start, edge.stop] for edge in self.crop_box],
            "resampled_shape": list(self.resampled_shape),
            "window": [[edge.start, edge.stop] for edge in self.window],
            "spacing_mm": list(self.spacing_mm),
            "nearest_axis": self.nearest_axis,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Placement":
        """Restore a placement from `to_json`."""
        return cls(
            geometry=Geometry.from_json(content["geometry"]),
            transpose=tuple(content["transpose"]),
            crop_box=tuple(slice(*edge) for edge in content["crop_box"]),
            resampled_shape=tuple(content["resampled_shape"]),
            window=tuple(slice(*edge) for edge in content["window"]),
            spacing_mm=tuple(content["spacing_mm"]),
            nearest_axis=content["nearest_axis"],
        )


@dataclass(frozen=True, kw_only=True)
class Transformed:
    """A case on the network's grid.

    Attributes:
        image: (channel, *grid) of the settings' store_dtype; of every copy of the channels.
        label: (*grid) integers, or None.
    """

    image: np.ndarray
    label: np.ndarray | None
    placement: Placement

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel edges on the grid."""
        return self.placement.spacing_mm


def forward(
    image: Image,
    settings: TransformSettings,
    *,
    label: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> Transformed:
    """Bring a case onto the network's grid.

    Args:
        image: the case in its native grid.
        label: (*spatial) integers on the same grid.
        mask: (*spatial) bool on the same grid; for cropping and normalisation only.

    Raises:
        InputDataError: channels, label or mask do not fit, or a channel cannot be normalised.
    """
    _check_inputs(image, settings, label, mask)
    order = settings.transpose
    array = image.array.transpose(0, *(axis + 1 for axis in order))
    mask = None if mask is None else mask.astype(bool, copy=False).transpose(order)
    spacing_mm = tuple(image.geometry.spacing_mm[axis] for axis in order)
    box = _crop_box(array, mask, settings)
    cropped_shape = box_shape(box)
    resampled_shape, window = _target(cropped_shape, spacing_mm, settings)
    grid_spacing_mm = _grid_spacing(cropped_shape, spacing_mm, resampled_shape, settings)
    separates = settings.geometry == "spacing"

    normalised = _normalise(array, mask, box, settings.channels)
    forward_axis = should_separate_z(spacing_mm, grid_spacing_mm) if separates else None
    resampled = resize_image(
        normalised, resampled_shape, nearest_axis=forward_axis, interpolation=settings.interpolation
    )
    grid_label = None
    if label is not None:
        native_label = np.ascontiguousarray(crop(label.transpose(order), box))
        resampled_label = resize_labels(native_label, resampled_shape, nearest_axis=forward_axis)
        grid_label = np.array(crop(resampled_label, window), order="C")
    placement = Placement(
        geometry=image.geometry,
        transpose=order,
        crop_box=box,
        resampled_shape=resampled_shape,
        window=window,
        spacing_mm=grid_spacing_mm,
        nearest_axis=should_separate_z(grid_spacing_mm, spacing_mm) if separates else None,
    )
    rounded = _rounded(crop(resampled, window), settings.store_dtype)
    return Transformed(
        image=rounded if settings.channel_copies == 1 else np.concatenate([rounded] * settings.channel_copies),
        label=grid_label,
        placement=placement,
    )


def grid_shape(shape: Sequence[int], spacing_mm: Sequence[float], settings: TransformSettings) -> tuple[int, ...]:
    """Return the grid's shape (transposed order) for a native shape and spacing, without touching voxels.

    Args:
        shape: native axis order; after cropping, where the settings crop.
        spacing_mm: native axis order.
    """
    order = settings.transpose
    _, window = _target(tuple(shape[a] for a in order), tuple(spacing_mm[a] for a in order), settings)
    return box_shape(window)


def _check_inputs(image: Image, settings: TransformSettings, label: np.ndarray | None, mask: np.ndarray | None) -> None:
    if len(settings.transpose) != image.geometry.n_dims:
        raise InputDataError(
            f"the image has {image.geometry.n_dims} axes, the plan expects {len(settings.transpose)}",
            fix="give images of the kind the plan was made for",
        )
    if len(settings.channels) != image.array.shape[0]:
        names = ", ".join(channel.name for channel in settings.channels)
        raise InputDataError(
            f"the image has {image.array.shape[0]} channels, the plan expects {len(settings.channels)} ({names})",
            fix="give one image per channel, in the plan's order",
        )
    for what, array in (("label", label), ("mask", mask)):
        if array is not None and array.shape != image.geometry.shape:
            raise InputDataError(
                f"the {what}'s shape {array.shape} differs from the image's {image.geometry.shape}",
                fix="run `msd check` on the dataset",
            )
    if settings.crop == "mask" and mask is None:
        raise InputDataError(
            "the plan crops to a mask and the case has none",
            fix="put the case's mask into masksTr, masksTs or masksUn (when predicting: name its folder with --masks), "
            "or set crop: nonzero in the plan",
        )


def _crop_box(array: np.ndarray, mask: np.ndarray | None, settings: TransformSettings) -> Box:
    if settings.crop == "nonzero":
        return nonzero_bounding_box(array)
    if settings.crop == "mask" and mask is not None:
        return mask_bounding_box(mask)
    return whole_box(array.shape[1:])


def _for_all_axes(entries: Sequence[Any] | None, n_axes: int) -> tuple[Any, ...]:
    """Return one entry per axis; those given speak of the last axes."""
    given = tuple(entries or ())
    return (None,) * (n_axes - len(given)) + given


def _target(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], settings: TransformSettings
) -> tuple[tuple[int, ...], Box]:
    """Return the shape after resampling and the window of it that becomes the grid."""
    n_axes = len(shape)
    if settings.geometry == "spacing":
        target_mm = _for_all_axes(settings.spacing_mm, n_axes)
        resampled = tuple(
            n if new is None else max(1, round(old / new * n))
            for n, old, new in zip(shape, spacing_mm, target_mm, strict=True)
        )
        window = whole_box(resampled)
    else:
        size = _filled(_for_all_axes(settings.size_voxels, n_axes), shape)
        resampled = _within(shape, spacing_mm, size, settings) if settings.keep_aspect else size
        window = centre_crop_box(resampled, size)
    if settings.centre_crop is None:
        return resampled, window
    padded = box_shape(window)
    centre = centre_crop_box(padded, _filled(_for_all_axes(settings.centre_crop, n_axes), padded))
    shifted = (slice(w.start + c.start, w.start + c.stop) for w, c in zip(window, centre, strict=True))
    return resampled, tuple(shifted)


def _filled(entries: Sequence[int | None], shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n if entry is None else entry for entry, n in zip(entries, shape, strict=True))


def _within(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], size: tuple[int, ...], settings: TransformSettings
) -> tuple[int, ...]:
    """Return the largest shape within `size` of the image's physical aspect; axes without an entry are left out."""
    resized = [entry is not None for entry in _for_all_axes(settings.size_voxels, len(shape))]
    extents_mm = [n * s for n, s in zip(shape, spacing_mm, strict=True)]
    voxels_per_mm = min((m / e for m, e, used in zip(size, extents_mm, resized, strict=True) if used), default=1.0)
    return tuple(
        min(m, max(1, round(e * voxels_per_mm))) if used else m
        for m, e, used in zip(size, extents_mm, resized, strict=True)
    )


def _grid_spacing(
    shape: tuple[int, ...],
    spacing_mm: tuple[float, ...],
    resampled_shape: tuple[int, ...],
    settings: TransformSettings,
) -> tuple[float, ...]:
    """Return the grid's voxel edges: the plan's own for "spacing" (as nnU-Net), else extent by voxels."""
    if settings.geometry == "spacing":
        target_mm = _for_all_axes(settings.spacing_mm, len(shape))
        return tuple(float(old if new is None else new) for old, new in zip(spacing_mm, target_mm, strict=True))
    return tuple(float(s * n / m) for s, n, m in zip(spacing_mm, shape, resampled_shape, strict=True))


def _normalise(array: np.ndarray, mask: np.ndarray | None, box: Box, channels: tuple[ChannelScheme, ...]) -> np.ndarray:
    """Return the normalised crop, (channel, *cropped) float32.

    The non-zero mask is that of the whole image (nnU-Net fills holes before it crops).
    """
    inside = mask
    if mask is None and any(channel.use_mask and not needs_mask(channel.scheme) for channel in channels):
        inside = nonzero_mask(array)
    inside = None if inside is None else crop(inside, box)
    cropped = crop(array, box)
    out = np.empty(cropped.shape, np.float32)
    for index, channel in enumerate(channels):
        given = (None if mask is None else inside) if needs_mask(channel.scheme) else inside
        uses_mask = channel.use_mask or needs_mask(channel.scheme)
        out[index] = normalise_channel(
            cropped[index], channel.scheme, mask=given if uses_mask else None, statistics=channel.statistics
        )
    return out


def _rounded(image: np.ndarray, store_dtype: str) -> np.ndarray:
    """Return a contiguous copy in the store's dtype; float16 saturates instead of overflowing."""
    if store_dtype == "float16":
        largest = np.finfo(np.float16).max
        image = np.clip(image, -largest, largest)
    return np.ascontiguousarray(image, dtype=store_dtype)
