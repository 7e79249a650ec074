"""The comparison of generated images with the training images: who is too near, and how near real images are."""

from collections.abc import Sequence

import numpy as np

from medsegdiff_cli.artifacts.dataset_folder import CaseFiles
from medsegdiff_cli.artifacts.memorisation import Memorisation, NearestImage
from medsegdiff_cli.imaging.channels import read_channels
from medsegdiff_cli.metrics.nearest_images import mirrored, nearest, signature
from medsegdiff_cli.workflows.sample_files import SampleFiles
from medsegdiff_cli.workflows.training_images import TrainingImages

_PERCENTILE = 5.0
# So many training patches, spread evenly, tell how near real images are to each other.
_MOST_QUERIES = 2000


def compare_with_training(
    files: SampleFiles, cases: Sequence[CaseFiles], training: TrainingImages, mirror_axes: Sequence[int] = ()
) -> Memorisation:
    """Find the nearest training image of each sample, and how near training images are to each other.

    A sample is suspicious when it is as near to a training image as only a twentieth of the training images are to one
    of another case.

    Args:
        mirror_axes: of the patch, along which mirror images are compared, too.
    """
    images = (files.read_back(read_channels(case.images, len(files.channel_names))) for case in cases)
    shape = (len(files.channel_names), *files.placement.grid_shape)
    found = nearest(mirrored(np.stack([signature(image) for image in images]), shape, mirror_axes), training.signatures)
    between = _between(training, shape, mirror_axes)
    limit = float(np.percentile(between, _PERCENTILE)) if len(between) else None
    pairs = [
        NearestImage(
            sample=case.case,
            training_case=training.cases[int(training.case_of[index])],
            distance=float(distance),
            is_suspicious=limit is not None and bool(distance <= limit),
        )
        for case, index, distance in zip(cases, found.index, found.distance, strict=True)
    ]
    return Memorisation(
        dataset=training.dataset,
        n_training_cases=len(training.cases),
        n_training_patches=len(training.signatures),
        percentile=_PERCENTILE,
        limit=limit,
        median_between_training=float(np.median(between)) if len(between) else None,
        mirrored_axes=tuple(mirror_axes),
        samples=tuple(sorted(pairs, key=lambda pair: (pair.distance, pair.sample))),
        suspicious_share=sum(pair.is_suspicious for pair in pairs) / len(pairs),
    )


def _between(training: TrainingImages, shape: tuple[int, ...], mirror_axes: Sequence[int]) -> np.ndarray:
    """Return the distances of training patches to the nearest patch of another case, found as for samples."""
    n = len(training.signatures)
    chosen = np.unique(np.linspace(0, n - 1, min(n, _MOST_QUERIES)).round().astype(int))
    found = nearest(
        mirrored(training.signatures[chosen], shape, mirror_axes),
        training.signatures,
        query_groups=training.case_of[chosen].tolist(),
        reference_groups=training.case_of.tolist(),
    )
    distances: np.ndarray = found.distance[np.isfinite(found.distance)]
    return distances
