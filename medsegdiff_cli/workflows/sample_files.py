"""Generated pairs as the files of a dataset folder: grids, intensities, label values, names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, DatasetJson, images_by_case
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.plan import Plan
from medsegdiff_cli.artifacts.synthesis import Synthesis
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.imaging.crop import whole_box
from medsegdiff_cli.imaging.denormalise import IntensityScale
from medsegdiff_cli.imaging.export import export_labels
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.transform import Placement
from medsegdiff_cli.imaging.writing import LOSSLESS_ENDINGS, write_image, write_label

_PHOTO_ENDINGS = (".png", ".bmp")
_PREFIX = "sample_"


@dataclass(frozen=True, kw_only=True)
class SampleFiles:
    """Where generated cases go, and in what form.

    Attributes:
        placement: of the network's patch on the files' grid.
        scales: per channel.
        has_labels: pairs go to imagesTr and labelsTr, images alone to imagesUn.
    """

    folder: Path
    ending: str
    placement: Placement
    channel_names: tuple[str, ...]
    scales: tuple[IntensityScale, ...]
    scheme: LabelScheme
    has_labels: bool

    @property
    def images(self) -> Path:
        """Folder of the images."""
        return self.folder / ("imagesTr" if self.has_labels else "imagesUn")

    @property
    def labels(self) -> Path:
        """Folder of the labels."""
        return self.folder / "labelsTr"

    def is_done(self, case: str) -> bool:
        """Return whether a case is complete: what is written last is there."""
        if self.has_labels:
            return (self.labels / f"{case}{self.ending}").is_file()
        return (
            self.images / f"{case}_{len(self.channel_names) - 1 if not self._is_colour else 0:04d}{self.ending}"
        ).is_file()

    @property
    def _is_colour(self) -> bool:
        """Colours of a photograph stand in one file."""
        return self.ending in _PHOTO_ENDINGS and len(self.channel_names) == 3

    def write(self, case: str, image: np.ndarray, mask: np.ndarray | None) -> None:
        """Write one case, its label last.

        Args:
            image: (copy x channel, *patch), normalised; copies of the channels are averaged.
            mask: (class, *patch), about 0 to 1.

        Raises:
            UsageError: the image holds numbers that are not finite.
        """
        if not np.isfinite(image).all() or (mask is not None and not np.isfinite(mask).all()):
            raise UsageError(
                f"{case} holds numbers that are not finite",
                where=str(self.folder),
                fix="train the model longer, or choose another --sampler or more --steps",
            )
        n_channels = len(self.channel_names)
        channels = image.reshape(-1, n_channels, *image.shape[1:]).mean(axis=0)
        order = np.argsort(self.placement.transpose)
        native = np.stack(
            [scale.apply(channel.transpose(order)) for scale, channel in zip(self.scales, channels, strict=True)]
        )
        native, geometry = self._storable(native), self.placement.geometry
        files = [native] if self._is_colour else [native[index : index + 1] for index in range(n_channels)]
        for index, voxels in enumerate(files):
            path = self.images / f"{case}_{index:04d}{self.ending}"
            write_image(path, Image(array=np.ascontiguousarray(voxels), geometry=geometry))
        if self.has_labels and mask is not None:
            decided = export_labels(
                np.ascontiguousarray(mask, dtype=np.float32),
                self.placement,
                exclusive=self.scheme.classes_are_exclusive,
            )
            write_label(self.labels / f"{case}{self.ending}", self.scheme.decode(decided), geometry)

    def cases(self) -> list[CaseFiles]:
        """Return the complete cases, sorted."""
        found = images_by_case(self.images, self.ending)
        return [
            CaseFiles(
                case=case,
                images=paths,
                label=self.labels / f"{case}{self.ending}" if self.has_labels else None,
                group=case,
            )
            for case, paths in found.items()
            if self.is_done(case)
        ]

    def read_back(self, image: Image) -> np.ndarray:
        """Return a written image as the network sees it, (channel, *patch), but for its intensities."""
        return image.array.transpose(0, *(axis + 1 for axis in self.placement.transpose)).astype(np.float32)

    def _storable(self, image: np.ndarray) -> np.ndarray:
        if self.ending not in _PHOTO_ENDINGS:
            return image
        fits_a_byte = self.ending == ".bmp" or all(scale.high is None or scale.high <= 255 for scale in self.scales)
        dtype = np.uint8 if fits_a_byte else np.uint16
        return image.round().clip(0, np.iinfo(dtype).max).astype(dtype)


def sample_files(
    folder: Path, plan: Plan, patch: tuple[int, ...], synthesis: Synthesis, *, has_labels: bool
) -> SampleFiles:
    """Return the files that a plan's images ask for: their ending, voxel size and order of axes."""
    is_whole = len(patch) == plan.n_dims_of_images
    ending = plan.file_ending if plan.file_ending in LOSSLESS_ENDINGS else ".png" if len(patch) == 2 else ".nii.gz"
    if not is_whole and ending in _PHOTO_ENDINGS:
        ending = ".nii.gz"
    return SampleFiles(
        folder=folder,
        ending=ending,
        placement=_placement(plan, patch, synthesis, has_space=ending not in _PHOTO_ENDINGS),
        channel_names=tuple(channel.name for channel in plan.channels),
        scales=tuple(IntensityScale(**entry.model_dump(exclude={"name"})) for entry in synthesis.intensities),
        scheme=plan.label_scheme(),
        has_labels=has_labels,
    )


def case_names(count: int) -> list[str]:
    """Return the names of the first `count` samples; a name says the number, whatever the count."""
    return [f"{_PREFIX}{number:05d}" for number in range(1, count + 1)]


def dataset_json(files: SampleFiles, plan: Plan, synthesis: Synthesis, cases: Sequence[CaseFiles]) -> DatasetJson:
    """Return the description of the finished dataset."""
    content: Mapping[str, object] = {
        "channel_names": {str(index): name for index, name in enumerate(files.channel_names)},
        "labels": plan.labels,
        "regions_class_order": plan.regions_class_order,
        "numTraining": len(cases) if files.has_labels else 0,
        "file_ending": files.ending,
        "name": files.folder.name.partition("_")[2] or files.folder.name,
        "description": f"Synthetic images{' and labels' if files.has_labels else ''}, generated by "
        f"{synthesis.method} trained on {synthesis.dataset}; no patients.",
        "synthetic": True,
        "synthesis": synthesis,
    }
    return DatasetJson.model_validate(content)


def _placement(plan: Plan, patch: tuple[int, ...], synthesis: Synthesis, *, has_space: bool) -> Placement:
    """Return the patch as a whole image; of a volume's slices the two axes keep the order they have in the file."""
    n = len(patch)
    last = plan.transpose[-n:]
    transpose = tuple(int(axis) for axis in np.argsort(np.argsort(last)))
    spacing = _spacing(plan, synthesis.config, n)
    native = tuple(int(axis) for axis in np.argsort(transpose))
    geometry = Geometry.plain(
        tuple(patch[axis] for axis in native),
        tuple(spacing[axis] for axis in native),
        has_physical_spacing=has_space,
    )
    if synthesis.direction is not None and has_space:
        geometry = Geometry.from_json({**geometry.to_json(), "direction": synthesis.direction})
    return Placement(
        geometry=geometry,
        transpose=transpose,
        crop_box=whole_box(patch),
        resampled_shape=patch,
        window=whole_box(patch),
        spacing_mm=spacing,
        nearest_axis=None,
    )


def _spacing(plan: Plan, config: str, n: int) -> tuple[float, ...]:
    """Return the voxel edges of the last n axes; 1 where the plan keeps each case's own."""
    known = plan.configuration(config)[1].spacing_mm if plan.geometry == "spacing" else None
    padded = (*((None,) * n), *(known or ()))[-n:]
    return tuple(1.0 if edge is None else float(edge) for edge in padded)
