"""Joint sampling of images and masks against closed forms (Sauvalle & Salzmann 2024, Propositions 1 and 2), float64.

Pixels are independent draws here, so one item of many pixels is many walks.
"""

import math

import pytest
import torch
from torch import nn

from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.grids import linspace_grid, transitions
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.diffusion.samplers import SAMPLERS, Ddim, Ddpm, History
from medsegdiff_cli.diffusion.schedules import cosine_schedule, linear_schedule
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.methods.denoising import Denoising, DenoisingSettings
from medsegdiff_cli.methods.generating import Walk, sample_jointly
from medsegdiff_cli.methods.hybrid import Hybrid, HybridSettings

LINEAR = linear_schedule(1000)
SMALL = {"model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": ()}
STEPS = pytest.mark.parametrize("steps", [2, 5, 50, 1000])
EVERY_SAMPLER = pytest.mark.parametrize("name", SAMPLERS)


def alpha_sigma(schedule, t):
    level = schedule.level(t)
    return math.sqrt(level), math.sqrt(1 - level)


def source(*key, n=1):
    return NoiseSource([(*key, item) for item in range(n)])


@STEPS
@pytest.mark.parametrize("schedule", [LINEAR, cosine_schedule(1000)], ids=["linear", "cosine"])
@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_the_flow_of_a_constant_mask_is_hit_on_every_grid(steps, schedule, name):
    """O17: y_τ = (σ_τ / σ_T) y_T + (alpha_τ - σ_τ alpha_T / σ_T) m."""
    m, y_T, grid = 0.7, -1.3, linspace_grid(1000, steps)
    alpha_T, sigma_T = alpha_sigma(schedule, grid[0])
    y, history = torch.tensor([y_T], dtype=torch.float64), History()
    for t, tau in list(transitions(grid))[:-1]:
        y = SAMPLERS[name].advance(y, torch.full_like(y, m), t, tau, None, schedule, history=history)
        alpha, sigma = alpha_sigma(schedule, tau)
        assert y.item() == pytest.approx(sigma / sigma_T * y_T + (alpha - sigma * alpha_T / sigma_T) * m, abs=2e-14)


def knows_two_points(x_t, t):
    """E[x | x_t] of x = ±1, each half of the time, and of y = mu(x) = (x + 1) / 2."""
    level = LINEAR.alphas_cumprod[t].view(-1, 1, 1)
    x = torch.tanh(level.sqrt() * x_t / (1 - level))
    return x, (x + 1) / 2


@pytest.mark.parametrize("steps", [10, 50, 1000])
@EVERY_SAMPLER
def test_wherever_the_mask_starts_it_ends_as_that_of_its_image(steps, name):
    """O18, and what comes of a walk that stops before its terminal step."""
    walk = Walk(linspace_grid(1000, steps), SAMPLERS[name])
    x_T = source("x").randn(1, 64).double()
    images, masks = [], []
    for y_T in (3.0, -50.0):
        noises = source("image"), source("mask")
        x, y = sample_jointly(knows_two_points, x_T, torch.full_like(x_T, y_T), walk, LINEAR, *noises)
        x_0 = x.sign()
        assert (x - x_0).abs().max() < 1e-6, "the image is one of the two"
        assert (y - (x_0 + 1) / 2).abs().max() < 1e-6
        images.append(x)
        masks.append(y)
    assert torch.equal(images[0], images[1])
    assert torch.equal(masks[0], masks[1]), "y_T has left no trace"
    assert {-1.0, 1.0} == set(images[0].sign().flatten().tolist())


def test_without_the_terminal_step_the_mask_still_knows_where_it_began():
    """O18: of y_T the share σ_0 / σ_T is left; so much two walks that began elsewhere are apart."""
    x_T, ends = source("x").randn(1, 64).double(), []
    for y_T in (3.0, -50.0):
        z, grid = torch.cat([x_T, torch.full_like(x_T, y_T)], 1), linspace_grid(1000, 50)
        for t, tau in list(transitions(grid))[:-1]:
            z = Ddim().advance(z, torch.cat(knows_two_points(z[:, :1], torch.tensor([t])), 1), t, tau, None, LINEAR)
        ends.append(z)
    left = (ends[0][:, 1] - (ends[0][:, 0].sign() + 1) / 2).abs()
    assert 0.02 < left.max() < 0.05
    share = alpha_sigma(LINEAR, 0)[1] / alpha_sigma(LINEAR, 999)[1]
    torch.testing.assert_close(ends[0][:, 1] - ends[1][:, 1], torch.full((1, 64), 53 * share).double())


def test_the_ancestral_chain_has_the_moments_of_proposition_1():
    """O19: constant m; mean and variance of q(y_τ | y_T, y_0 = m), in every step; many pixels are many chains."""
    m, y_T, n, grid = 0.6, 2.0, 40_000, linspace_grid(1000, 12)
    alpha_T, sigma_T = alpha_sigma(LINEAR, grid[0])
    y, noise = torch.full((1, 1, n), y_T, dtype=torch.float64), source("chain")
    for t, tau in list(transitions(grid))[:-1]:
        y = Ddpm().advance(y, torch.full_like(y, m), t, tau, noise.randn(1, n).double(), LINEAR)
        alpha, sigma = alpha_sigma(LINEAR, tau)
        mean = sigma**2 * alpha_T / (alpha * sigma_T**2) * y_T
        mean += (alpha - sigma**2 * alpha_T**2 / (alpha * sigma_T**2)) * m
        variance = sigma**2 - sigma**4 * alpha_T**2 / (alpha**2 * sigma_T**2)
        assert y.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
        assert y.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))


def test_the_moments_are_exact_without_any_sampling():
    """O19 again: steps are affine, so mean and variance obey a recursion. alpha_T is far from 0 here."""
    m, y_T, schedule = 0.6, 2.0, linear_schedule(40)
    grid = linspace_grid(40, 7)
    alpha_T, sigma_T = alpha_sigma(schedule, grid[0])
    assert alpha_T > 0.5
    mean, variance = y_T, 0.0
    for t, tau in list(transitions(grid))[:-1]:
        step = Ddpm().weights(t, tau, schedule, None)
        mean, variance = step.x_t * mean + step.x_0 * m, step.x_t**2 * variance + step.noise**2
        alpha, sigma = alpha_sigma(schedule, tau)
        pull = sigma**2 * alpha_T / (alpha * sigma_T**2)
        assert mean == pytest.approx(pull * y_T + (alpha - pull * alpha_T) * m, abs=1e-14)
        assert variance == pytest.approx(sigma**2 - sigma**4 * alpha_T**2 / (alpha**2 * sigma_T**2), abs=1e-14)


class Remembers(nn.Module):
    """Knows pixels x ~ N(0.3, 0.25), in two channels, and a smooth mask of three classes; keeps all that was said."""

    divisor = (1, 1)

    def __init__(self):
        super().__init__()
        self.asked, self.said = [], []

    def forward(self, x, t):
        self.asked.append((x, t))
        level = LINEAR.alphas_cumprod[t].view(-1, 1, 1, 1).float()
        image = 0.3 + level.sqrt() * 0.25 * (x - level.sqrt() * 0.3) / (level * 0.25 + 1 - level)
        mask = torch.stack([torch.sigmoid(3 * image[:, 0] + k) for k in (-1, 0, 1)], 1)
        self.said.append(torch.cat([image, mask], 1))
        return self.said[-1]


def model(**settings):
    task = Task(n_dims=2, in_channels=2, class_names=("background", "organ", "nodule"))
    made = {**SMALL, "schedule": {"name": "linear"}, "parameterisation": "x_0", **settings}
    hybrid = Hybrid(task, HybridSettings(**made))
    hybrid.network = Remembers()
    return hybrid.eval()


def drawn(hybrid, sampling=None, n=2, **settings):
    walk = hybrid.walk(sampling or Sampling(steps=8))
    return hybrid.generate(source("a", n=n), (6, 4), walk, mask_noise=source("b", n=n), **settings)


@EVERY_SAMPLER
@pytest.mark.parametrize("mask_range", ["unit", "signed"])
def test_the_pair_is_what_the_network_says_last_of_the_noisy_image_alone(name, mask_range):
    hybrid = model(mask_range=mask_range)
    pair = drawn(hybrid, Sampling(sampler=name, steps=8))
    said = hybrid.network.said[-1]
    assert torch.equal(pair.image, said[:, :2])
    mask = said[:, 2:]
    assert torch.equal(pair.mask, (mask + 1) / 2 if mask_range == "signed" else mask)
    assert [t[0].item() for _, t in hybrid.network.asked] == list(linspace_grid(1000, 8))
    assert all(x.shape == (2, 2, 6, 4) for x, _ in hybrid.network.asked)
    start = source("a", n=2).randn(2, 6, 4)
    assert torch.equal(hybrid.network.asked[0][0], start), "x_T is standard normal, whatever y_T"


@EVERY_SAMPLER
def test_the_cheap_route_draws_the_same_pairs(name):
    sampling = Sampling(sampler=name, steps=100)
    joint, cheap = (drawn(model(), sampling, route=route) for route in ("joint", "cheap"))
    assert torch.equal(joint.image, cheap.image)
    # At the first timestep this network moves an image of variance 0.25 by 2e-4 of its distance from the mean.
    torch.testing.assert_close(joint.mask, cheap.mask, rtol=0, atol=1e-3)
    assert not torch.equal(joint.mask, cheap.mask), "the routes ask about different images"


def test_where_the_mask_starts_changes_nothing_at_the_end():
    far, near = (drawn(model(), mask_start=start) for start in (-50.0, 0.0))
    assert torch.equal(far.image, near.image)
    assert torch.equal(far.mask, near.mask)


@EVERY_SAMPLER
def test_a_picture_depends_on_its_own_noise_alone(name):
    sampling = Sampling(sampler=name, steps=5)
    three, one = drawn(model(), sampling, n=3), drawn(model(), sampling, n=1)
    torch.testing.assert_close(three.image[:1], one.image)
    torch.testing.assert_close(three.mask[:1], one.mask)


def test_estimates_of_the_image_stay_within_limits():
    narrow = drawn(model(), limits=(-0.25, 0.5)).image
    assert (narrow.min(), narrow.max()) == (-0.25, 0.5)


def test_a_diffusion_model_of_images_draws_no_masks():
    task = Task(n_dims=2, in_channels=2, class_names=("background", "organ"))
    objective = Denoising(task, DenoisingSettings(**SMALL, schedule={"T": 20})).eval()
    pair = drawn(objective, Sampling(sampler="ddpm", steps=3))
    assert pair.mask is None
    assert pair.image.shape == (2, 2, 6, 4)


def test_the_default_walk_is_the_papers_and_another_is_checked():
    hybrid = model()
    assert (len(hybrid.walk(Sampling()).grid), hybrid.walk(Sampling()).sampler) == (100, SAMPLERS["dpm++"])
    for wrong in (Sampling(sampler="euler"), Sampling(steps=2000), Sampling(sampler="ddpm", eta=0.5)):
        with pytest.raises(UsageError):
            hybrid.walk(wrong)
