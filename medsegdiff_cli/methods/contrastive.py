"""Contrastive pretraining: two views of a patch are alike, those of other patches are not.

- `global-cl` (Chen et al. 2020, SimCLR): encoder, middle and a projection head; whole patches are told apart.
- `global-local-cl` (Chaitanya et al. 2020): that first; then, on the frozen encoder, the first levels of the decoder
  and a head of their own, which tell small regions of a patch apart: two stages of one run.

The network is one of a diffusion model, told always its least-noise timestep, so that everything that starts from a
pretraining can start from these. Nothing looks at labels. Of `global-cl` the decoder comes out as it was initialised,
and the output layer of both, which says nothing, is new in what starts from them.

Differs from the paper: Rosnati et al. 2023, who compare with both, tell the network no time. Here the local map is read
where pixel classifiers read the block, before it is upsampled; regions do not overlap; all else that their code does
differently from Chaitanya et al. is a setting (`docs/methods/contrastive.md` has the list).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.losses import nt_xent
from medsegdiff_cli.methods.backbone import TimedBackboneSettings, build_backbone, default_taps
from medsegdiff_cli.methods.base import Objective, Stage
from medsegdiff_cli.methods.vanilla import LEAST_NOISE

_CONVOLUTIONS: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORMS: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLING = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
# Draws are added up as integers, whose sum does not depend on the order.
_DRAW_BITS = 24


class GlobalContrastSettings(TimedBackboneSettings):
    """Settings of `global-cl`.

    Attributes:
        temperature: of NT-Xent; 0.1 in Chen et al. 2020, Chaitanya et al. 2020 and Rosnati et al. 2023.
        positive_in_denominator: as in Chen et al. 2020, Eq. 1; the first version of TEDM's code left it out.
        pooled_size: the coarsest features are averaged to so many cells an axis before the head; 1 is the mean over
            all. As many as there are is no averaging (TEDM's code: 16 for images of 128 x 128).
        hidden_features, projected_features: widths of the head's two layers, and of the local head (the latter).
    """

    temperature: float = Field(default=0.1, gt=0)
    positive_in_denominator: bool = True
    pooled_size: int = Field(default=1, ge=1)
    hidden_features: int = Field(default=1024, ge=1)
    projected_features: int = Field(default=128, ge=1)


class GlobalContrast(Objective):
    """Two views of each patch in; features that say which views are of the same patch."""

    Settings = GlobalContrastSettings
    stages: tuple[Stage, ...] = (Stage(name="global", supervision="none", views=2, effort=2.0),)
    outputs = ()
    network: Any

    def __init__(self, task: Task, settings: GlobalContrastSettings) -> None:
        super().__init__(task, settings)
        self.network = build_backbone(
            settings, n_dims=task.n_dims, in_channels=task.in_channels, out_channels=task.n_classes, use_time=True
        )
        width = self.network.settings.level_channels[-1] * settings.pooled_size**task.n_dims
        self.global_head = nn.Sequential(
            nn.Linear(width, settings.hidden_features, bias=False),
            nn.ReLU(),
            nn.Linear(settings.hidden_features, settings.projected_features, bias=False),
        )
        self.stages = (replace(type(self).stages[0], trains=(*self._encoder(), "global_head.")),)

    def _encoder(self) -> tuple[str, ...]:
        # The dot keeps a part apart from another whose name it begins.
        return tuple(f"network.{part}." for part in (*self.network.encoder_parts, *self.network.middle_parts))

    def loss(self, batch: Batch, stage: Stage, noise: NoiseSource) -> dict[str, Tensor]:
        """Return NT-Xent of the two views' projected features, patches being told from those of the batch."""
        views, t = views_of(batch)
        return {"global": self._compared(*self._projected(self.network.coarsest(views, t)).chunk(2))}

    def _projected(self, features: Tensor) -> Tensor:
        """Return what is compared (item, feature) of coarsest features (item, channel, *spatial)."""
        if self.settings.pooled_size == 1:
            pooled = features.flatten(2).mean(2)
        else:
            pooled = _POOLING[self.task.n_dims](features, self.settings.pooled_size).flatten(1)
        projected: Tensor = self.global_head(pooled)
        return projected

    def _compared(self, first: Tensor, second: Tensor, *, same_view_negatives: bool = True) -> Tensor:
        return nt_xent(
            first,
            second,
            temperature=self.settings.temperature,
            positive_in_denominator=self.settings.positive_in_denominator,
            same_view_negatives=same_view_negatives,
        )

    def illustrate(self, noise: NoiseSource, shape: Sequence[int]) -> None:
        """Return None: there is nothing to look at without an image."""
        return

    @property
    def divisor(self) -> tuple[int, ...]:
        """The network's total stride per axis."""
        return tuple(self.network.divisor)


class GlobalLocalContrastSettings(GlobalContrastSettings):
    """Settings of `global-local-cl`.

    Attributes:
        local_levels: levels of the decoder, coarsest first, that the local stage trains; Rosnati et al. 2023: 2.
        regions: compared in each patch, fewer where the map has fewer.
        region_size: edge of a region on the local map, at most half of the map's; 3 in both papers.
        aligned_views: both views show the same place, so that a region is the same in both (Chaitanya et al. 2020);
            without, each is cropped on its own and it is not (TEDM's code).
        trains_local_head: False leaves the local head at its random weights (TEDM's code).
        across_images: the same region of two patches of a batch counts as a pair, too, as in TEDM's code; sensible
            where all patches show the same place, as whole radiographs do.
    """

    local_levels: int = Field(default=2, ge=1)
    regions: int = Field(default=20, ge=2)
    region_size: int = Field(default=3, ge=1)
    aligned_views: bool = True
    trains_local_head: bool = True
    across_images: bool = False


class GlobalLocalContrast(GlobalContrast):
    """`global-cl`, then features of the decoder that say which regions of two views are the same."""

    Settings = GlobalLocalContrastSettings
    stages = (*GlobalContrast.stages, Stage(name="local", supervision="none", views=2, aligned=True, effort=2.0))

    def __init__(self, task: Task, settings: GlobalLocalContrastSettings) -> None:
        super().__init__(task, settings)
        taps = default_taps(settings)
        if settings.local_levels > len(taps):
            raise UsageError(
                f"local_levels {settings.local_levels}: the decoder has {len(taps)}",
                where="--set local_levels",
                fix=f"use 1 to {len(taps)}",
            )
        self._tap = taps[settings.local_levels - 1]
        (width,), projected = self.network.tap_channels([self._tap]), settings.projected_features
        conv, norm = _CONVOLUTIONS[task.n_dims], _NORMS[task.n_dims]
        self.local_head = nn.Sequential(
            conv(width, projected, 1, bias=False),
            nn.ReLU(),
            # Always by the batch at hand, so that a frozen head has no statistics that could drift.
            norm(projected, track_running_stats=False),
            conv(projected, projected, 1, bias=False),
        )
        head = ("local_head.",) if settings.trains_local_head else ()
        local = replace(type(self).stages[1], trains=(*self._decoder(), *head), aligned=settings.aligned_views)
        self.stages = (*self.stages, local)

    def _decoder(self) -> tuple[str, ...]:
        """Return the prefixes of the parameters between the middle and the local map."""
        return tuple(f"network.{part}." for part in self.network.parts_up_to(self._tap))

    def loss(self, batch: Batch, stage: Stage, noise: NoiseSource) -> dict[str, Tensor]:
        """Return NT-Xent of whole patches, or (in the stage `local`) of their regions.

        Regions are told from those of the other view of the same patch (Chaitanya et al. 2020, Eq. 3).
        """
        if stage.name != "local":
            return super().loss(batch, stage, noise)
        views, t = views_of(batch)
        (features,) = self.network(views, t, taps=[self._tap])
        first, second = self._regions(self.local_head(features), noise).chunk(2)
        if self.settings.across_images:
            first, second = first[:, None], second[None]
        return {"local": self._compared(first, second, same_view_negatives=False)}

    def _regions(self, maps: Tensor, noise: NoiseSource) -> Tensor:
        """Return regions (item, region, feature) of maps (item, channel, *spatial), at the same places in all.

        The map is cut into tiles from a drawn corner on, and some tiles are drawn. Each patch adds to the draw, so that
        it does not depend on their order.
        """
        tiles = maps.movedim(1, -1)
        for axis, extent in enumerate(maps.shape[2:]):
            edge = min(self.settings.region_size, max(1, extent // 2))
            n_tiles = extent // edge
            slack = extent - n_tiles * edge + 1
            corner = noise.randint(0, slack).sum() % slack
            kept = corner + torch.arange(n_tiles * edge, device=corner.device)
            # (item, tile, inside a tile, ...) of the axes so far, then those to come.
            tiles = tiles.index_select(2 * axis + 1, kept.to(maps.device)).unflatten(2 * axis + 1, (n_tiles, edge))
        n = self.task.n_dims
        order = (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
        regions = tiles.permute(order).flatten(n + 1).flatten(1, n)
        draws = (noise.rand(regions.shape[1]) * 2**_DRAW_BITS).long().sum(0) % 2**_DRAW_BITS
        chosen = draws.argsort(stable=True)[: self.settings.regions]
        return regions.index_select(1, chosen.to(maps.device))


def views_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return both views of a batch one after the other, (2 batch, channel, *spatial), and their timesteps.

    Raises:
        ValueError: the batch has no second view.
    """
    if not batch.views:
        raise ValueError("contrastive pretraining needs two views of a patch")
    views = torch.cat([batch.image, batch.views[0]])
    return views, torch.full((len(views),), LEAST_NOISE, device=views.device)
