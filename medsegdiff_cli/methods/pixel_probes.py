"""Pixel probes: classifiers of single pixels on the features of a frozen diffusion model, at several timesteps.

One class is four methods, which differ by settings:

- LEDM (Baranchuk et al. 2022): the features of three timesteps are joined; one MLP, or ten that vote.
- LEDMe (Rosnati et al. 2023): LEDM on eight timesteps, small ones among them.
- TEDM (Rosnati et al. 2023): one MLP shared by eight timesteps; each timestep is a member, and they vote.
- step-probe (Rosnati et al. 2023, appendix B): ridge logistic regression on one timestep.

The diffusion model (`methods.denoising`) is a run of its own; here its network is frozen. Features of full resolution
never exist: training gathers those of drawn pixels, prediction classifies at each block's own resolution first (see
`networks.pixel_classifier`).

Differs from the paper: training classifies drawn pixels (`pixels`) instead of whole images, the drawn pixels are
shared by all heads, and images are normalised as the plan says, for the diffusion model and for its features alike
(TEDM's code trains it on [-1, 1] and takes features of [0, 1]). The vote of several classes, which the papers leave
open, is the mean of probabilities.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.gaussian import q_sample
from medsegdiff_cli.diffusion.grids import remap_by_snr
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.diffusion.schedules import Schedule, ScheduleSettings
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.losses import binary_cross_entropy, cross_entropy
from medsegdiff_cli.methods.backbone import build_backbone, default_taps
from medsegdiff_cli.methods.base import FeatureKeeper, Method, Sampling, Stage
from medsegdiff_cli.methods.denoising import DenoisingSettings
from medsegdiff_cli.networks.pixel_classifier import PixelClassifier, gather_pixels

_SHARED_NOISE_SEED = 0


class PixelProbesSettings(DenoisingSettings):
    """Settings of `tedm`, `ledm`, `ledme` and `step-probe`; network and noise schedule come from the pretraining.

    Attributes:
        timesteps: indices of the noise schedule, 0 is the least noise.
        timesteps_of: schedule that `timesteps` are indices of, when it is not the model's own: they are then replaced
            by the model's timesteps of the nearest noise level.
        shared: one classifier serves each timestep alone and the timesteps vote (TEDM); else it reads the features of
            all timesteps joined (LEDM).
        n_heads: independently initialised classifiers, which vote (LEDM: 10).
        hidden: widths of the classifiers' hidden layers; none is a logistic regression.
        taps: decoder blocks whose features are read, 0 is the coarsest; None takes one of each resolution. LEDM reads
            5, 6, 7, 8 and 12 of `adm` with 6 levels.
        upsampling: how coarse features meet fine ones, `linear` (LEDM) or `nearest` (TEDM's code).
        init_std: standard deviation of the classifiers' initial weights (LEDM: 0.02); None takes torch's own.
        pixels: drawn in each image and training step.
        noise: `fresh` for every image and timestep (TEDM's code), or one tensor `shared` by all of them (LEDM's code).
        l2: weight of the classifiers' squared weights in the loss (ridge).
    """

    timesteps: tuple[int, ...] = Field(default=(1, 10, 25, 50, 200, 400, 600, 800), min_length=1)
    timesteps_of: ScheduleSettings | None = None
    shared: bool = True
    n_heads: int = Field(default=1, ge=1)
    hidden: tuple[int, ...] = (128, 32)
    taps: tuple[int, ...] | None = None
    upsampling: Literal["linear", "nearest"] = "linear"
    init_std: float | None = Field(default=None, gt=0)
    pixels: int = Field(default=1024, ge=1)
    noise: Literal["fresh", "shared"] = "fresh"
    l2: float = Field(default=0.0, ge=0)


class PixelProbes(Method):
    """Image in; noised to each timestep, through the frozen network, into the classifier; probabilities out."""

    Settings = PixelProbesSettings
    stages = (Stage(name="finetune", supervision="full", trains=("classifier",), effort=0.25),)
    inherited = DenoisingSettings
    pretrained = ("network",)
    outputs = ("image",)

    def __init__(self, task: Task, settings: PixelProbesSettings) -> None:
        super().__init__(task, settings)
        self.schedule = settings.schedule.build()
        self.steps = model_timesteps(settings, self.schedule)
        self.network = build_backbone(
            settings, n_dims=task.n_dims, in_channels=task.in_channels, out_channels=task.in_channels, use_time=True
        )
        self.taps = self._known_taps()
        self._cache: FeatureKeeper | None = None
        self.classifier = PixelClassifier(
            self._feature_channels() * (1 if settings.shared else len(self.steps)),
            task.n_classes,
            n_heads=settings.n_heads,
            hidden=settings.hidden,
            upsampling=settings.upsampling,
            init_std=settings.init_std,
        )

    @property
    def stochastic(self) -> bool:
        """Unless all images share their noise."""
        return bool(self.settings.noise == "fresh")

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The members of TEDM's vote; LEDM needs all its timesteps at once."""
        return self.steps if self.settings.shared else ()

    @property
    def divisor(self) -> tuple[int, ...]:
        """The network's total stride per axis."""
        return tuple(self.network.divisor)

    def loss(self, batch: Batch, stage: Stage, noise: NoiseSource) -> dict[str, Tensor]:
        """Return the cross-entropy of drawn pixels, averaged over timesteps and heads, and the ridge term if any.

        The pixels of all timesteps go through the classifier as one batch, so that its norms see them together.
        """
        if batch.label is None:
            raise ValueError("pixel classifiers need labels")
        shape = batch.image.shape[2:]
        positions = _draw_positions(shape, self.settings.pixels, noise)
        gathered = [
            [gather_pixels(feature, positions, shape, self.settings.upsampling) for feature in features]
            for _, features in self.features(batch.image, noise)
        ]
        if self.settings.shared:
            logits = self.classifier.logits_of([torch.cat(steps) for steps in zip(*gathered, strict=True)])
            copies = len(self.steps)
        else:
            logits, copies = self.classifier.logits_of([block for step in gathered for block in step]), 1
        # Heads join the batch: (copy * batch * head, class, pixel).
        repeats = copies, self.settings.n_heads
        label = _picked(batch.label, positions, has_channel=not self.task.classes_are_exclusive)
        valid = None if batch.valid is None else _repeated(_picked(batch.valid, positions), *repeats)
        entropy = cross_entropy if self.task.classes_are_exclusive else binary_cross_entropy
        terms = {"cross_entropy": entropy(logits.flatten(0, 1), _repeated(label, *repeats), valid)}
        if self.settings.l2:
            weights = [p for name, p in self.classifier.named_parameters() if p.ndim > 1 and "norms" not in name]
            terms["ridge"] = self.settings.l2 * torch.stack([weight.square().sum() for weight in weights]).sum()
        return terms

    def predict(self, prepared: Tensor, noise: NoiseSource, sampling: Sampling) -> Tensor:
        """Return a member per timestep and head (TEDM), or per head (LEDM): (batch, member, class, *spatial).

        Raises:
            UsageError: timesteps are asked for that the classifier was not trained with.
        """
        wanted = self._wanted(sampling)
        shape = prepared.shape[2:]
        steps = self.features(prepared, noise, wanted)
        if self.settings.shared:
            logits = torch.cat([self.classifier.forward_dense(features, shape) for _, features in steps], 1)
        else:
            logits = self.classifier.forward_dense([block for _, features in steps for block in features], shape)
        return logits.softmax(2) if self.task.classes_are_exclusive else logits.sigmoid()

    def features(
        self, image: Tensor, noise: NoiseSource, wanted: Sequence[int] | None = None
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Yield each timestep with the network's features of the noised image, a block a tap, coarsest first.

        Every timestep draws its noise whether it is wanted or not: so a member is the same in any subset.

        Args:
            image: (batch, channel, *spatial).
            wanted: timesteps to yield; None: all.
        """
        for step in self.steps:
            epsilon = self._noise(image, noise)
            if wanted is not None and step not in wanted:
                continue
            t = torch.full((len(image),), step, device=image.device)
            x_t = q_sample(image, t, epsilon, self.schedule)
            if self._cache is None or not self.classifier.training:
                yield step, self._blocks(x_t, step)
            else:
                yield step, self._cache.features(x_t, f"t{step}", partial(self._blocks, step=step))

    def _blocks(self, x_t: Tensor, step: int) -> list[Tensor]:
        with torch.no_grad():
            t = torch.full((len(x_t),), step, device=x_t.device)
            blocks: list[Tensor] = self.network(x_t, t, self.taps)
            return blocks

    def keep_features(self, cache: FeatureKeeper) -> None:
        """Take the network's features from a cache while training.

        Raises:
            UsageError: noise is fresh for every image, so no input comes again.
        """
        if self.stochastic:
            raise UsageError(
                "fresh noise makes every input new: there is nothing to keep",
                where="training.feature_cache",
                fix="use --set noise=shared with it, or leave it out",
            )
        self._cache = cache

    def _noise(self, image: Tensor, noise: NoiseSource) -> Tensor:
        if self.settings.noise == "fresh":
            return noise.randn(*image.shape[1:])
        generator = torch.Generator().manual_seed(_SHARED_NOISE_SEED)
        one = torch.randn(image.shape[1:], generator=generator).to(image.device)
        return one.expand_as(image)

    def _wanted(self, sampling: Sampling) -> tuple[int, ...]:
        if sampling.timesteps is None:
            return self.steps
        unknown = [step for step in sampling.timesteps if step not in self.timesteps]
        if unknown:
            known = ", ".join(map(str, self.timesteps)) or "none: its classifier reads all timesteps at once"
            raise UsageError(f"timesteps {unknown} are no members of this model", where="--timesteps", fix=known)
        return sampling.timesteps

    def _known_taps(self) -> tuple[int, ...]:
        taps = default_taps(self.settings) if self.settings.taps is None else tuple(self.settings.taps)
        try:
            self.network.tap_channels(taps)
        except ValueError as error:
            raise UsageError(str(error), where="taps", fix="or leave it out for one of each resolution") from None
        return taps

    def _feature_channels(self) -> tuple[int, ...]:
        """Return the features of each tap, found by running the network once on its smallest input."""
        device = next(self.network.parameters()).device
        image = torch.zeros((1, self.task.in_channels, *(2 * edge for edge in self.divisor)), device=device)
        was_training = self.network.training
        with torch.no_grad():
            blocks = self.network.eval()(image, torch.zeros(1, dtype=torch.long, device=device), self.taps)
        self.network.train(was_training)
        return tuple(block.shape[1] for block in blocks)


def model_timesteps(settings: PixelProbesSettings, schedule: Schedule) -> tuple[int, ...]:
    """Return the timesteps as indices of the model's own schedule.

    Raises:
        UsageError: an index that the schedule does not have, or one that comes twice.
    """
    steps = settings.timesteps
    if settings.timesteps_of is not None:
        steps = remap_by_snr(steps, settings.timesteps_of.build(), schedule)
    outside = [step for step in steps if not 0 <= step < schedule.T]
    if outside or len(set(steps)) < len(steps):
        what = f"timesteps {outside} are out of range" if outside else f"timesteps {list(steps)} come more than once"
        raise UsageError(what, where="timesteps", fix=f"give different indices from 0 to {schedule.T - 1}")
    return steps


def _draw_positions(shape: Sequence[int], pixels: int, noise: NoiseSource) -> Tensor:
    """Return int64 (batch, pixel, axis): pixels drawn uniformly, with replacement, each item its own."""
    size = torch.tensor(shape, device=noise.device)
    return (noise.rand(pixels, len(shape)) * size).long().clamp(max=size - 1)


def _picked(values: Tensor, positions: Tensor, *, has_channel: bool = False) -> Tensor:
    """Return the values (batch, [channel,] *spatial) at the positions, (batch, [channel,] pixel)."""
    index = torch.zeros_like(positions[..., 0])
    for axis, size in enumerate(values.shape[1 + has_channel :]):
        index = index * size + positions[..., axis]
    flat = values.flatten(1 + has_channel)
    return flat.gather(-1, index[:, None].expand(-1, flat.shape[1], -1) if has_channel else index)


def _repeated(values: Tensor, copies: int, n_heads: int) -> Tensor:
    """Return labels (batch, ...) for logits (copy * batch, head, ...) whose first two axes were joined."""
    return values.repeat(copies, *(1,) * (values.ndim - 1)).repeat_interleave(n_heads, dim=0)
