"""Pixel classifier: small MLPs on a network's features, one pixel at a time, as LEDM and TEDM use them.

Features come as a list of blocks, each at its own resolution. The textbook way enlarges all of them to the image's
size and concatenates: gigabytes for an image of 256 x 256 (Baranchuk et al. 2022 needed 210 GB for 50 images). Here
nothing but one tile of hidden values is ever enlarged:

- training gathers the features of sampled pixels (`logits_at`);
- prediction applies the first linear layer to each block at its own resolution, then enlarges and sums the hidden
  values, tile by tile (`forward_dense`). That is exact: interpolation works on pixels, a linear layer on channels, so
  they commute, and the bias is added once because interpolation weights sum to 1.

The layers are those of LEDM's code: linear, ReLU, batch norm, twice, then linear.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Upsampling = Literal["linear", "nearest"]

# Hidden values in a tile, 4 MB in float32; a few temporaries of this size exist at once.
TILE_NUMBERS = 2**20
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class PixelClassifier(nn.Module):
    """One or several MLPs of 1x1 convolutions over the same features.

    The batch norms use the statistics of all pixels of all items in a training batch. Where several timesteps share
    one classifier (TEDM), the caller joins them along the batch axis, so that they share the statistics too; steps in
    separate calls would each be normed by their own. Heads never share statistics.

    Args:
        channels: features of each block, in the order in which the blocks are given.
        n_classes: outputs of each head.
        n_heads: independent classifiers (LEDM votes over 10).
        hidden: widths of the hidden layers; empty for a logistic regression, a single linear layer.
        upsampling: how a block is enlarged: "linear" (bi- or trilinear, `align_corners=False`, LEDM) or "nearest"
            (TEDM's code).
        init_std: standard deviation of the normal initial weights, with biases 0 (LEDM: 0.02); None: PyTorch's own.
    """

    def __init__(
        self,
        channels: Sequence[int],
        n_classes: int,
        *,
        n_heads: int = 1,
        hidden: Sequence[int] = (128, 32),
        upsampling: Upsampling = "linear",
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        if not channels or min(*channels, n_classes, n_heads, *hidden, 1) < 1:
            raise ValueError(f"channels {tuple(channels)}, hidden {tuple(hidden)}, {n_classes} classes: all 1 or more")
        self.channels, self.n_classes, self.n_heads = tuple(channels), n_classes, n_heads
        self.upsampling = upsampling
        widths = [*hidden, n_classes]
        self.first = nn.Conv1d(sum(channels), n_heads * widths[0], 1)
        self.norms = nn.ModuleList([nn.BatchNorm1d(n_heads * width) for width in hidden])
        # A group a head: head i sees only the hidden values of head i.
        self.later = nn.ModuleList(
            [nn.Conv1d(n_heads * a, n_heads * b, 1, groups=n_heads) for a, b in pairwise(widths)]
        )
        if init_std is not None:
            for layer in (self.first, *self.later):
                nn.init.normal_(layer.weight, std=init_std)
                nn.init.zeros_(layer.bias)

    def logits_at(self, features: Sequence[Tensor], positions: Tensor, out_shape: Sequence[int]) -> Tensor:
        """Return the logits of some pixels; works in training mode, gradients flow.

        Args:
            features: a block each (batch, channel, *grid), any floating type.
            positions: int64 (batch, n, axis), indices into `out_shape`, each item its own.
            out_shape: size of the image that the blocks would be enlarged to.

        Returns:
            (batch, head, class, n): what enlarging all blocks and picking these pixels would give.

        Raises:
            ValueError: blocks or positions don't fit the classifier or `out_shape`.
        """
        self._check(features, out_shape)
        if positions.ndim != 3 or positions.shape[0] != len(features[0]) or positions.shape[2] != len(out_shape):
            raise ValueError(f"positions {tuple(positions.shape)}: need ({len(features[0])}, n, {len(out_shape)})")
        return self.logits_of([gather_pixels(block, positions, out_shape, self.upsampling) for block in features])

    def logits_of(self, gathered: Sequence[Tensor]) -> Tensor:
        """Return the logits of pixels whose features were gathered already (see `gather_pixels`).

        Args:
            gathered: a block each (batch, channel, n).

        Returns:
            (batch, head, class, n).
        """
        h: Tensor = self.first.bias[:, None]
        for picked, weight in zip(gathered, self.first.weight.split(self.channels, dim=1), strict=True):
            h = h + F.conv1d(picked.to(weight.dtype), weight)
        for norm, layer in zip(self.norms, self.later, strict=True):
            h = layer(norm(F.relu(h)))
        return h.unflatten(1, (self.n_heads, self.n_classes))

    @torch.no_grad()
    def forward_dense(self, features: Sequence[Tensor], out_shape: Sequence[int]) -> Tensor:
        """Return the logits of every pixel, (batch, head, class, *out_shape); for prediction, without gradients.

        Beside the result, memory holds one head's hidden values at the blocks' resolutions and one tile.

        Args:
            features: a block each (batch, channel, *grid), any floating type.
            out_shape: size of the result.

        Raises:
            ValueError: the classifier is in training mode, where batch norms need all pixels at once; or blocks don't
                fit the classifier.
        """
        self._check(features, out_shape)
        if self.training and len(self.norms) > 0:
            raise ValueError("forward_dense needs eval mode: statistics of a batch cannot be had tile by tile")
        # Autocast would round what this must compute exactly.
        with torch.autocast(self.first.weight.device.type, enabled=False):
            return self._dense(features, tuple(out_shape))

    def _dense(self, features: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        batch = len(features[0])
        result = self.first.bias.new_empty(batch, self.n_heads, self.n_classes, *shape)
        layers = self._folded()
        for item, head in product(range(batch), range(self.n_heads)):
            weights, bias = self._first_of(head)
            blocks = _FirstLayer([feature[item] for feature in features], weights, bias, shape, self.upsampling)
            for rows in _tiles(shape, len(bias)):
                h = blocks.tile(rows)
                for weight, offset in layers:
                    h = torch.addmm(offset[head][:, None], weight[head], h.relu_())
                result[item, head, :, rows.start : rows.stop] = h.unflatten(1, (len(rows), *shape[1:]))
        return result

    def _first_of(self, head: int) -> tuple[list[Tensor], Tensor]:
        """Return the first layer of a head: weights (width, channel) a block, and the bias (width,)."""
        weight, bias = self.first.weight[..., 0].chunk(self.n_heads)[head], self.first.bias.chunk(self.n_heads)[head]
        return list(weight.split(self.channels, dim=1)), bias

    def _folded(self) -> list[tuple[Tensor, Tensor]]:
        """Return the later layers as (head, out, in) weights and (head, out) biases, norms folded in.

        A norm follows a ReLU, so it can be folded only forwards, into the linear layer after it.
        """
        layers = []
        for norm, layer in zip(self.norms, self.later, strict=True):
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            shift = norm.bias - norm.running_mean * scale
            weight, bias = layer.weight[..., 0].unflatten(0, (self.n_heads, -1)), layer.bias.view(self.n_heads, -1)
            scale, shift = scale.view(self.n_heads, 1, -1), shift.view(self.n_heads, -1, 1)
            layers.append((weight * scale, bias + (weight @ shift)[..., 0]))
        return layers

    def _check(self, features: Sequence[Tensor], out_shape: Sequence[int]) -> None:
        found = tuple(feature.shape[1] for feature in features)
        if found != self.channels:
            raise ValueError(f"blocks have {found} features, the classifier was built for {self.channels}")
        if any(feature.ndim != len(out_shape) + 2 or len(feature) != len(features[0]) for feature in features):
            shapes = [tuple(feature.shape) for feature in features]
            raise ValueError(f"blocks {shapes} must be (batch, channel, *grid) with {len(out_shape)} axes, one batch")


class _FirstLayer:
    """The first linear layer of one head on one item's blocks, enlarged a tile at a time.

    Args:
        blocks: (channel, *grid) each.
        weights: (width, channel) each.
        bias: (width,).
    """

    def __init__(
        self, blocks: list[Tensor], weights: list[Tensor], bias: Tensor, shape: tuple[int, ...], mode: Upsampling
    ) -> None:
        self._bias, self._shape, self._mode = bias, shape, mode
        self._fine: list[tuple[Tensor, Tensor]] = []
        self._coarse: dict[tuple[int, ...], Tensor] = {}
        for block, weight in zip(blocks, weights, strict=True):
            grid = tuple(block.shape[1:])
            if grid == shape:  # Nothing to enlarge: left for the tiles, so that no hidden values of this size exist.
                self._fine.append((block, weight))
                continue
            hidden = (weight @ block.flatten(1).to(weight.dtype)).unflatten(1, grid)
            # Blocks of one resolution are enlarged as one.
            self._coarse[grid] = hidden if grid not in self._coarse else self._coarse[grid].add_(hidden)

    def tile(self, rows: range) -> Tensor:
        """Return hidden values (width, pixel) of these rows of the first axis, all pixels of the others."""
        h = self._bias[:, None].repeat(1, len(rows) * math.prod(self._shape[1:]))
        for block, weight in self._fine:
            h.addmm_(weight, block[:, rows.start : rows.stop].flatten(1).to(weight.dtype))
        for hidden in self._coarse.values():
            h.add_(_enlarged(hidden, rows, self._shape, self._mode).flatten(1))
        return h


def gather_pixels(feature: Tensor, positions: Tensor, out_shape: Sequence[int], mode: Upsampling) -> Tensor:
    """Return features (batch, channel, n) of some pixels, as if `feature` had been enlarged to `out_shape`.

    Args:
        feature: (batch, channel, *grid).
        positions: int64 (batch, n, axis), indices into `out_shape`.
        out_shape: size of the enlarged grid.
        mode: "linear" or "nearest", as `torch.nn.functional.interpolate` without `align_corners`.
    """
    grid = feature.shape[2:]
    flat = feature.flatten(2)
    exact = torch.promote_types(feature.dtype, torch.float32)
    axes = [
        _neighbours(positions[..., axis], n_in, n_out, mode, exact)
        for axis, (n_in, n_out) in enumerate(zip(grid, out_shape, strict=True))
    ]
    result: Tensor | None = None
    for corner in product(*[(0, 1) if mode == "linear" and n > 1 else (0,) for n in grid]):
        index = torch.zeros_like(positions[..., 0])
        weight = torch.ones_like(axes[0][2])
        for side, n_in, (lower, upper, fraction) in zip(corner, grid, axes, strict=True):
            index = index * n_in + (upper if side else lower)
            weight = weight * (fraction if side else 1 - fraction)
        picked = flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1))
        if mode == "nearest":
            return picked
        part = picked.to(exact) * weight[:, None]
        result = part if result is None else result + part
    return result


def _neighbours(
    index: Tensor, n_in: int, n_out: int, mode: Upsampling, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, along one axis, the two source pixels of each output pixel, and the share of the upper one.

    The arithmetic is that of `torch.nn.functional.interpolate`, in the same precision.
    """
    # Nearest works in float32 whatever the type of the features.
    kind = torch.float32 if mode == "nearest" else dtype
    scale = n_in / n_out  # Rounded to `kind` when it multiplies.
    if mode == "nearest":
        lower = (index.to(kind) * scale).floor().long().clamp(max=n_in - 1)
        return lower, lower, torch.zeros_like(lower, dtype=dtype)
    source = ((index.to(kind) + 0.5) * scale - 0.5).clamp(min=0)
    lower = source.long().clamp(max=n_in - 1)
    upper = (lower + 1).clamp(max=n_in - 1)
    # At the border both are one pixel: it has the whole weight.
    return lower, upper, (source - lower).where(upper > lower, 0)


def _enlarged(hidden: Tensor, rows: range, shape: tuple[int, ...], mode: Upsampling) -> Tensor:
    """Return (width, row, *shape[1:]): `hidden` (width, *grid) enlarged to `shape`, these rows only."""
    index = torch.arange(rows.start, rows.stop, device=hidden.device)
    lower, upper, fraction = _neighbours(index, hidden.shape[1], shape[0], mode, hidden.dtype)
    tile = hidden.index_select(1, lower)
    if mode == "linear":
        tile = tile.lerp(hidden.index_select(1, upper), fraction.view(-1, *(1,) * (hidden.ndim - 2)))
    if tile.shape[2:] == shape[1:]:
        return tile
    # Interpolation is separable: the first axis is done, the rows now pass as channels.
    kind = "nearest" if mode == "nearest" else _MODES[len(shape) - 1]
    return F.interpolate(tile, size=shape[1:], mode=kind)


def _tiles(shape: tuple[int, ...], width: int) -> Iterator[range]:
    """Yield ranges of rows of the first axis whose hidden values stay within `TILE_NUMBERS`, but one row at least."""
    n_rows = max(1, TILE_NUMBERS // (width * math.prod(shape[1:])))
    for start in range(0, shape[0], n_rows):
        yield range(start, min(start + n_rows, shape[0]))
