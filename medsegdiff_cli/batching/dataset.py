"""The training samples of a stage, by number: sample n is the patch at position n % batch of step n // batch.

A sample depends on its number, the seed and the settings only: never on workers, ranks, order or what came before.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch.utils.data import Dataset

from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.artifacts.recipe import AugmentationSettings
from medsegdiff_cli.batching.augmentation import Augmenter
from medsegdiff_cli.batching.patch_sampler import (
    OpenCase,
    PatchPosition,
    choose_patch,
    cut,
    index_foreground,
    is_forced_foreground,
)
from medsegdiff_cli.diffusion.noise import stream_seed
from medsegdiff_cli.errors import InputDataError

# Each open case holds up to three file descriptors; 256 or 1024 a process is a common limit.
_OPEN_CASES = 48


@dataclass(frozen=True, kw_only=True)
class PatchSettings:
    """How patches are drawn.

    Attributes:
        patch_size: edges of the patch, 2 or 3 axes.
        batch_size: patches of a global batch (over all ranks).
        mirror_axes: axes of the patch that may be mirrored.
        foreground_share: share of the global batch that is centred on foreground.
        drop_empty_slices: 2D patches of volumes come from slices with foreground only.
        slices_2d: the grids are 3D, the patches 2D.
        supervision: "none" never looks at labels, not even to choose a patch; "partial" mixes labelled and unlabelled
            cases; "full" demands a label for every case.
        views: how many differently augmented views of each patch are made.
        aligned: the views of a patch share place, rotation, scale, crop and mirroring.
        hidden_labels: cases that count as unlabelled, whatever the store has.
    """

    patch_size: tuple[int, ...]
    batch_size: int
    seed: int
    augmentation: AugmentationSettings
    mirror_axes: tuple[int, ...] = ()
    foreground_share: float = 0.0
    drop_empty_slices: bool = False
    slices_2d: bool = False
    supervision: Literal["none", "partial", "full"] = "full"
    views: int = 1
    aligned: bool = False
    hidden_labels: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training patch.

    Attributes:
        images: one float32 (channel, *patch) per view.
        label: int64 (*patch) of class indices, uint8 (region, *patch), or None.
        valid: bool (*patch), or None where every voxel counts.
        position: place in the global batch.
    """

    images: tuple[np.ndarray, ...]
    label: np.ndarray | None
    valid: np.ndarray | None
    case: str
    position: int


class PatchDataset(Dataset[Sample]):
    """All samples of a stage; arrays are opened where they are read, so that the dataset travels to workers lightly.

    Args:
        cases: at least one; the order does not matter.
    """

    def __init__(
        self, store: PreprocessedStore, cases: Sequence[str], scheme: LabelScheme, settings: PatchSettings
    ) -> None:
        self.store = store
        self.cases = tuple(sorted(cases))
        self.scheme = scheme
        self.settings = settings
        self._augmenter: Augmenter | None = None
        self._open: OrderedDict[str, OpenCase] = OrderedDict()

    def case_of(self, number: int) -> str:
        """Return the case that sample `number` is cut from, without reading anything."""
        return self._choose_case(self._generator(number))

    def __getitem__(self, number: int) -> Sample:
        """Return sample `number`, counted from the first patch of the first step."""
        s = self.settings
        step, position = divmod(number, s.batch_size)
        rng = self._generator(number)
        case = self._case(self._choose_case(rng))
        is_unsupervised = s.supervision == "none"
        where = choose_patch(
            case,
            s.patch_size,
            rng,
            force_foreground=is_forced_foreground(position, s.batch_size, s.foreground_share),
            slices_2d=s.slices_2d,
            drop_empty_slices=s.drop_empty_slices,
        )
        seeds = [stream_seed(s.seed, "view", view, step, position) for view in range(s.views)]
        shared = stream_seed(s.seed, "views", step, position) if s.aligned else None
        images, labels = zip(*(self._view(case, where, seed, shared) for seed in seeds), strict=True)
        label, valid = (None, None) if is_unsupervised else self._encode(labels[0])
        return Sample(images=images, label=label, valid=valid, case=case.stored.case, position=position)

    def _generator(self, number: int) -> np.random.Generator:
        step, position = divmod(number, self.settings.batch_size)
        return np.random.default_rng(stream_seed(self.settings.seed, "patch", step, position))

    def _choose_case(self, rng: np.random.Generator) -> str:
        return self.cases[int(rng.integers(len(self.cases)))]

    def _case(self, name: str) -> OpenCase:
        """Open a case, or take it from the few that are kept open."""
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        is_hidden = name in self.settings.hidden_labels
        stored = self.store.read(name, with_label=self.settings.supervision != "none" and not is_hidden)
        if is_hidden:  # where its foreground lies is part of the label
            shown = {key: value for key, value in stored.properties.items() if key != "foreground_slices"}
            stored = replace(stored, properties=shown)
        if stored.label is None and self.settings.supervision == "full":
            raise InputDataError(
                f"case '{name}' has no label, but the stage needs one for every case",
                where=str(self.store.folder),
                fix="leave the case out of the split or add its label",
            )
        self._open[name] = index_foreground(stored)
        if len(self._open) > _OPEN_CASES:
            self._open.popitem(last=False)
        return self._open[name]

    def _view(
        self, case: OpenCase, where: PatchPosition, seed: int, shared: int | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return one augmented view: image (channel, *patch) and label (1, *patch).

        Args:
            shared: seed of all that moves voxels, where views share it.
        """
        s = self.settings
        if self._augmenter is None:
            self._augmenter = Augmenter(s.augmentation, s.patch_size, s.mirror_axes)
        drawn = self._augmenter.draw(np.random.default_rng(seed if shared is None else shared))
        moved = zip(where.start, drawn.shift_voxels, drawn.margins_voxels, strict=True)
        start = tuple(first + shift - margin for first, shift, margin in moved)
        size = tuple(edge + 2 * margin for edge, margin in zip(s.patch_size, drawn.margins_voxels, strict=True))
        # A slice stays memory-mapped until the box is cut from it.
        at = (slice(None),) if where.slice_index is None else (slice(None), where.slice_index)
        image: np.ndarray = cut(case.stored.image[at], start, size).astype(np.float32)
        label = None if case.stored.label is None else cut(case.stored.label[None][at], start, size)
        return self._augmenter(image, label, drawn, seed, shared)

    def _encode(self, label: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Return what a method sees of a label (1, *patch) of inner indices: label and valid of a `Sample`."""
        is_annotated = label is not None
        if label is None:
            label = np.zeros((1, *self.settings.patch_size), dtype=np.uint8)
        indices = label[0]
        valid = None
        if self.settings.supervision == "partial" or self.scheme.ignore_value is not None:
            valid = (indices != self.scheme.ignore_index) & is_annotated
        if self.scheme.regions is not None:
            return np.stack([np.isin(indices, region) for region in self.scheme.regions]).astype(np.uint8), valid
        return np.where(indices == self.scheme.ignore_index, 0, indices).astype(np.int64), valid
