"""The ADM U-Net computes what diffusers' UNet2DModel computes, where both can be set alike.

The traps of the mapping: only blocks with a "resnet" sampler resample as ADM does; scale-shift silently drops the
norm of the middle attention unless `attn_norm_num_groups` is given; `attention_head_dim` is channels a head.
"""

import pytest
import torch

from medsegdiff_cli.networks.adm_unet import ADMSettings, ADMUNet, parameter_count

CHANNELS, N_RES, GROUPS, HEAD_CHANNELS = (16, 32, 32), 2, 8, 8
RES_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
WHOLE_NAMES = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


@pytest.fixture(scope="module", params=["scale_shift", "default"])
def oracle(request):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        in_channels=3,
        out_channels=2,
        block_out_channels=CHANNELS,
        layers_per_block=N_RES,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift=request.param,
        norm_num_groups=GROUPS,
        attn_norm_num_groups=GROUPS,
        attention_head_dim=HEAD_CHANNELS,
    )
    return model.double().eval()


@pytest.fixture(scope="module")
def network(oracle):
    settings = ADMSettings(
        n_dims=2,
        in_channels=3,
        out_channels=2,
        model_channels=16,
        channel_mult=(1, 2, 2),
        num_res_blocks=N_RES,
        attention_levels=(1, 2),
        num_head_channels=HEAD_CHANNELS,
        num_groups=GROUPS,
        use_scale_shift_norm=oracle.config.resnet_time_scale_shift == "scale_shift",
    )
    network = ADMUNet(settings).double().eval()
    network.load_state_dict(adm_state(oracle))
    return network


def adm_state(model) -> dict[str, torch.Tensor]:
    """Return the weights of a UNet2DModel under guided diffusion's names."""
    state = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if name in WHOLE_NAMES:
            copy(state, WHOLE_NAMES[name], module)
        elif kind == "ResnetBlock2D":
            for theirs, ours in RES_NAMES.items():
                if getattr(module, theirs, None) is not None:
                    copy(state, f"{place(name)}.{ours}", getattr(module, theirs))
        elif kind == "Attention":
            copy(state, f"{place(name)}.norm", module.group_norm)
            copy(state, f"{place(name)}.proj_out", module.to_out[0], conv1d=True)
            for part in ("weight", "bias"):
                # rows (head, q | k | v, channel)
                linears = (module.to_q, module.to_k, module.to_v)
                rows = [getattr(linear, part).unflatten(0, (module.heads, -1)) for linear in linears]
                merged = torch.stack(rows, dim=1).flatten(0, 2)
                state[f"{place(name)}.qkv.{part}"] = merged[..., None] if part == "weight" else merged
    return state


def copy(state, name, module, conv1d=False):
    state[f"{name}.weight"] = module.weight[..., None] if conv1d else module.weight
    state[f"{name}.bias"] = module.bias


def place(name: str) -> str:
    """Return the place in ADM of, for example, `up_blocks.1.attentions.2`."""
    parts = name.split(".")
    if parts[0] == "mid_block":
        return f"middle_block.{1 if parts[1] == 'attentions' else 2 * int(parts[2])}"
    level, kind, index = int(parts[1]), parts[2], int(parts[3])
    has_attention = (level > 0) if parts[0] == "down_blocks" else (level < 2)
    if parts[0] == "down_blocks":
        block = (level + 1) * (N_RES + 1) if kind == "downsamplers" else 1 + level * (N_RES + 1) + index
        return f"input_blocks.{block}.{int(kind == 'attentions')}"
    block = level * (N_RES + 1) + (N_RES if kind == "upsamplers" else index)
    layer = {"resnets": 0, "attentions": 1, "upsamplers": 1 + has_attention}[kind]
    return f"output_blocks.{block}.{layer}"


def test_both_have_the_same_number_of_parameters(oracle, network):
    assert parameter_count(network) == parameter_count(oracle)


@pytest.mark.parametrize("timesteps", [(0, 999), (1, 37)])
def test_outputs_are_equal(oracle, network, timesteps):
    x = torch.randn(2, 3, 16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor(timesteps)
    with torch.no_grad():
        expected = oracle(x, t).sample
        actual = network(x, t)
    # Both embed time in float32: 2**-24 relative.
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert expected.std() > 0.1
