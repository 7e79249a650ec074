"""The TEDM paper's U-Net: its size, taps, time, attention, strides and checkpointing."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from medsegdiff_cli.networks.tedm_blocks import (
    ChannelNorm,
    CosineAttention,
    FiLMBlock,
    LinearAttention,
    sinusoidal_embedding,
)
from medsegdiff_cli.networks.tedm_unet import TEDMSettings, TEDMUNet

SMALL = {
    "n_dims": 2, "in_channels": 1, "out_channels": 2, "model_channels": 8, "channel_mult": (1, 2, 4),
    "num_heads": 2, "num_head_channels": 4, "num_groups": 4,
}  # fmt: skip
T = torch.tensor([3, 700])


def small(**changes):
    torch.manual_seed(0)
    return TEDMUNet.from_settings({**SMALL, **changes}).eval()


def image(n_dims=2, batch=2):
    return torch.randn(batch, 1, *(8, 16, 8)[:n_dims], generator=torch.Generator().manual_seed(1))


def test_the_papers_network_has_36_2_million_parameters_and_960_features():
    with torch.device("meta"):
        network = TEDMUNet(TEDMSettings(n_dims=2, in_channels=1, out_channels=1))
        features = network(torch.empty(1, 1, 128, 128), torch.tensor([1]), taps=(0, 1, 2, 3))
    assert sum(p.numel() for p in network.parameters()) == 36_245_377
    assert [tuple(f.shape[1:]) for f in features] == [(512, 16, 16), (256, 32, 32), (128, 64, 64), (64, 128, 128)]
    assert sum(network.tap_channels((0, 1, 2, 3))) == 512 + 256 + 128 + 64 == 960
    assert network.time_embed[0].weight.shape == (256, 64)


@pytest.mark.parametrize("n_dims", [2, 3])
def test_output_has_the_size_of_the_input_and_depends_on_time(n_dims):
    network, x = small(n_dims=n_dims), image(n_dims)
    output = network(x, T)
    assert output.shape == (2, 2, *x.shape[2:])
    assert (output - network(x, T + 200)).abs().mean() > 1e-2


def test_taps_are_what_attention_gives_in_the_order_asked_for():
    network, x = small(), image()
    seen = {}
    for index, level in enumerate(network.up_levels):
        level.attention.register_forward_hook(lambda _, __, out, index=index: seen.__setitem__(index, out))
    features = network(x, T, taps=(1, 0))
    assert sorted(seen) == [0, 1], "nothing runs after the last tap"
    assert torch.equal(features[0], seen[1])
    assert torch.equal(features[1], seen[0])
    assert [tuple(f.shape[1:]) for f in features] == [(16, 4, 8), (32, 2, 4)]
    assert network.tap_channels((1, 0)) == (16, 32)


def test_without_time_no_embedding_layer_exists():
    network = small(use_time=False)
    assert not [name for name in network.state_dict() if "time" in name or "film" in name]
    assert network(image()).shape == (2, 2, 8, 16)


@pytest.mark.parametrize("n_dims", [2, 3])
def test_strides_differ_per_axis(n_dims):
    strides = ((1, *[2] * (n_dims - 1)), (2,) * n_dims)
    network, x = small(n_dims=n_dims, strides=strides), image(n_dims)
    assert network.divisor == (2, *[4] * (n_dims - 1))
    coarse = tuple(n // d for n, d in zip(x.shape[2:], network.divisor, strict=True))
    assert network(x, T, taps=[0])[0].shape[2:] == coarse
    assert network(x, T).shape == (2, 2, *x.shape[2:])


def test_attention_is_where_it_is_asked_for():
    def attention(network):
        return [type(level.attention).__name__ for level in [*network.down_levels, *network.up_levels]]

    assert attention(small()) == ["LinearAttention"] * 6
    assert attention(small(attention_levels=(2,))) == ["Identity"] * 2 + ["LinearAttention"] * 2 + ["Identity"] * 2
    without = small(attention_levels=())
    assert not [module for module in without.modules() if isinstance(module, (LinearAttention, CosineAttention))]


def test_every_parameter_is_trained():
    network = small(dropout=0.1).train()
    network(image(), T).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [name for name, p in network.named_parameters() if p.ndim > 1 and not p.grad.any()] == []


def test_checkpointing_changes_memory_and_not_gradients():
    gradients = []
    for again in (False, True):
        network = small(gradient_checkpointing=again).train()
        network(image(), T).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_items_of_a_batch_do_not_see_each_other():
    network, x = small().double(), image().double()
    alone = torch.cat([network(x[i : i + 1], T[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(network(x, T), alone, rtol=1e-9, atol=1e-9)


def test_the_embedding_has_sines_first_and_ends_at_a_period_of_ten_thousand():
    # half = 3 frequencies: 10000 ** -(0 / 2), 10000 ** -(1 / 2), 10000 ** -(2 / 2) = 1, 1 / 100, 1 / 10000.
    angles = [5.0, 5.0 / 100, 5.0 / 10_000]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(sinusoidal_embedding(torch.tensor([5]), 6), torch.tensor([expected]))
    assert sinusoidal_embedding(torch.tensor([5]), 7)[0, -1] == 0


def test_the_channel_norm_is_a_layer_norm_of_channels_last():
    x, norm = torch.randn(2, 6, 3, 4), ChannelNorm(6)
    with torch.no_grad():
        norm.gain.copy_(torch.arange(1.0, 7.0))
    expected = F.layer_norm(x.movedim(1, -1), (6,), norm.gain).movedim(-1, 1)
    torch.testing.assert_close(norm(x), expected)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_film_scales_and_shifts_the_first_normed_features_only():
    from medsegdiff_cli.networks.layers import SPATIAL_OPS

    torch.manual_seed(0)
    block = FiLMBlock(SPATIAL_OPS[2], 4, 6, embedding_width=3, dropout=0.0, num_groups=2)
    x, embedding = torch.randn(2, 4, 5, 5), torch.randn(2, 3)
    code = block.film[1](F.silu(embedding))[..., None, None]
    first = F.group_norm(block.conv1(x), 2, block.norm1.weight, block.norm1.bias)
    second = block.conv2(F.silu(first * (code[:, :6] + 1) + code[:, 6:]))
    expected = F.silu(F.group_norm(second, 2, block.norm2.weight, block.norm2.bias)) + block.shortcut(x)
    torch.testing.assert_close(block(x, embedding), expected)


def heads_of(attention, x):
    """Return queries, keys, values (batch, head, channel, voxel) from the published order: all queries first."""
    qkv = torch.einsum("oc,bcn->bon", attention.qkv.weight[..., 0], attention.norm(x).flatten(2))
    return [part.unflatten(1, (attention.num_heads, -1)) for part in qkv.chunk(3, dim=1)]


def test_linear_attention_is_the_written_out_sum():
    torch.manual_seed(0)
    attention, x = LinearAttention(6, num_heads=2, num_head_channels=4), torch.randn(2, 6, 3, 5)
    query, key, value = heads_of(attention, x)
    context = torch.einsum("bhdn,bhen->bhde", key.softmax(-1), value)
    h = torch.einsum("bhde,bhdn->bhen", context, query.softmax(-2) * 4**-0.5).flatten(1, 2)
    expected = x + attention.norm_out(attention.proj_out(h)).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


def test_linear_attention_does_not_depend_on_the_size_of_the_patch():
    # A patch repeated four times has the same values and the same shares of keys.
    torch.manual_seed(0)
    attention, x = LinearAttention(6, num_heads=2, num_head_channels=4), torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(attention(x.repeat(1, 1, 2, 2)), attention(x).repeat(1, 1, 2, 2), rtol=1e-4, atol=1e-5)


def test_cosine_attention_compares_directions_with_scale_16():
    torch.manual_seed(0)
    attention, x = CosineAttention(6, num_heads=2, num_head_channels=4), torch.randn(2, 6, 3, 5)
    query, key, value = heads_of(attention, x)
    cosines = torch.einsum(
        "bhdi,bhdj->bhij", query / query.norm(dim=2, keepdim=True), key / key.norm(dim=2, keepdim=True)
    )
    h = torch.einsum("bhij,bhdj->bhdi", (16 * cosines).softmax(-1), value).flatten(1, 2)
    torch.testing.assert_close(attention(x), x + attention.proj_out(h).reshape(x.shape), rtol=1e-4, atol=1e-5)


def test_wrong_settings_and_inputs_are_refused_by_name():
    with pytest.raises(ValidationError, match=r"attention_levels \[3\] do not exist"):
        small(attention_levels=(3,))
    with pytest.raises(ValidationError, match="1 strides for 2 transitions"):
        small(strides=((2, 2),))
    with pytest.raises(ValidationError, match="each needs 2 numbers, all 1 or 2"):
        small(strides=((2, 2), (3, 2)))
    with pytest.raises(ValidationError, match="leaves a level without channels"):
        small(channel_mult=(1, 0, 1))
    network = small()
    with pytest.raises(ValueError, match="needs a timestep"):
        network(image())
    with pytest.raises(ValueError, match="without time"):
        small(use_time=False)(image(), T)
    with pytest.raises(ValueError, match=r"each a multiple of \(4, 4\)"):
        network(image()[..., :6], T)
    with pytest.raises(ValueError, match=r"taps \(\): give one or more decoder blocks from 0 to 2"):
        network(image(), T, taps=())


def test_settings_survive_json():
    settings = TEDMSettings.model_validate(SMALL)
    assert TEDMSettings.model_validate_json(settings.model_dump_json()) == settings
