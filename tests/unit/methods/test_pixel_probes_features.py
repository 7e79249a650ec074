"""What the features of pixel probes depend on, and the timesteps and blocks that may be asked for."""

import pytest
import torch
from plain_pixel_probes import (
    MARGIN,
    SHAPE,
    SMALL,
    STEPS,
    images,
    noise,
    predicted,
    probes,
)

from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.schedules import ScheduleSettings
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.pixel_probes import PixelProbes, PixelProbesSettings

# What the features depend on


@pytest.mark.parametrize("network", ["adm", "tedm", "diffusers-unet2d"])
def test_image_and_timestep_reach_every_block_of_features(network):
    method = probes(network=network, attention_levels=(1,), num_head_channels=4)

    def features(image, step):
        with torch.no_grad():
            return method.network(image, torch.full((1,), step), method.taps)

    here = features(images(1), 1)
    others = (features(images(2)[1:], 1), features(images(1), 800), features(images(1), 10))
    for other in others:
        for one, two in zip(here, other, strict=True):
            assert (one - two).abs().max() > MARGIN * one.abs().max()


def test_the_smallest_timestep_leaves_the_image_as_good_as_clean():
    levels = probes().schedule.alphas_cumprod
    assert levels[1] > 0.999
    assert levels[800] < 0.15


def test_fresh_noise_differs_between_images_and_timesteps_and_follows_its_stream():
    method, one = probes(timesteps=(10, 25)), images(1).expand(2, -1, -1, -1)
    assert method.stochastic
    first, again, other = (predicted(method, one, source=noise(*seeds)) for seeds in ((0, 1), (0, 1), (0, 2)))
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0])
    assert (first[1] - other[1]).abs().max() > MARGIN
    assert (first[0] - first[1]).abs().max() > MARGIN


def test_shared_noise_is_one_tensor_for_all_images_timesteps_and_runs():
    method, one = probes(noise="shared"), images(1).expand(2, -1, -1, -1)
    assert not method.stochastic
    first = predicted(method, one)
    assert torch.equal(first[0], first[1])
    assert torch.equal(first, predicted(method, one, source=noise(7, 8)))
    seen = []
    method.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    predicted(method, torch.zeros(2, 1, *SHAPE))
    sigma = (1 - method.schedule.alphas_cumprod[list(STEPS)]).sqrt().float()
    noises = [x_t / s for x_t, s in zip(seen, sigma, strict=True)]
    for epsilon in noises:
        torch.testing.assert_close(epsilon, noises[0][:1].expand(2, -1, -1, -1), rtol=1e-4, atol=1e-5)
    assert 0.5 < noises[0].std() < 1.5


# Settings


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [((1000,), r"\[1000\] are out of range"), ((-1, 5), r"\[-1\] are out of range"), ((5, 7, 5), "more than once")],
)
def test_timesteps_that_the_schedule_does_not_have_are_usage_errors(timesteps, message):
    with pytest.raises(UsageError, match=message) as error:
        probes(timesteps=timesteps)
    assert "0 to 999" in str(error.value)
    assert error.value.exit_code == 2


def test_timesteps_of_another_schedule_become_those_of_the_same_noise_level():
    method = probes(
        timesteps=(1, 10, 25, 50, 200, 400, 600, 800),
        timesteps_of=ScheduleSettings(name="cosine"),
        schedule=ScheduleSettings(name="linear"),
    )
    assert method.timesteps == (0, 4, 11, 24, 99, 204, 324, 482)


def test_timesteps_that_become_one_are_refused():
    with pytest.raises(UsageError, match=r"timesteps \[0, 0\] come more than once"):
        probes(
            timesteps=(0, 1),
            timesteps_of=ScheduleSettings(name="cosine"),
            schedule=ScheduleSettings(name="linear"),
        )


@pytest.mark.parametrize(
    ("network", "edges"),
    [
        ("adm", [4, 8, 16, 32]),
        ("tedm", [4, 8, 16, 32]),
        # Its blocks are read after they upsampled: the coarsest resolution is none of them.
        ("diffusers-unet2d", [8, 16, 32, 32]),
    ],
)
def test_one_block_of_each_resolution_is_read_by_default(network, edges):
    method = probes(network=network, channel_mult=(1, 1, 2, 2), num_res_blocks=2)
    (_, blocks), *_ = method.features(torch.zeros(1, 1, 32, 32), noise(0))
    assert [block.shape[2:] for block in blocks] == [(edge, edge) for edge in edges]


@pytest.mark.parametrize("network", ["adm", "tedm", "diffusers-unet2d"])
@pytest.mark.parametrize("taps", [(99,), (), (-1, 0)])
def test_blocks_that_the_network_does_not_have_are_usage_errors(network, taps):
    with pytest.raises(UsageError, match=r"taps .*: give one or more decoder") as error:
        probes(network=network, taps=taps)
    assert error.value.exit_code == 2


def test_ledms_official_blocks_give_1408_features_a_timestep():
    with torch.device("meta"):
        method = PixelProbes(
            Task(n_dims=2, in_channels=1, class_names=("background", "organ")),
            PixelProbesSettings(
                network="adm",
                model_channels=128,
                channel_mult=(1, 1, 2, 2, 4, 4),
                num_res_blocks=2,
                attention_levels=(3, 4, 5),
                timesteps=(50, 150, 250),
                shared=False,
                taps=(5, 6, 7, 8, 12),
                n_heads=10,
            ),
        )
    assert method.classifier.first.weight.shape[:2] == (10 * 128, 3 * 1408)


def test_building_leaves_the_mode_of_the_network_alone():
    method = PixelProbes(
        Task(n_dims=2, in_channels=1, class_names=("background", "organ")),
        PixelProbesSettings(**{**SMALL, "dropout": 0.5}),
    )
    assert method.network.training
    assert all(parameter.grad is None for parameter in method.parameters())
