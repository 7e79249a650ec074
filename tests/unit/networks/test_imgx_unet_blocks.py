"""The blocks of the ImgX U-Net against torch's own layers and against their formulas written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medsegdiff_cli.networks.imgx_blocks import (
    InstanceNorm32,
    LayerNorm32,
    TimedResBlock,
    TransformerBlock,
    grid_encoding,
)
from medsegdiff_cli.networks.layers import SPATIAL_OPS


def transformer(encoding="none", channels=8, heads=2, head_channels=4):
    torch.manual_seed(0)
    return TransformerBlock(
        channels, num_heads=heads, num_head_channels=head_channels, dropout=0.1, positional_encoding=encoding
    )


def randomise(module):
    """Give every parameter a value of its own: gains of 1 and offsets of 0 hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (2, 6, 3, 4, 2)])
def test_the_instance_norm_is_torchs(shape):
    x, norm = torch.randn(shape, dtype=torch.float64), randomise(InstanceNorm32(6)).double()
    expected = F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=1e-5)
    torch.testing.assert_close(norm(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_instance_norm_of_one_voxel_is_its_offset(batch):
    norm, x = randomise(InstanceNorm32(4)), torch.randn(batch, 4, 1, 1, 1, requires_grad=True)
    # Rounding is divided by the square root of 1e-5.
    torch.testing.assert_close(norm(x), norm.bias.reshape(1, 4, 1, 1, 1).expand(batch, 4, 1, 1, 1), rtol=0, atol=1e-3)
    norm(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("norm", [InstanceNorm32(4), LayerNorm32(4)])
def test_norms_compute_in_float32_at_least_and_keep_the_type(norm):
    # Around 1000 the numbers of bfloat16 are 4 apart: only the input is rounded, not the computation.
    x = (1000 + 16 * torch.randn(2, 4, 4, 4)).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), norm(x.float()).bfloat16())
    assert norm.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("injection", ["after-norm", "cancelled", None])
def test_the_residual_block_is_its_formula(injection):
    torch.manual_seed(0)
    block = randomise(
        TimedResBlock(
            SPATIAL_OPS[3],
            4,
            embedding_width=None if injection is None else 6,
            time_injection=injection or "after-norm",
            dropout=0.1,
        )
    ).eval()
    x, embedding = torch.randn(2, 4, 3, 5, 4), None if injection is None else torch.randn(2, 6)

    def norm(h, layer):
        return F.instance_norm(h, weight=layer.weight, bias=layer.bias)

    h = F.conv3d(F.gelu(norm(F.conv3d(x, block.conv1.weight, padding=1), block.norm1)), block.conv2.weight, padding=1)
    if injection == "after-norm":
        scale, shift = block.time(F.gelu(embedding))[..., None, None, None].chunk(2, dim=1)
        h = (1 + scale) * norm(h, block.norm2) + shift
    elif injection == "cancelled":
        h = norm(h + block.time(F.gelu(embedding))[..., None, None, None], block.norm2)
    else:
        h = norm(h, block.norm2)
    torch.testing.assert_close(block(x, embedding), F.gelu(x + h), rtol=1e-4, atol=1e-5)


def test_the_transformer_block_is_torchs_encoder_layer_and_a_last_norm():
    # torch's heads share the channels: 2 heads of 4 make 8.
    ours = randomise(transformer()).double().eval()
    layer = nn.TransformerEncoderLayer(
        8, 2, dim_feedforward=32, activation="gelu", norm_first=True, batch_first=True, dtype=torch.float64
    ).eval()
    theirs = nn.TransformerEncoder(layer, 1, norm=nn.LayerNorm(8, dtype=torch.float64), enable_nested_tensor=False)
    names = {
        "norm1": "layers.0.norm1", "norm2": "layers.0.norm2", "norm_out": "norm", "mlp.0": "layers.0.linear1",
        "mlp.2": "layers.0.linear2", "proj_out": "layers.0.self_attn.out_proj",
    }  # fmt: skip
    state = {
        f"{theirs_}.{kind}": ours.state_dict()[f"{ours_}.{kind}"]
        for ours_, theirs_ in names.items()
        for kind in ("weight", "bias")
    }
    state |= {f"layers.0.self_attn.in_proj_{kind}": ours.state_dict()[f"qkv.{kind}"] for kind in ("weight", "bias")}
    theirs.load_state_dict(state)
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    expected = theirs.eval()(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(ours(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 2)])
@pytest.mark.parametrize(("encoding", "follows"), [("none", True), ("sinusoidal", False)])
def test_voxels_are_a_set_unless_they_are_told_their_place(shape, encoding, follows):
    block = randomise(transformer(encoding)).double().eval()
    x = torch.randn(1, 8, *shape, dtype=torch.float64)
    order = torch.randperm(math.prod(shape), generator=torch.Generator().manual_seed(1))

    def shuffled(h):
        return h.flatten(2)[..., order].reshape(h.shape)

    difference = (block(shuffled(x)) - shuffled(block(x))).abs().max()
    assert (difference < 1e-10) == follows
    assert follows or difference > 1e-2


def test_heads_need_not_divide_the_features():
    block = transformer(channels=6, heads=8, head_channels=64)
    assert block.qkv.weight.shape == (3 * 512, 6)
    assert block(torch.randn(2, 6, 4, 4)).shape == (2, 6, 4, 4)


def test_the_place_of_a_voxel_is_coded_axis_by_axis():
    # 8 channels, 3 axes: 2 channels each (cosine and sine of the index), the last 2 stay empty.
    code = grid_encoding(8, (2, 3, 4), torch.device("cpu"))
    z, y, x = 1, 2, 3
    expected = [math.cos(z), math.sin(z), math.cos(y), math.sin(y), math.cos(x), math.sin(x), 0.0, 0.0]
    torch.testing.assert_close(code[:, z, y, x], torch.tensor(expected))
    larger = grid_encoding(8, (4, 3, 9), torch.device("cpu"))
    assert torch.equal(larger[:, :2, :3, :4], code), "the code of a place does not depend on the grid"
    flat = grid_encoding(32, (12, 12), torch.device("cpu")).flatten(1).T
    apart = torch.cdist(flat, flat) + torch.eye(len(flat)) * 9
    assert apart.min() > 0.5, "no two places have the same code"
