"""The ADM U-Net: sizes, taps, time, strides and checkpointing."""

import pytest
import torch
from pydantic import ValidationError

from medsegdiff_cli.networks.adm_unet import ADMSettings, ADMUNet, parameter_count

SMALL = ADMSettings(
    n_dims=2, in_channels=1, out_channels=2, model_channels=8, channel_mult=(1, 2, 4), num_res_blocks=1,
    attention_levels=(2,),
)  # fmt: skip


def trained_like(settings: ADMSettings, seed: int = 0) -> ADMUNet:
    """Return a network none of whose parameters is zero, as the initial ones of the residual branches are."""
    torch.manual_seed(seed)
    network = ADMUNet(settings).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


def small(**changes) -> ADMSettings:
    return ADMSettings.model_validate(SMALL.model_dump() | changes)


def image(n_dims: int = 2, size: int = 8, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, *(size,) * n_dims, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("model_channels", "out_channels", "expected"),
    [
        (128, 3, 138_286_467),
        (128, 6, 138_289_926),  # 3 more outputs x (128 inputs x 9 + 1 bias) = 3459
        (256, 3, 552_807_171),
        (256, 6, 552_814_086),  # 3 x (256 x 9 + 1) = 6915
    ],
)
def test_the_published_networks_have_138_29_and_552_8_million_parameters(model_channels, out_channels, expected):
    with torch.device("meta"):
        network = ADMUNet(
            ADMSettings(n_dims=2, in_channels=3, out_channels=out_channels, model_channels=model_channels)
        )
    assert parameter_count(network) == expected


def test_public_weights_find_their_names_and_shapes():
    with torch.device("meta"):
        state = ADMUNet(ADMSettings(n_dims=2, in_channels=3, out_channels=6, model_channels=256)).state_dict()
    expected = {
        "time_embed.0.weight": (1024, 256),
        "time_embed.2.bias": (1024,),
        "input_blocks.0.0.weight": (256, 3, 3, 3),
        "input_blocks.1.0.in_layers.0.weight": (256,),
        "input_blocks.1.0.in_layers.2.weight": (256, 256, 3, 3),
        "input_blocks.1.0.emb_layers.1.weight": (512, 1024),
        "input_blocks.1.0.out_layers.0.weight": (256,),
        "input_blocks.1.0.out_layers.3.weight": (256, 256, 3, 3),
        "input_blocks.3.0.in_layers.2.weight": (256, 256, 3, 3),
        "input_blocks.7.0.skip_connection.weight": (512, 256, 1, 1),
        "input_blocks.10.1.norm.weight": (512,),
        "input_blocks.10.1.qkv.weight": (1536, 512, 1),
        "input_blocks.10.1.proj_out.weight": (512, 512, 1),
        "middle_block.0.in_layers.2.weight": (1024, 1024, 3, 3),
        "middle_block.1.qkv.weight": (3072, 1024, 1),
        "middle_block.2.out_layers.3.bias": (1024,),
        "output_blocks.2.2.in_layers.2.weight": (1024, 1024, 3, 3),
        "output_blocks.17.0.skip_connection.weight": (256, 512, 1, 1),
        "out.0.weight": (256,),
        "out.2.weight": (6, 256, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert len({name.split(".")[1] for name in state if name.startswith("input_blocks.")}) == 18
    assert len({name.split(".")[1] for name in state if name.startswith("output_blocks.")}) == 18


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("resblock_updown", [True, False])
def test_output_has_the_size_of_the_input(n_dims, resblock_updown):
    network = trained_like(small(n_dims=n_dims, resblock_updown=resblock_updown))
    x = image(n_dims)
    assert network(x, torch.tensor([3, 700])).shape == (2, 2, *x.shape[2:])


def test_a_new_network_returns_zero():
    assert ADMUNet(SMALL)(image(), torch.tensor([0, 1])).count_nonzero() == 0


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("use_scale_shift_norm", [True, False])
def test_the_timestep_reaches_the_output(n_dims, use_scale_shift_norm):
    network = trained_like(small(n_dims=n_dims, use_scale_shift_norm=use_scale_shift_norm, num_groups=4))
    x = image(n_dims, batch=1)
    difference = network(x, torch.tensor([1])) - network(x, torch.tensor([500]))
    assert difference.abs().mean() > 1e-2


def test_an_added_timestep_that_the_norm_would_cancel_is_refused():
    with pytest.raises(ValueError, match="cancels an added timestep"):
        ADMUNet(small(use_scale_shift_norm=False, num_groups=32))


def test_without_time_no_embedding_layer_exists():
    network = trained_like(small(use_time=False))
    assert not [name for name in network.state_dict() if "emb" in name]
    assert network(image()).shape == (2, 2, 8, 8)


def test_a_timestep_too_many_or_too_few_is_refused():
    with pytest.raises(ValueError, match="needs a timestep"):
        ADMUNet(SMALL)(image())
    with pytest.raises(ValueError, match="without time"):
        ADMUNet(small(use_time=False))(image(), torch.tensor([0, 0]))


def test_items_of_a_batch_do_not_see_each_other():
    network = trained_like(SMALL).double()
    x, t = image(batch=3).double(), torch.tensor([5, 900, 30])
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x, t), alone, rtol=1e-10, atol=1e-10)


def test_taps_are_the_decoder_features_in_the_order_asked_for():
    network = trained_like(small(num_res_blocks=2, attention_levels=()))
    seen = {}
    for index, block in enumerate(network.output_blocks):
        block.register_forward_hook(lambda _, __, out, index=index: seen.__setitem__(index, out))
    x, t = image(size=16), torch.tensor([1, 2])
    network(x, t)
    expected = [seen[5], seen[0], seen[7]]
    features = network(x, t, taps=(5, 0, 7))
    assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))
    # 3 blocks a level; the last of a level is upsampled: 5 is of the middle level (16 features), already at full size.
    assert [tuple(f.shape[1:]) for f in features] == [(16, 16, 16), (32, 4, 4), (8, 16, 16)]
    assert network.tap_channels((5, 0, 7)) == (16, 32, 8)


def test_nothing_is_computed_after_the_last_tap():
    network = trained_like(SMALL)
    ran = []
    for index, block in enumerate(network.output_blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    network(image(), torch.tensor([1, 2]), taps=[2])
    assert ran == [0, 1, 2]


@pytest.mark.parametrize("taps", [[], [-1], [6]])
def test_taps_that_do_not_exist_are_refused(taps):
    network = ADMUNet(SMALL)  # 3 levels x 2 blocks: 0 to 5
    with pytest.raises(ValueError, match="from 0 to 5"):
        network(image(), torch.tensor([1, 2]), taps=taps)
    with pytest.raises(ValueError, match="from 0 to 5"):
        network.tap_channels(taps)


def test_ledm_blocks_have_2816_features_at_256_channels():
    with torch.device("meta"):
        network = ADMUNet(ADMSettings(n_dims=2, in_channels=3, out_channels=6, model_channels=256))
    assert network.tap_channels((5, 6, 7, 8, 12)) == (1024, 512, 512, 512, 256)


def test_strides_per_axis_shape_the_features_and_the_divisor():
    network = trained_like(small(n_dims=3, strides=((1, 2, 2), (2, 2, 1))))
    assert network.divisor == (2, 4, 2)
    x = torch.randn(1, 1, 6, 8, 4)
    coarse, fine = network(x, torch.tensor([1]), taps=[0, 1])
    assert coarse.shape[2:] == (3, 2, 2)
    assert fine.shape[2:] == (6, 4, 2)
    assert network(x, torch.tensor([1])).shape[2:] == (6, 8, 4)


@pytest.mark.parametrize("shape", [(1, 1, 8, 10), (1, 1, 8), (1, 1, 8, 8, 8)])
def test_a_size_that_does_not_fit_is_named_with_the_divisor(shape):
    size = str(shape[2:]).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"{size} must have 2 axes, each a multiple of \(4, 4\)"):
        ADMUNet(SMALL)(torch.zeros(shape), torch.tensor([1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_levels": (3,)}, "levels 0 to 2"),
        ({"strides": ((2, 2),)}, "1 strides for 2 transitions"),
        ({"strides": ((2, 2), (3, 2))}, "all 1 or 2"),
        ({"strides": ((2, 2), (2,))}, "all 1 or 2"),
        ({"channel_mult": (0.1, 1, 1)}, "without channels"),
        ({"n_dims": 1}, "greater than or equal to 2"),
        ({"chanel_mult": (1, 2, 3)}, "chanel_mult"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        small(**changes)


def test_settings_survive_json():
    settings = small(channel_mult=(1, 1.5, 2), strides=((2, 1), (2, 2)))
    again = ADMSettings.model_validate_json(settings.model_dump_json())
    assert again == settings
    assert ADMUNet.from_settings(again.model_dump()).settings == settings


def test_without_attention_levels_the_middle_has_none_but_can_be_asked_for_one():
    names = {name for name, _ in ADMUNet(small(attention_levels=())).named_parameters()}
    assert not [name for name in names if "qkv" in name]
    asked = {name for name, _ in ADMUNet(small(attention_levels=(), middle_attention=True)).named_parameters()}
    layers = {name.rsplit(".", 1)[0] for name in asked - names}
    assert layers == {"middle_block.1.norm", "middle_block.1.qkv", "middle_block.1.proj_out"}


def test_gradient_checkpointing_changes_memory_only():
    gradients = []
    for checkpointing in (False, True):
        network = trained_like(small(gradient_checkpointing=checkpointing, dropout=0.3)).double().train()
        torch.manual_seed(3)
        network(image().double(), torch.tensor([1, 2])).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_bfloat16_stays_near_float32():
    network, x, t = trained_like(SMALL), image(size=32), torch.tensor([1, 2])
    with torch.no_grad():
        exact = network(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(x, t)
        whole = network.bfloat16()(x.bfloat16(), t)
    assert whole.dtype == torch.bfloat16
    # bfloat16 rounds by 2**-9 at most, about 20 layers deep.
    for rounded in (mixed, whole):
        assert (rounded.float() - exact).norm() / exact.norm() < 20 * 2**-9


@pytest.mark.parametrize("n_dims", [2, 3])
def test_every_parameter_learns_after_the_zero_layers_have_moved(n_dims):
    network = trained_like(small(n_dims=n_dims)).train()
    network(image(n_dims), torch.tensor([10, 400])).square().sum().backward()
    silent = [name for name, parameter in network.named_parameters() if parameter.grad.count_nonzero() == 0]
    assert silent == []


def test_thirty_steps_from_the_start_halve_the_loss():
    torch.manual_seed(0)
    network = ADMUNet(small(use_time=False))
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    x = image(size=16)
    losses = []
    for _ in range(30):
        loss = (network(x) - torch.cat([x, -x], dim=1)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_memory_layout_does_not_change_the_result():
    network, x, t = trained_like(SMALL).double(), image(size=16).double(), torch.tensor([1, 2])
    with torch.no_grad():
        plain = network(x, t)
        other = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t)
    torch.testing.assert_close(other, plain, rtol=1e-10, atol=1e-10)
