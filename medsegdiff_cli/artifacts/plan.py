"""Plan: the geometry and the 2D and 3D configurations of a dataset; a YAML file that people read and edit.

Shapes, spacings and strides are in the *transposed* axis order (`transpose[0]` is the axis of largest spacing).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import StrictModel, read_yaml, validate
from medsegdiff_cli.artifacts.label_scheme import LabelScheme, label_scheme_from_json
from medsegdiff_cli.errors import UsageError, did_you_mean

Scale = Literal["tiny", "small", "full"]
ConfigName = Literal["2d", "3d"]
Normalisation = Literal[
    "zscore", "zscore_dataset", "ct", "rescale_0_1", "rescale_minus1_1", "rgb_0_1", "quantile", "none"
]


class ChannelPlan(StrictModel):
    """Normalisation of one channel.

    Attributes:
        use_mask: normalise inside the mask (masksTr, else the non-zero voxels) and leave 0 outside.
        statistics: numbers of the dataset that the scheme needs (mean, std, percentile_00_5, percentile_99_5), and the
            range that intensities are clipped to first, where one was given (clip_low, clip_high); equalise_gamma
            where the histogram of each image is then equalised, the power to which its ranks 0 ... 1 are taken.
        training_range: smallest and largest intensity of the training images; predictions of images that leave it
            are flagged.
    """

    name: str
    normalisation: Normalisation
    use_mask: bool = False
    statistics: dict[str, float] = Field(default_factory=dict)
    training_range: tuple[float, float] | None = None


class Configuration(StrictModel):
    """One way to cut the dataset into patches: `2d` or `3d`.

    Attributes:
        spacing_mm: target voxel edges; None for an axis that keeps each case's own (slices of a 2D configuration)
            and for the whole when the geometry is `resize`.
        size_voxels: fixed grid of geometry `resize`.
        median_shape_voxels: median grid of the training cases after resampling.
        patch_size_voxels: the network's input, 2 or 3 axes.
        batch_size: nnU-Net's choice; a method's own is resolved when training starts.
        strides: downsampling per level transition and axis, 1 or 2.
        batch_dice: Dice over the whole batch (2D) or per patch.
        store_dtype: dtype of the preprocessed images.
    """

    spacing_mm: tuple[PositiveFloat | None, ...] | None = None
    size_voxels: tuple[PositiveInt, ...] | None = None
    median_shape_voxels: tuple[PositiveInt, ...]
    patch_size_voxels: tuple[PositiveInt, ...] = Field(min_length=2, max_length=3)
    batch_size: PositiveInt
    strides: tuple[tuple[PositiveInt, ...], ...]
    batch_dice: bool
    store_dtype: Literal["float16", "float32"] = "float32"

    @model_validator(mode="after")
    def _has_one_number_per_axis(self) -> "Configuration":
        axes = len(self.patch_size_voxels)
        if any(len(stride) != axes for stride in self.strides):
            raise ValueError(f"strides {self.strides} need {axes} numbers each, as the patch")
        return self


class Plan(StrictModel):
    """Everything about geometry and intensity; the method's own choices are resolved when training starts.

    Attributes:
        geometry: `spacing` resamples to a common voxel size, `resize` maps each whole image to a fixed grid.
        keep_aspect: with `resize`, pad instead of stretching.
        interpolation: of images; labels follow nnU-Net's rule.
        centre_crop: fixed size cut from the centre after resampling, or None.
        transpose: array axis that becomes each axis of the plan.
        crop: bounding box used before normalising.
        mirror_axes: axes (of the plan) along which augmentation may mirror.
        memory_bytes: device memory that patch and batch were fitted to.
        channel_copies: how many times the network is given the channels; 3 where grey images go as colours.
        labels, regions_class_order: copied from dataset.json, so that a model is complete without its dataset.
        explanation: sentences on why the choices were made.
    """

    schema_version: int = 1
    dataset: str
    plans_name: str = "plans"
    fingerprint_digest: str
    file_ending: str
    labels: dict[str, int | list[int]]
    regions_class_order: list[int] | None = None
    channels: tuple[ChannelPlan, ...]
    geometry: Literal["spacing", "resize"]
    keep_aspect: bool = False
    interpolation: Literal["cubic", "linear", "nearest"] = "cubic"
    centre_crop: tuple[int, ...] | None = None
    channel_copies: PositiveInt = 1
    transpose: tuple[int, ...]
    crop: Literal["nonzero", "mask", "none"] = "nonzero"
    mirror_axes: tuple[int, ...] = ()
    default_config: ConfigName
    default_scale: Scale = "full"
    memory_bytes: int
    configurations: dict[ConfigName, Configuration]
    explanation: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> "Plan":
        if self.default_config not in self.configurations:
            raise ValueError(f"default_config '{self.default_config}' is not among the configurations")
        if sorted(self.transpose) != list(range(len(self.transpose))):
            raise ValueError(f"transpose {self.transpose} is not a permutation")
        return self

    @property
    def n_dims_of_images(self) -> int:
        """Spatial axes of the dataset's images (a 2D configuration may cut 3D images into slices)."""
        return len(self.transpose)

    @property
    def n_network_channels(self) -> int:
        """Channels that a network is given: those of the images, and their copies."""
        return len(self.channels) * self.channel_copies

    def label_scheme(self) -> LabelScheme:
        """Return the classes."""
        return label_scheme_from_json(self.labels, self.regions_class_order, "plan: labels")

    def configuration(self, name: str | None = None) -> tuple[ConfigName, Configuration]:
        """Return name and content of a configuration; None means the default, `3d_fullres` means `3d`.

        Raises:
            UsageError: the plan has no such configuration.
        """
        wanted = {"3d_fullres": "3d", None: self.default_config}.get(name, name)
        for known, configuration in self.configurations.items():
            if known == wanted:
                return known, configuration
        raise UsageError(
            f"the plan has no configuration '{name}'",
            where="--config",
            fix=did_you_mean(str(name), self.configurations),
        )

    def digest(self) -> str:
        """Return the sha256 of everything that changes results (the explanation does not)."""
        return atomic.digest_of_content(self.model_dump(mode="json", exclude={"explanation"}))


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        UsageError: missing or wrong keys, each named, unknown ones with the nearest known key.
    """
    return validate(Plan, read_yaml(path), str(path))


def stored_digest(path: Path) -> str:
    """Return the digest of a plan or recipe as it stands in the file: equal to `digest()` when it was written.

    Settings that later versions add do not change it, a person's edits do.
    """
    return digest_as_stored(read_yaml(path))


def digest_as_stored(content: Mapping[str, Any]) -> str:
    """Return what `stored_digest` does, of a file's content."""
    return atomic.digest_of_content({key: content[key] for key in content if key != "explanation"})


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan atomically; the explanation comes last, one sentence a line."""
    content = plan.model_dump(mode="json", exclude={"explanation"})
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    reasons = yaml.safe_dump({"explanation": list(plan.explanation)}, width=10_000, allow_unicode=True)
    atomic.write_text(path, f"# Plan of {plan.dataset}; edit freely, then train.\n{text}{reasons}")


def changed_keys(old: StrictModel, new: StrictModel) -> list[str]:
    """Return the dotted keys whose values differ between two documents of one kind (explanations don't count)."""
    return sorted(_differences(old.model_dump(mode="json"), new.model_dump(mode="json"), ""))


def _differences(old: object, new: object, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = {*old, *new} - {"explanation"}
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [path]
