"""Random transforms of training patches: nnU-Net's list, order and probabilities by default.

Spatial parameters are drawn first, so that only as much of the case is read as they need, and applied to coordinates
that batchgenerators interpolates; the intensity transforms are batchgenerators' own. Those draw from the global random
generators of numpy and Python, which are therefore seeded for each patch and put back afterwards.

Differs from nnU-Net: the region read is exactly as large as rotation and scaling need, so they never meet a border that
lies inside of the image. `noise_variance` is used as a standard deviation, as in nnU-Net and batchgenerators.
"""

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from medsegdiff_cli.artifacts.recipe import AugmentationSettings
from medsegdiff_cli.errors import UsageError

# nnU-Net's ANISO_THRESHOLD: beyond it a 3D patch is rotated and scaled within its slices only.
_ANISOTROPY_THRESHOLD = 3
# Beyond this ratio of edges nnU-Net rotates a 2D patch by 15 degrees at most.
_LONG_PATCH_RATIO = 1.5


@dataclass(frozen=True, kw_only=True)
class SpatialDraw:
    """The spatial parameters of one patch.

    Attributes:
        angles_rad: rotation about each axis in 3D; one angle within the plane.
        scale: factor on coordinates; below 1 structures grow.
        shift_voxels: by how much the patch moves.
        margins_voxels: what has to be read beyond the patch on both sides of each axis.
        border_crop: share of each axis that is cut off at its beginning and at its end; empty for none.
    """

    angles_rad: tuple[float, ...]
    scale: float
    shift_voxels: tuple[int, ...]
    margins_voxels: tuple[int, ...]
    border_crop: tuple[tuple[float, float], ...] = ()

    @property
    def moves_coordinates(self) -> bool:
        """Whether anything has to be interpolated."""
        return self.scale != 1.0 or any(self.angles_rad) or bool(self.border_crop)


class Augmenter:
    """Draws and applies random transforms.

    Args:
        patch_size: edges of the patch, 2 or 3 axes.
        mirror_axes: axes of the patch along which it may be mirrored, unless the settings name others.

    Raises:
        UsageError: ranges for another number of axes, or an axis that the patch does not have.
    """

    def __init__(
        self, settings: AugmentationSettings, patch_size: tuple[int, ...], mirror_axes: tuple[int, ...]
    ) -> None:
        self.settings = settings
        self.patch_size = patch_size
        self._in_plane = len(patch_size) == 2 or max(patch_size) / patch_size[0] > _ANISOTROPY_THRESHOLD
        self._largest_angle_rad = np.deg2rad(_rotation_degrees(settings, patch_size, self._in_plane))
        self._largest_shift = _largest_shift(settings, len(patch_size))
        mirrored = _mirrored_axes(settings, len(patch_size), mirror_axes)
        self._intensity = _intensity_transforms(settings, self._in_plane and len(patch_size) == 3)
        self._mirror = _mirroring(mirrored)

    def draw(self, rng: np.random.Generator) -> SpatialDraw:
        """Draw the spatial parameters; every parameter takes its numbers whether it is used or not."""
        s, n_dims = self.settings, len(self.patch_size)
        uniform = rng.uniform(size=3)
        angles = rng.uniform(-self._largest_angle_rad, self._largest_angle_rad, size=1 if self._in_plane else 3)
        scale = _from_either_side_of_one(rng, s.scaling)
        shift = np.rint(rng.uniform(-self._largest_shift, self._largest_shift, size=n_dims)).astype(int)
        angles = angles if uniform[0] < s.p_rotation else np.zeros_like(angles)
        scale = scale if uniform[1] < s.p_scaling else 1.0
        shift = shift if uniform[2] < s.p_translation else np.zeros_like(shift)
        bordered, borders = rng.uniform() < s.p_border_crop, rng.uniform(0, s.border_crop, size=(n_dims, 2))
        cropped, positions = rng.uniform() < s.p_crop, rng.uniform(size=(n_dims, 2))
        borders = borders if bordered else np.zeros_like(borders)
        borders = _cropped_further(borders, positions, s.crop) if cropped else borders
        drawn = SpatialDraw(
            angles_rad=tuple(angles.tolist()),
            scale=scale,
            shift_voxels=tuple(shift.tolist()),
            margins_voxels=(0,) * n_dims,
            border_crop=tuple((low, high) for low, high in borders.tolist()) if bordered or cropped else (),
        )
        if not drawn.moves_coordinates:
            return drawn
        return replace(drawn, margins_voxels=_margins(_matrix(drawn), self.patch_size))

    def __call__(
        self,
        image: np.ndarray,
        label: np.ndarray | None,
        drawn: SpatialDraw,
        seed: int,
        mirror_seed: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Transform one patch.

        Args:
            image: float32 (channel, *region), region = patch + margins on both sides.
            label: integers (1, *region), or None.
            drawn: the parameters that the region was cut for.
            seed: of the intensity transforms and of mirroring.
            mirror_seed: of mirroring, where it has one of its own.

        Returns:
            image (channel, *patch) and label (1, *patch) of the same dtypes.
        """
        if drawn.moves_coordinates:
            image, label = _interpolate(image, label, drawn, self.patch_size, self.settings.order)
        if not self._intensity and self._mirror is None:
            return image, label
        content: dict[str, Any] = {"data": image[None]}
        if label is not None:
            content["seg"] = label[None]
        with _seeded_global_generators(seed):
            for transform in self._intensity:
                content = transform(**content)
            if self._mirror is not None:
                if mirror_seed is not None:
                    np.random.seed(mirror_seed % 2**32)
                content = self._mirror(**content)
        return content["data"][0], content["seg"][0] if label is not None else None


def _cropped_further(borders: np.ndarray, positions: np.ndarray, least_kept: float) -> np.ndarray:
    """Return the shares (axis, side) that are cut off when what is left between `borders` is cropped.

    Args:
        positions: numbers in [0, 1), (axis, 2): where between its bounds the crop begins, and how large it is.
    """
    begins = positions[:, 0] * (1 - least_kept)
    kept = least_kept + positions[:, 1] * (1 - begins - least_kept)
    left = 1 - borders.sum(1)
    return borders + left[:, None] * np.stack([begins, 1 - begins - kept], axis=1)


def _mirrored_axes(settings: AugmentationSettings, n_dims: int, planned: tuple[int, ...]) -> tuple[int, ...]:
    if not settings.mirror:
        return ()
    if settings.mirror_axes is None:
        return planned
    if any(not 0 <= axis < n_dims for axis in settings.mirror_axes):
        raise UsageError(
            f"patches of {n_dims} axes cannot be mirrored along {list(settings.mirror_axes)}",
            where="augmentation.mirror_axes",
            fix=f"use 0 to {n_dims - 1}",
        )
    return settings.mirror_axes


def _largest_shift(settings: AugmentationSettings, n_dims: int) -> np.ndarray:
    given = settings.translation_voxels
    if isinstance(given, tuple) and len(given) != n_dims:
        raise UsageError(
            f"{len(given)} ranges of translation for patches of {n_dims} axes",
            where="augmentation.translation_voxels",
            fix="give one range, or one of each axis (z, y, x)",
        )
    return np.broadcast_to(np.asarray(given, dtype=float), (n_dims,))


def _rotation_degrees(settings: AugmentationSettings, patch_size: tuple[int, ...], in_plane: bool) -> float:
    if settings.rotation_degrees is not None:
        return settings.rotation_degrees
    if not in_plane:
        return 30.0
    is_long = len(patch_size) == 2 and max(patch_size) / min(patch_size) > _LONG_PATCH_RATIO
    return 15.0 if is_long else 180.0


def _from_either_side_of_one(rng: np.random.Generator, between: tuple[float, float]) -> float:
    """Draw uniformly from below 1 or from above 1, each with probability 0.5, where both are possible."""
    low, high = between
    below, position = rng.uniform(size=2)
    if low < 1 < high:
        low, high = (low, 1.0) if below < 0.5 else (1.0, high)
    return float(low + (high - low) * position)


def _matrix(drawn: SpatialDraw) -> np.ndarray:
    """Return the matrix that maps centred patch coordinates to centred region coordinates."""
    from batchgenerators.augmentations.utils import rotate_coords_2d, rotate_coords_3d

    n = 2 if len(drawn.angles_rad) == 1 else 3
    rotate: Callable[..., np.ndarray] = rotate_coords_2d if n == 2 else rotate_coords_3d
    matrix = np.eye(len(drawn.margins_voxels))
    matrix[-n:, -n:] = rotate(np.eye(n), *drawn.angles_rad) * drawn.scale
    return matrix


def _margins(matrix: np.ndarray, patch_size: tuple[int, ...]) -> tuple[int, ...]:
    half = (np.array(patch_size) - 1) / 2
    corners = np.array(list(product(*((-h, h) for h in half)))).T
    reach = np.abs(matrix @ corners).max(axis=1)
    return tuple(int(m) for m in np.maximum(np.ceil(reach - half - 1e-9), 0))


def _interpolate(
    image: np.ndarray, label: np.ndarray | None, drawn: SpatialDraw, patch_size: tuple[int, ...], order: int
) -> tuple[np.ndarray, np.ndarray | None]:
    from batchgenerators.augmentations.utils import interpolate_img

    matrix = _matrix(drawn)
    n = 2 if len(drawn.angles_rad) == 1 else 3
    # A 3D patch that turns within its slices is a stack of 2D ones, which share their coordinates.
    plane = patch_size[-n:]
    borders = drawn.border_crop[-n:] or ((0.0, 0.0),) * n
    axes = np.meshgrid(*map(_kept_positions, plane, borders), indexing="ij", sparse=True)
    centre = (np.array(image.shape[-n:]) - 1) / 2
    # Term by term instead of by BLAS, whose rounding may depend on the number of threads.
    coordinates = np.stack(
        [np.broadcast_to(sum(matrix[-n + i, -n + j] * axes[j] for j in range(n)) + centre[i], plane) for i in range(n)]
    )

    if drawn.border_crop:
        # The outermost positions lie up to half a voxel beyond the outermost centres, where there are no values.
        coordinates = np.clip(coordinates, 0, 2 * centre.reshape(n, *(1,) * n))

    def moved(array: np.ndarray, spline_order: int, is_label: bool) -> np.ndarray:
        flat = array.reshape(-1, *array.shape[-n:])
        result = [
            interpolate_img(part, coordinates, spline_order, mode="constant", cval=0, is_seg=is_label) for part in flat
        ]
        return np.stack(result).reshape(array.shape[0], *patch_size).astype(array.dtype, copy=False)

    return moved(image, order, False), None if label is None else moved(label, 1, True)


def _kept_positions(edge: int, border: tuple[float, float]) -> np.ndarray:
    """Return where `edge` voxels lie, from the middle of the patch, that share what is left between the borders."""
    low, high = border
    return (1 - low - high) * (np.arange(edge) - (edge - 1) / 2) + (low - high) / 2 * edge


def _intensity_transforms(s: AugmentationSettings, keep_first_axis: bool) -> list[Callable[..., dict[str, Any]]]:
    """Return the transforms of non-zero probability in nnU-Net's order; mirroring comes after them."""
    chances = (s.p_noise, s.p_blur, s.p_brightness, s.p_contrast, s.p_low_resolution, s.p_gamma, s.p_gamma_inverted)
    if not any((*chances, s.p_offset)):
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from batchgenerators.transforms import color_transforms, noise_transforms, resample_transforms
    candidates = [
        (s.p_noise, lambda: noise_transforms.GaussianNoiseTransform(s.noise_variance, p_per_sample=s.p_noise)),
        (
            s.p_blur,
            lambda: noise_transforms.GaussianBlurTransform(
                s.blur_sigma_voxels, different_sigma_per_axis=True, p_per_channel=0.5, p_per_sample=s.p_blur
            ),
        ),
        (s.p_offset, lambda: _Offset(s.offset, s.p_offset)),
        (
            s.p_brightness,
            lambda: color_transforms.BrightnessMultiplicativeTransform(s.brightness, p_per_sample=s.p_brightness),
        ),
        (
            s.p_contrast,
            lambda: color_transforms.ContrastAugmentationTransform(s.contrast, p_per_sample=s.p_contrast),
        ),
        (
            s.p_low_resolution,
            lambda: resample_transforms.SimulateLowResolutionTransform(
                s.low_resolution,
                per_channel=True,
                p_per_channel=0.5,
                order_downsample=0,
                order_upsample=3,
                p_per_sample=s.p_low_resolution,
                ignore_axes=(0,) if keep_first_axis else None,
            ),
        ),
        (s.p_gamma_inverted, lambda: _gamma(color_transforms, s, inverted=True)),
        (s.p_gamma, lambda: _gamma(color_transforms, s, inverted=False)),
    ]
    return [build() for chance, build in candidates if chance > 0]


def _mirroring(axes: tuple[int, ...]) -> Callable[..., dict[str, Any]] | None:
    if not axes:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from batchgenerators.transforms import spatial_transforms
    mirroring: Callable[..., dict[str, Any]] = spatial_transforms.MirrorTransform(axes)
    return mirroring


@dataclass(frozen=True)
class _Offset:
    """Adds a uniform number between -largest and largest to each channel, without clipping."""

    largest: float
    chance: float

    def __call__(self, **content: Any) -> dict[str, Any]:
        """Return the content with another `data`, (1, channel, *patch)."""
        data = content["data"]
        if np.random.uniform() < self.chance:
            offsets = np.random.uniform(-self.largest, self.largest, size=(*data.shape[:2], *[1] * (data.ndim - 2)))
            content["data"] = data + offsets.astype(data.dtype)
        return content


def _gamma(color_transforms: Any, s: AugmentationSettings, *, inverted: bool) -> Callable[..., dict[str, Any]]:
    return color_transforms.GammaTransform(
        s.gamma,
        inverted,
        per_channel=True,
        retain_stats=True,
        p_per_sample=s.p_gamma_inverted if inverted else s.p_gamma,
    )


@contextlib.contextmanager
def _seeded_global_generators(seed: int) -> Iterator[None]:
    """Seed numpy's and Python's global generators inside the block and restore their states afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
