"""SegFormer (Xie et al. 2021, arXiv 2105.15203): hierarchical transformer and light head, under `transformers`' names.

Weights that were published for `SegformerForSemanticSegmentation`, or for the encoder's ImageNet training, fit as they
are: `segformer.encoder.patch_embeddings.0.proj.weight`, `segformer.encoder.block.0.0.attention.self.query.weight`,
`decode_head.linear_c.0.proj.weight` and so on.

Differs from there: width and number of blocks are settings (64 and 3, 4, 18, 3 in B3), so is the number of image
channels; logits are stretched to the image's size.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsegdiff_cli.networks.depth import Layers, each_of

# Of the four stages: patch and stride of the embedding, width and heads in units of the first stage's, and by how much
# keys and values are reduced (Table 6 of the paper).
_PATCHES, _STRIDES, _WIDTHS, _REDUCTIONS = (7, 3, 3, 3), (4, 2, 2, 2), (1, 2, 5, 8), (8, 4, 2, 1)
_MLP_RATIO = 4


def _tokens(x: Tensor) -> Tensor:
    """Return (batch, position, channel) of features (batch, channel, height, width)."""
    return x.flatten(2).transpose(1, 2)


def _picture(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return (batch, channel, height, width) of tokens (batch, position, channel)."""
    return x.transpose(1, 2).reshape(len(x), -1, *size)


class PatchEmbedding(nn.Module):
    """Overlapping patches as tokens."""

    def __init__(self, in_channels: int, channels: int, patch: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, patch, stride=stride, padding=patch // 2)
        self.layer_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Sequence[int]]:
        """Return tokens (batch, position, channel) of a picture, and their height and width."""
        x = self.proj(x)
        return self.layer_norm(_tokens(x)), x.shape[2:]


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values come from a picture that is `reduction` times smaller along each axis."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.sr: nn.Module | None = None
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.layer_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Return tokens of the shape of `x`, (batch, position, channel)."""
        seen = x if self.sr is None else self.layer_norm(_tokens(self.sr(_picture(x, size))))
        parts = [layer(tokens) for layer, tokens in ((self.query, x), (self.key, seen), (self.value, seen))]
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class MixMLP(nn.Module):
    """Two linear layers with a 3x3 depthwise convolution between them, which tells positions apart."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels * _MLP_RATIO
        self.dense1 = nn.Linear(channels, inner)
        self.dwconv = nn.Module()
        self.dwconv.dwconv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.dense2 = nn.Linear(inner, channels)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Return tokens of the shape of `x`."""
        mixed = _tokens(self.dwconv.dwconv(_picture(self.dense1(x), size)))
        tokens: Tensor = self.dense2(F.gelu(mixed))
        return tokens


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to its input; `drop_path` leaves them out for whole items."""

    def __init__(self, channels: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.layer_norm_1 = nn.LayerNorm(channels)
        # `self` is the published name of the attention proper.
        self.attention = nn.ModuleDict(
            {
                "self": ReducedAttention(channels, heads, reduction),
                "output": nn.ModuleDict({"dense": nn.Linear(channels, channels)}),
            }
        )
        self.layer_norm_2 = nn.LayerNorm(channels)
        self.mlp = MixMLP(channels)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Return tokens of the shape of `x`."""
        attended = self.attention["self"](self.layer_norm_1(x), size)
        x = x + self._kept(self.attention["output"]["dense"](attended))
        return x + self._kept(self.mlp(self.layer_norm_2(x), size))

    def _kept(self, x: Tensor) -> Tensor:
        if not (self.training and self.drop_path):
            return x
        kept = torch.rand((len(x), 1, 1), device=x.device) >= self.drop_path
        return x * kept / (1 - self.drop_path)


class Encoder(nn.Module):
    """Mix transformer: four stages at a quarter to a thirty-second of the resolution."""

    def __init__(self, in_channels: int, width: int, blocks: Sequence[int], drop_path: float) -> None:
        super().__init__()
        self.channels = [width * factor for factor in _WIDTHS]
        inputs = [in_channels, *self.channels]
        rates = [drop_path * index / max(sum(blocks) - 1, 1) for index in range(sum(blocks))]
        self.patch_embeddings, self.block, self.layer_norm = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for index, (number, channels) in enumerate(zip(blocks, self.channels, strict=True)):
            own, rates = rates[:number], rates[number:]
            self.patch_embeddings.append(PatchEmbedding(inputs[index], channels, _PATCHES[index], _STRIDES[index]))
            self.block.append(nn.ModuleList(Block(channels, _WIDTHS[index], _REDUCTIONS[index], rate) for rate in own))
            self.layer_norm.append(nn.LayerNorm(channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features (batch, channel, height, width) of each stage."""
        features = []
        for embed, blocks, norm in zip(self.patch_embeddings, self.block, self.layer_norm, strict=True):
            tokens, size = embed(x)
            for block in blocks:
                tokens = block(tokens, size)
            x = _picture(norm(tokens), size)
            features.append(x)
        return features


class DecodeHead(nn.Module):
    """Every stage's features, projected, stretched to the finest and joined."""

    def __init__(self, channels: Sequence[int], width: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.linear_c = nn.ModuleList(nn.ModuleDict({"proj": nn.Linear(n, width)}) for n in channels)
        self.linear_fuse = nn.Conv2d(width * len(channels), width, 1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(width, out_channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (batch, class, height, width) at the finest stage's resolution."""
        finest = features[0].shape[2:]
        projected = []
        for layer, picture in zip(self.linear_c, features, strict=True):
            same = _picture(layer["proj"](_tokens(picture)), picture.shape[2:])
            projected.append(F.interpolate(same, size=finest, mode="bilinear", align_corners=False))
        joined = self.linear_fuse(torch.cat(projected[::-1], 1))
        logits: Tensor = self.classifier(self.dropout(F.relu(self.batch_norm(joined))))
        return logits


class SegFormer(nn.Module):
    """Image in, logits of the classes out; two spatial axes, multiples of 32.

    Args:
        width: channels of the first stage, 64 in B1 to B5.
        blocks: of the four stages, (3, 4, 18, 3) in B3.
        drop_path: probability with which the last block is left out; it grows from 0 at the first.
        head_width: channels of the head, 768 in B2 to B5.
        dropout: probability of a zeroed feature before the last layer.
    """

    input_layer: ClassVar[str] = "segformer.encoder.patch_embeddings.0.proj"
    output_layer: ClassVar[str] = "decode_head.classifier"
    encoder_parts: ClassVar[tuple[str, ...]] = ("segformer",)
    decoder_parts: ClassVar[tuple[str, ...]] = ("decode_head",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        blocks: Sequence[int] = (3, 4, 18, 3),
        drop_path: float = 0.1,
        head_width: int = 768,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        encoder = Encoder(in_channels, width, blocks, drop_path)
        self.segformer = nn.ModuleDict({"encoder": encoder})
        self.decode_head = DecodeHead(encoder.channels, head_width, out_channels, dropout)
        self.apply(_initialise)

    def layers_in_order(self) -> Layers:
        """Return the submodules, layer by layer: each transformer block is one, and what leads to a stage another."""
        encoder, layers = self.segformer["encoder"], []
        for stage, blocks in enumerate(encoder.block):
            # The norm at a stage's end goes with what follows it, here the next stage's embedding, or the head.
            before = (f"segformer.encoder.layer_norm.{stage - 1}",) if stage else ()
            layers += [(*before, f"segformer.encoder.patch_embeddings.{stage}")]
            layers += each_of(f"segformer.encoder.block.{stage}", length=len(blocks))
        last = f"segformer.encoder.layer_norm.{len(encoder.block) - 1}"
        joined = ("decode_head.linear_c", "decode_head.linear_fuse", "decode_head.batch_norm")
        return (*layers, (last, *joined), ("decode_head.classifier",))

    @property
    def divisor(self) -> tuple[int, ...]:
        """The coarsest stage's stride of each axis."""
        return (32, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, class, height, width) of an image (batch, channel, height, width)."""
        logits = self.decode_head(self.segformer["encoder"](x))
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)


def _initialise(module: nn.Module) -> None:
    """Draw the linear layers and convolutions as `transformers` does."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
