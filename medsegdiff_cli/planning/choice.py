"""2D or 3D: the default configuration, with its reasons in words."""

import math
from collections.abc import Collection, Sequence

from medsegdiff_cli.artifacts.plan import Configuration
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.planning.nnunet_rules import ANISOTROPY_THRESHOLD

FEWEST_SLICES_FOR_3D = 8
VERY_ANISOTROPIC = 2 * ANISOTROPY_THRESHOLD
FEW_LABELLED_CASES = 10
SMALLEST_SHARE_SEEN = 0.25


def choose_config(
    available: Collection[str],
    spacing_mm: Sequence[float] | None,
    median: Sequence[float],
    n_labelled: int,
    supported_dims: Collection[int] = (2, 3),
    wanted: str | None = None,
) -> tuple[str, str]:
    """Return the default configuration and a sentence that says why.

    Args:
        available: configurations that the plan has.
        spacing_mm, median: of the grid in plan order.
        n_labelled: labelled training cases.
        supported_dims: of the method that the plan is made for.

    Raises:
        UsageError: the wanted configuration does not exist, or the method supports none.
    """
    usable = [config for config in ("2d", "3d") if config in available and int(config[0]) in supported_dims]
    if wanted is not None and wanted not in usable:
        raise UsageError(
            f"configuration '{wanted}' is not possible here", where="--config", fix=f"choose from {usable}"
        )
    if not usable:
        raise UsageError(
            f"the method works in {sorted(supported_dims)} axes, the images allow {sorted(available)}",
            where="--method",
            fix="choose a method that supports them (`msd methods`)",
        )
    if wanted is not None:
        return wanted, f"{wanted} is the default, as asked for."
    if set(available) == {"2d"}:
        flat = "the images have two axes" if len(median) == 2 else "the images have a single slice or are cut in slices"
        return "2d", f"2D is the only configuration, because {flat}."
    if len(usable) == 1:
        return usable[0], f"{usable[0]} is the default, because the method has no other form."
    return _between_both(spacing_mm, median, n_labelled)


def what_the_patch_sees(config: str, configuration: Configuration, geometry: str) -> str | None:
    """Return a warning when a patch covers less than a quarter of the median image, with what to do instead."""
    patch = configuration.patch_size_voxels
    median = configuration.median_shape_voxels[-len(patch) :]
    share = math.prod(min(edge / m, 1.0) for edge, m in zip(patch, median, strict=True))
    if share >= SMALLEST_SHARE_SEEN:
        return None
    coarser = (math.prod(median) * SMALLEST_SHARE_SEEN / math.prod(patch)) ** (1 / len(patch))
    remedy = "a smaller --size"
    if geometry == "spacing":
        spacing = [s for s in configuration.spacing_mm or () if s is not None]
        goal = ",".join(f"{s * coarser:.3g}" for s in spacing)
        remedy = f"a coarser --target-spacing (about {goal} mm for a quarter)"
    return (
        f"A {config} patch sees only {share:.1%} of the median image. If structures need more context, "
        f"give a larger --memory or {remedy}; there is no cascade."
    )


def _between_both(spacing_mm: Sequence[float] | None, median: Sequence[float], n_labelled: int) -> tuple[str, str]:
    ratio = max(spacing_mm) / min(spacing_mm) if spacing_mm else 1.0
    slices = int(median[0])
    shape = f"{' x '.join(f'{edge:g}' for edge in median)} voxels, anisotropy {ratio:.2g}, {n_labelled} labelled cases"
    kept = "is kept (--config)"
    if slices < FEWEST_SLICES_FOR_3D:
        return "2d", f"2D is the default: {slices} slices give a 3D network little to see ({shape}); 3D {kept}."
    if ratio > VERY_ANISOTROPIC:
        return "2d", f"2D is the default: slices lie so far apart that neighbours barely match ({shape}); 3D {kept}."
    if ratio > ANISOTROPY_THRESHOLD and 0 < n_labelled < FEW_LABELLED_CASES:
        return (
            "2d",
            f"2D is the default: coarse slices and few cases give more independent slices ({shape}); 3D {kept}.",
        )
    return "3d", f"3D is the default: the volumes are deep and even enough for it ({shape}); 2D {kept}."
