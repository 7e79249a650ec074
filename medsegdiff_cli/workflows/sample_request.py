"""What `msd sample` was asked for, checked: the model, its walk, and the training images behind it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from medsegdiff_cli.artifacts.bundle import is_bundle, opened_bundle
from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, open_dataset
from medsegdiff_cli.artifacts.fold_files import FoldFiles, FoldFolder
from medsegdiff_cli.artifacts.run import RunRecord, find_folds
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.inference.volume import autocast
from medsegdiff_cli.methods.base import Sampling, Trainable
from medsegdiff_cli.methods.generating import GenerativeObjective, Pair, Route, Walk
from medsegdiff_cli.methods.registry import OBJECTIVES, PRETRAINING
from medsegdiff_cli.paths import DATASET_JSON, Workspace
from medsegdiff_cli.prediction.model import LoadedFold, load_fold
from medsegdiff_cli.workflows.devices import choose_device
from medsegdiff_cli.workflows.training_images import find_training_images

# More voxels a call gain nothing on a CPU; the default does not depend on the device, for it is part of the last bits.
_BATCH_VOXELS = 1 << 16
_LARGEST_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What `msd sample` was asked for.

    Attributes:
        fold: of a run with several; None where there is one.
        output: the dataset folder.
        route, mask_start: see `GenerativeObjective.generate`.
        batch: images per network call; None chooses by their size.
        against: dataset of the training images; None takes the run's own, where it still is.
    """

    model: Path
    output: Path
    workspace: Workspace
    fold: str | None = None
    count: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    route: Route = "joint"
    mask_start: float = 0.0
    seed: int = 0
    batch: int | None = None
    against: str | None = None
    device: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class PreparedSampling:
    """A checked request with its model; nothing is written yet."""

    request: SampleRequest
    model: LoadedFold
    name: str
    objective: GenerativeObjective
    walk: Walk
    batch: int
    device: torch.device
    found: list[tuple[str, CaseFiles]]

    @property
    def patch(self) -> tuple[int, ...]:
        """Size of a sample on the network's grid."""
        return self.model.recipe.patch_size_voxels


def prepare_sampling(request: SampleRequest) -> PreparedSampling:
    """Load the model and settle every setting; nothing is written.

    Raises:
        UsageError: a model that draws no images, several folds, or settings that do not fit.
        IntegrityError: a damaged model.
    """
    device = choose_device(request.device)
    model, name = _load(request.model, request.fold)
    objective = _generative(model.trainable, model.run, name)
    if not objective.draws_masks and (request.route != "joint" or request.mask_start):
        raise UsageError(
            f"{model.run.method} draws images without masks", where="--route, --mask-start", fix="leave them out"
        )
    if request.route == "cheap" and request.mask_start:
        raise UsageError("on the cheap route no mask is walked", where="--mask-start", fix="leave it out")
    patch = model.recipe.patch_size_voxels
    if (request.output / DATASET_JSON).is_file() and not open_dataset(request.output).info.synthetic:
        raise UsageError(
            "this dataset holds images that msd sample did not make",
            where=str(request.output),
            fix="choose another --output or another --dataset and --name",
        )
    return PreparedSampling(
        request=request,
        model=model,
        name=name,
        objective=objective.to(device).eval(),
        walk=objective.walk(request.sampling),
        batch=request.batch or max(1, min(_LARGEST_BATCH, _BATCH_VOXELS // math.prod(patch))),
        device=device,
        found=find_training_images(model.run, request.against, request.workspace),
    )


def generate_pairs(prepared: PreparedSampling, cases: Sequence[str], walk: Walk, limits: tuple[float, float]) -> Pair:
    """Generate these cases; the noise of each depends on seed and name alone."""
    request, device = prepared.request, prepared.device
    noise, mask_noise = (NoiseSource([(request.seed, case, of) for case in cases], device) for of in ("image", "mask"))
    with autocast(prepared.model.run.precision, device):
        return prepared.objective.generate(
            noise,
            prepared.patch,
            walk,
            mask_noise=mask_noise,
            route=request.route,
            mask_start=request.mask_start,
            limits=limits,
        )


def _load(path: Path, fold: str | None) -> tuple[LoadedFold, str]:
    wanted = () if fold is None else (fold,)
    if is_bundle(path) and path.is_file():
        with opened_bundle(path) as bundle:
            return _loaded(list(bundle.folds(wanted)))
    return _loaded([FoldFolder(folder) for folder in find_folds(path, wanted)])


def _loaded(folds: Sequence[FoldFiles]) -> tuple[LoadedFold, str]:
    if len(folds) > 1:
        names = ", ".join(files.folder.name for files in folds)
        raise UsageError(f"the model has {len(folds)} folds: {names}", where="MODEL", fix="choose one with --fold")
    folder = folds[0].folder
    return load_fold(folds[0]), f"{folder.parent.name}/{folder.name}"


def _generative(trainable: Trainable, run: RunRecord, name: str) -> GenerativeObjective:
    if isinstance(trainable, GenerativeObjective):
        return trainable
    able = [
        f"{PRETRAINING}{known}" for known, entry in OBJECTIVES.items() if issubclass(entry.load(), GenerativeObjective)
    ]
    parent = run.parent.get("run")
    fix = f"give a run of {' or '.join(able)}"
    if parent is not None and parent.startswith(tuple(able)):
        fix = f"give the pretraining that it started from: {parent}"
    raise UsageError(f"'{run.method}' of {name} draws no images", where="MODEL", fix=fix)
