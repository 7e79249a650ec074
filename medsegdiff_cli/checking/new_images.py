"""Check new images against what a model was trained on, before a night's work."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from medsegdiff_cli.checking.case_content import digest_of_voxels
from medsegdiff_cli.checking.problem import CheckReport, Problem, sorted_problems
from medsegdiff_cli.errors import MsdError
from medsegdiff_cli.imaging.channels import read_channels
from medsegdiff_cli.imaging.image import Geometry, Image

_LARGEST_SPACING_FACTOR = 3.0


@dataclass(frozen=True, kw_only=True)
class NewCase:
    """A case to be predicted: its name and its files, one a channel."""

    case: str
    images: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class ModelNeeds:
    """What a model expects of an image.

    Attributes:
        name: of the model.
        spacing_mm: voxel edges that images are resampled to, in array order; None where any will do.
        flags: what is unusual about an image: intensities outside of the training's range, a guessed grid.
        training_cases: names of the cases that the model has learnt from.
    """

    name: str
    n_dims: int
    n_channels: int
    spacing_mm: tuple[float | None, ...]
    flags: Callable[[Image], Sequence[str]]
    training_cases: frozenset[str] = frozenset()


def check_new_images(
    source: Path,
    cases: Sequence[NewCase],
    skipped: Sequence[tuple[Path, str]],
    needs: ModelNeeds,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every image and report what predicting would refuse (errors) or get wrong (warnings).

    Args:
        skipped: files that are no case, with the reason.
        progress: called with (cases done, cases).
    """
    problems = [
        Problem(severity="warning", code="skipped-file", message=f"{path.name!r}: {reason}", fix="rename or remove it")
        for path, reason in skipped
    ]
    by_digest: dict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        try:
            examined = pool.map(lambda case: _examine(case, needs), cases)
            for done, (case, (found, digest)) in enumerate(zip(cases, examined, strict=True), start=1):
                problems += found
                if digest:
                    by_digest[digest].append(case.case)
                if progress is not None:
                    progress(done, len(cases))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C must not wait for all other cases
            raise
    for same in by_digest.values():
        if len(same) > 1:
            message = f"the very same image occurs {len(same)} times: {', '.join(same)}"
            fix = "keep one of them"
            problems.append(Problem(severity="warning", code="duplicate-image", case=same[0], message=message, fix=fix))
    return CheckReport(dataset=str(source), n_cases={"new": len(cases)}, problems=sorted_problems(problems))


def _examine(case: NewCase, needs: ModelNeeds) -> tuple[list[Problem], str]:
    """Return the problems of a case and the digest of its voxels ("" when they cannot be read)."""
    try:
        image = read_channels(case.images, n_channels=needs.n_channels)
    except MsdError as error:
        code = "channel-count" if "channels instead of" in error.what else "unreadable"
        where = f" ({error.where})" if error.where else ""
        problem = Problem(
            severity="error", code=code, case=case.case, message=f"{error.what}{where}", fix=error.fix or ""
        )
        return [problem], ""
    problems = list(_check_image(case, image, needs))
    return problems, digest_of_voxels([image])


def _check_image(case: NewCase, image: Image, needs: ModelNeeds) -> Iterator[Problem]:
    grid = image.geometry
    if grid.n_dims != needs.n_dims:
        message = f"the image has {grid.n_dims} axes, {needs.name} was trained on {needs.n_dims}"
        yield Problem(severity="error", code="dimensions", case=case.case, message=message, fix="choose another model")
        return
    yield from _check_spacing(case.case, grid, needs)
    for flag in needs.flags(image):
        fix = "check units, modality and export; the prediction's sidecar will carry this sentence"
        yield Problem(severity="warning", code="unlike-training", case=case.case, message=flag, fix=fix)
    if case.case in needs.training_cases:
        message = "a case of this name trained the model: a score of it would be no test"
        yield Problem(severity="warning", code="trained-on", case=case.case, message=message)


def _check_spacing(case: str, grid: Geometry, needs: ModelNeeds) -> Iterator[Problem]:
    if not any(needs.spacing_mm):
        return
    if not grid.has_physical_spacing:
        message = f"the image has no physical spacing, {needs.name} works in mm"
        fix = "store it as NIfTI, NRRD or MHA with its spacing"
        yield Problem(severity="warning", code="no-spacing", case=case, message=message, fix=fix)
        return
    pairs = [(own, target) for own, target in zip(grid.spacing_mm, needs.spacing_mm, strict=True) if target]
    if any(not 1 / _LARGEST_SPACING_FACTOR <= own / target <= _LARGEST_SPACING_FACTOR for own, target in pairs):
        own_text = " x ".join(f"{edge:.4g}" for edge in grid.spacing_mm)
        target_text = " x ".join("any" if edge is None else f"{edge:.4g}" for edge in needs.spacing_mm)
        message = f"spacing {own_text} mm (z, y, x), the model works at {target_text} mm: it is resampled a lot"
        fix = "check the unit and the protocol; details are lost or made up"
        yield Problem(severity="warning", code="spacing", case=case, message=message, fix=fix)
