"""What a user or a recipe may decide instead of the planner."""

from typing import Literal

from pydantic import PositiveFloat

from medsegdiff_cli.artifacts.document import StrictModel
from medsegdiff_cli.artifacts.plan import Normalisation, Scale
from medsegdiff_cli.paths import PLANS_NAME


class PlanOverrides(StrictModel):
    """The `plan` section of a recipe, and the flags of `msd plan`; None leaves the choice to the planner.

    A single number in a tuple stands for all axes.

    Attributes:
        target_spacing_mm: voxel size in array order (z, y, x); implies geometry `spacing`.
        size_voxels: fixed grid per axis, in plan order; implies geometry `resize`. Two numbers for volumes resize
            their slices and leave a 2D configuration only.
        keep_aspect: with `resize`, pad instead of stretching.
        centre_crop: fixed size cut from the centre after resampling, in plan order.
        normalisation: of all channels, or one a channel.
        clip: range to which the intensities of all channels are clipped before they are normalised.
        equalise_gamma: equalise each image's histogram before it is normalised, and take the ranks 0 ... 1 to this
            power (0.5 in Oh et al. 2020; 1 equalises alone).
        grey_to_rgb: give images of one channel to the network as three equal ones; colour images stay as they are.
        use_mask: normalise inside the mask or the non-zero voxels.
        mirror_axes: axes of the plan along which augmentation may mirror.
    """

    plans_name: str = PLANS_NAME
    geometry: Literal["spacing", "resize"] | None = None
    target_spacing_mm: tuple[float, ...] | None = None
    size_voxels: tuple[int, ...] | None = None
    keep_aspect: bool | None = None
    interpolation: Literal["cubic", "linear", "nearest"] | None = None
    centre_crop: tuple[int, ...] | None = None
    normalisation: Normalisation | tuple[Normalisation, ...] | None = None
    clip: tuple[float, float] | None = None
    equalise_gamma: PositiveFloat | None = None
    grey_to_rgb: bool | None = None
    use_mask: bool | None = None
    crop: Literal["nonzero", "mask", "none"] | None = None
    mirror_axes: tuple[int, ...] | None = None
    default_config: Literal["2d", "3d"] | None = None
    default_scale: Scale | None = None
    store_dtype: Literal["float16", "float32"] | None = None

    def for_axes(self, n_axes: int) -> "PlanOverrides":
        """Return a copy in which single numbers are repeated for every axis."""
        keys = ("target_spacing_mm", "size_voxels", "centre_crop")
        single = {key: value * n_axes for key in keys if (value := getattr(self, key)) is not None and len(value) == 1}
        return self.model_copy(update=single)

    def geometric_keys(self) -> list[str]:
        """Return the given keys that contradict a geometry taken over from another run."""
        taken = ("geometry", "target_spacing_mm", "size_voxels", "keep_aspect", "interpolation", "centre_crop", "crop")
        return [key for key in taken if getattr(self, key) is not None]
