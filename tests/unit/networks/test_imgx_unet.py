"""The ImgX U-Net: its size, shapes, added skips, time, taps, strides and checkpointing."""

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from medsegdiff_cli.networks.imgx_unet import ImgXSettings, ImgXUNet

SMALL = {
    "n_dims": 2, "in_channels": 1, "out_channels": 2, "model_channels": 8, "channel_mult": (1, 2, 4),
    "num_res_blocks": 1, "num_heads": 2, "num_head_channels": 4,
}  # fmt: skip
T = torch.tensor([3, 700])


def small(**changes):
    torch.manual_seed(0)
    return ImgXUNet.from_settings({**SMALL, **changes}).eval()


def image(n_dims=2, batch=2):
    return torch.randn(batch, 1, *(8, 16, 8)[:n_dims], generator=torch.Generator().manual_seed(1))


def papers_count(n_dims, in_channels, out_channels, use_time):
    """Count the paper's network by hand: Figure 2 with four levels of 32, 64, 128, 256 channels."""
    widths, kernel, stride = (32, 64, 128, 256), 3**n_dims, 2**n_dims

    def res(c):
        # Two convolutions without bias, two norms; scale and shift from a time embedding of 256.
        return 2 * kernel * c * c + 2 * 2 * c + (257 * 2 * c if use_time else 0)

    stem = kernel * in_channels * 32 + 2 * 32
    # Two blocks down and three up at each level, two at the bottom.
    blocks = sum(5 * res(c) for c in widths) + 2 * res(256)
    downs = sum(stride * fine * coarse + 2 * coarse for fine, coarse in pairwise(widths))
    ups = sum(stride * fine * coarse + 2 * fine for fine, coarse in pairwise(widths))
    attention = 257 * 3 * 512 + 513 * 256
    mlp = 257 * 1024 + 1025 * 256
    return stem + blocks + downs + ups + attention + mlp + 3 * 2 * 256 + 33 * out_channels


@pytest.mark.parametrize(("n_dims", "millions"), [(2, 11.6), (3, 32.3)])
def test_the_papers_network_has_the_parameters_of_its_figure(n_dims, millions):
    for use_time in (False, True):
        with torch.device("meta"):
            network = ImgXUNet(ImgXSettings(n_dims=n_dims, in_channels=4, out_channels=3, use_time=use_time))
        n_parameters = sum(p.numel() for p in network.parameters())
        assert n_parameters == papers_count(n_dims, 4, 3, use_time)
        assert n_parameters / 1e6 == pytest.approx(millions + 1.5 * use_time, abs=0.1)


@pytest.mark.parametrize("n_dims", [2, 3])
def test_changing_the_time_changes_the_output(n_dims):
    network, x = small(n_dims=n_dims), image(n_dims)
    output = network(x, T)
    assert output.shape == (2, 2, *x.shape[2:])
    assert (output - network(x, T + 200)).abs().mean() > 1e-2
    assert (output - network(x, T.flip(0))).abs().mean() > 1e-2


@pytest.mark.parametrize("n_dims", [2, 3])
def test_the_published_injection_cannot_see_the_time(n_dims):
    network, x = small(n_dims=n_dims, time_injection="cancelled"), image(n_dims)
    for precise, tolerance in ((False, 1e-5), (True, 1e-12)):
        network, x = (network.double(), x.double()) if precise else (network, x)
        assert (network(x, T) - network(x, torch.tensor([1000, 0]))).abs().max() < tolerance
    assert [p for name, p in network.named_parameters() if ".time." in name], "the layers are there, to no effect"


def test_without_time_no_embedding_layer_exists_and_none_is_taken():
    network = small(use_time=False)
    assert not [name for name in network.state_dict() if "time" in name]
    assert network(image()).shape == (2, 2, 8, 16)
    with pytest.raises(ValueError, match="without time"):
        network(image(), T)
    with pytest.raises(ValueError, match="needs a timestep"):
        small()(image())


def test_every_layer_on_the_way_down_is_added_to_one_block_on_the_way_up():
    network, x = small(), image()
    down, seen = [], {}

    def remember(store):
        return lambda module, inputs, output: store(module, inputs, output)

    for layer in (network.stem, *(b for level in network.down_levels for b in level), *network.downsamplers):
        layer.register_forward_hook(remember(lambda m, i, o: down.append(o)))
    ups = [block for level in network.up_levels for block in level]
    for layer in (network.bottom[2], *ups, *network.upsamplers):
        layer.register_forward_hook(remember(lambda m, i, o: seen.__setitem__(m, (i[0], o))))
    network(x, T)
    assert len(down) == len(ups) == 3 * (1 + 1)
    before = []
    for index, level in enumerate(network.up_levels):
        before.append(network.bottom[2] if index == 0 else network.upsamplers[index - 1])
        before.extend(level[:-1])
    for block, previous, skip in zip(ups, before, reversed(down), strict=True):
        torch.testing.assert_close(seen[block][0], seen[previous][1] + skip)


def test_a_voxel_reaches_every_other_one_through_the_bottom():
    network = small(use_time=False).double()
    x = image(batch=1).double().requires_grad_()
    network(x)[0, 0, 0, 0].backward()
    assert (x.grad != 0).all()


def test_taps_are_what_the_levels_give_in_the_order_asked_for():
    network, x, seen = small(), image(), {}
    for index, level in enumerate(network.up_levels):
        level[-1].register_forward_hook(lambda _, __, out, index=index: seen.__setitem__(index, out))
    features = network(x, T, taps=(1, 0))
    assert sorted(seen) == [0, 1], "nothing runs after the last tap"
    assert torch.equal(features[0], seen[1])
    assert torch.equal(features[1], seen[0])
    assert [tuple(f.shape[1:]) for f in features] == [(16, 4, 8), (32, 2, 4)]
    assert network.tap_channels((1, 0)) == (16, 32)
    with pytest.raises(ValueError, match=r"taps \(3,\): give one or more decoder blocks from 0 to 2"):
        network(x, T, taps=(3,))


@pytest.mark.parametrize("n_dims", [2, 3])
def test_strides_differ_per_axis(n_dims):
    strides = ((1, *[2] * (n_dims - 1)), (2,) * n_dims)
    network, x = small(n_dims=n_dims, strides=strides), image(n_dims)
    assert network.divisor == (2, *[4] * (n_dims - 1))
    assert network.downsamplers[0][0].kernel_size == network.upsamplers[-1][0].kernel_size == strides[0]
    coarse = tuple(n // d for n, d in zip(x.shape[2:], network.divisor, strict=True))
    assert network(x, T, taps=[0])[0].shape[2:] == coarse
    assert network(x, T).shape == (2, 2, *x.shape[2:])
    with pytest.raises(ValueError, match="each a multiple of"):
        network(x[..., :6], T)


def test_convolutions_before_a_norm_have_no_bias_and_norms_have_gain_and_offset():
    names = set(small().state_dict())
    assert [name for name in names if "conv" in name and name.endswith("bias")] == []
    assert {"stem.1.weight", "stem.1.bias", "down_levels.0.0.norm2.bias", "upsamplers.0.1.weight"} <= names
    assert {"stem.0.bias", "downsamplers.0.0.bias", "upsamplers.0.0.bias"} & names == set()
    assert "out.bias" in names


def test_every_parameter_is_trained():
    network = small().train()
    network(image(), T).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [name for name, p in network.named_parameters() if p.ndim > 1 and not p.grad.any()] == []


def test_a_bottom_of_one_voxel_is_finite_forwards_and_backwards():
    network = small().train()
    output = network(image(batch=1)[..., :4, :4], T[:1])
    output.square().sum().backward()
    assert output.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_checkpointing_changes_memory_and_not_gradients():
    gradients = []
    for again in (False, True):
        network = small(gradient_checkpointing=again).train()
        torch.manual_seed(5)  # dropout, too, is the same when computed again
        network(image(), T).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_items_of_a_batch_do_not_see_each_other():
    network, x = small().double(), image().double()
    alone = torch.cat([network(x[i : i + 1], T[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(network(x, T), alone, rtol=1e-9, atol=1e-9)


def test_half_precision_stays_near_full_precision():
    network, x = small(), image()
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x, T)
    assert half.isfinite().all()
    exact = network(x, T)
    assert (half.float() - exact).square().mean() < 0.01 * exact.var()


def test_wrong_settings_are_refused_by_name_and_right_ones_survive_json():
    for changes, message in (
        ({"strides": ((2, 2),)}, "1 strides for 2 transitions"),
        ({"strides": ((2, 2), (3, 2))}, "each needs 2 numbers, all 1 or 2"),
        ({"channel_mult": (1, 0, 1)}, "leaves a level without channels"),
        ({"time_injection": "before-norm"}, "'after-norm' or 'cancelled'"),
    ):
        with pytest.raises(ValidationError, match=message):
            small(**changes)
    settings = ImgXSettings.model_validate(SMALL)
    assert ImgXSettings.model_validate_json(settings.model_dump_json()) == settings
