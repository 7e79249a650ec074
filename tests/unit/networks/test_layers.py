"""Norm, timestep embedding, resampling and attention on numbers that can be followed by hand."""

import math

import pytest
import torch

from medsegdiff_cli.networks.blocks import AttentionBlock
from medsegdiff_cli.networks.layers import SPATIAL_OPS, Downsample, Upsample, group_norm, timestep_embedding


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (16, 16), (24, 8), (7, 1)])
def test_groups_divide_the_channels(channels, groups):
    assert group_norm(channels, 32).num_groups == groups


def test_norm_of_bfloat16_is_computed_in_float32():
    # 100 + k/2 has mean 100 and a spread that sums of bfloat16 would lose.
    x = (100 + torch.tensor([-0.5, 0.5, -0.5, 0.5])).bfloat16().reshape(1, 1, 2, 2)
    normed = group_norm(1, 1).bfloat16()(x)
    assert normed.dtype == torch.bfloat16
    torch.testing.assert_close(normed.flatten().float(), torch.tensor([-1.0, 1.0, -1.0, 1.0]))


def test_norm_of_float64_keeps_its_precision():
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    groups = x.reshape(2, 2, 2, 25)
    expected = (groups - groups.mean((2, 3), keepdim=True)) / (
        groups.var((2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(group_norm(4, 2).double()(x), expected.reshape(x.shape), rtol=1e-12, atol=1e-12)


def test_timesteps_become_cosines_then_sines_of_falling_frequencies():
    t = 3
    expected = [math.cos(t), math.cos(t / 100), math.sin(t), math.sin(t / 100)]  # 10000 ** (1/2) = 100
    assert timestep_embedding(torch.tensor([t]), 4)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_an_odd_embedding_ends_with_zero_and_fractions_are_kept():
    embedding = timestep_embedding(torch.tensor([0.5]), 3)
    assert embedding[0].tolist() == pytest.approx([math.cos(0.5), math.sin(0.5), 0])


def test_a_thousand_timesteps_are_told_apart():
    embedding = timestep_embedding(torch.arange(1000), 16)
    distances = torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")
    assert (distances + torch.eye(1000)).min() > 1e-3


def test_resampling_averages_down_and_repeats_up_along_the_given_axes():
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).reshape(1, 1, 2, 2)
    assert Downsample(SPATIAL_OPS[2], (1, 2))(x).tolist() == [[[[2.0], [6.0]]]]
    assert Upsample(SPATIAL_OPS[2], (2, 1))(x).tolist() == [[[[1, 3], [1, 3], [5, 7], [5, 7]]]]


def test_attention_equals_its_definition_head_by_head():
    torch.manual_seed(0)
    block = AttentionBlock(6, num_head_channels=3, num_groups=2).double()
    torch.nn.init.normal_(block.proj_out.weight)
    x = torch.randn(1, 6, 2, 3, dtype=torch.float64)
    qkv = block.qkv(block.norm(x).flatten(2))[0]
    heads = []
    for rows in qkv.split(9):  # one head after the other: 3 rows of query, key and value each
        query, key, value = rows.split(3)
        weights = (query.T @ key / math.sqrt(3)).softmax(dim=1)
        heads.append(value @ weights.T)
    expected = x + block.proj_out(torch.cat(heads)[None]).reshape(x.shape)
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def test_heads_that_do_not_fit_the_channels_become_narrower():
    assert AttentionBlock(96, num_head_channels=64, num_groups=32).num_heads == 3  # gcd 32
    assert AttentionBlock(16, num_head_channels=64, num_groups=32).num_heads == 1
