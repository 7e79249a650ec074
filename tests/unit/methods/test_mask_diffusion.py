"""Diffusion on masks: what each strategy shows the network in training, with networks that can be worked out by hand.

In float64, so that identities are exact; T and the schedule are the paper's unless a test needs few timesteps.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.methods.mask_diffusion import MaskDiffusion, MaskDiffusionSettings

SMALL = {"model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": ()}
STAGE = MaskDiffusion.stages[0]
STRATEGIES = ("ground-truth", "recycling", "recycling-next", "self-conditioning", "self-conditioning-next")
TWO_PASSES = STRATEGIES[1:]
SHAPE = (6, 8)


def linear_levels(n_steps=1001):
    """Ho et al. 2020, section 4: the share of the clean image's variance at each timestep."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, n_steps, dtype=torch.float64), 0)


class Watched(nn.Module):
    """Gives a function of the masks (and what conditions) as logits, and remembers how it was called."""

    divisor = (2, 2)

    def __init__(self, method, function):
        super().__init__()
        self.function, self.n_classes, self.n_images = function, method.task.n_classes, method.task.in_channels
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.masks, self.conditions, self.t, self.with_gradient, self.items = [], [], [], [], []

    def forward(self, x, t):
        mask, condition = x[:, self.n_images :].split(self.n_classes, 1)[0], x[:, self.n_images + self.n_classes :]
        self.masks.append(mask.detach().clone())
        self.conditions.append(condition.detach().clone() if condition.shape[1] else None)
        self.t.append(t.tolist())
        self.with_gradient.append(torch.is_grad_enabled())
        self.items.append(x[:, 0, 0, 0].tolist())
        return self.scale * self.function(mask)


def constant(value=0.5):
    return lambda mask: torch.full_like(mask, value)


def task_of(exclusive=True):
    return Task(
        n_dims=2,
        in_channels=1,
        class_names=("background", "organ") if exclusive else ("organ", "nodule"),
        classes_are_exclusive=exclusive,
    )


def build(strategy, function=None, *, exclusive=True, **changes):
    torch.manual_seed(0)
    method = MaskDiffusion(task_of(exclusive), MaskDiffusionSettings(**{**SMALL, "strategy": strategy, **changes}))
    if function is not None:
        method.network = Watched(method, function)
    return method.double()


def cases(n=2, *, exclusive=True, valid=None):
    """Return a batch whose images say which item they are."""
    random = torch.Generator().manual_seed(1)
    label = torch.randint(0, 2, (n, *SHAPE) if exclusive else (n, 2, *SHAPE), generator=random)
    image = torch.randn(n, 1, *SHAPE, generator=random, dtype=torch.float64)
    image[:, 0, 0, 0] = torch.arange(n)
    return Batch(image=image, label=label, valid=valid, case_ids=("x",) * n, positions=torch.arange(n))


def noise(n=2, seed=0):
    return NoiseSource([(seed, item) for item in range(n)])


def second_input(method, x_0, t, told=(), seed=0):
    image = torch.zeros(len(x_0), 1, *x_0.shape[2:], dtype=x_0.dtype)
    return method.second_input(image, x_0, torch.tensor(t), told, noise(len(x_0), seed))


# --- the truth, as the network is to find it ------------------------------------------------------------------------


def test_the_clean_mask_is_one_in_a_class_and_minus_one_outside():
    batch = cases()
    x_0 = build("ground-truth").clean_mask(batch)
    assert torch.equal(x_0[:, 1] == 1, batch.label == 1)
    assert torch.equal(x_0[:, 0], -x_0[:, 1])
    assert set(x_0.unique().tolist()) == {-1.0, 1.0}
    regions = cases(exclusive=False)
    assert torch.equal(build("ground-truth", exclusive=False).clean_mask(regions), 2.0 * regions.label.double() - 1)


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_clean_mask_is_zero_where_nobody_annotated_whatever_stands_there(exclusive):
    valid = torch.ones(2, *SHAPE, dtype=torch.bool)
    valid[:, :2] = False
    batch = cases(exclusive=exclusive, valid=valid)
    garbage = replace(batch, label=batch.label.where(valid if exclusive else valid[:, None], 200))
    method = build("ground-truth", exclusive=exclusive)
    x_0 = method.clean_mask(garbage)
    assert x_0[:, :, :2].count_nonzero() == 0
    assert torch.equal(x_0[:, :, 2:], method.clean_mask(cases(exclusive=exclusive))[:, :, 2:])


# --- O27: how much of the truth is left in the second pass's mask ---------------------------------------------------


@pytest.mark.parametrize("t", [0, 250, 500, 999, 1000])
def test_mask_diffusion_shows_the_truth_by_the_root_of_its_level(t):
    """O27: the derivative is √ᾱ_t."""
    x_0 = torch.randn(1, 2, *SHAPE, dtype=torch.float64).requires_grad_()
    x_t, condition = second_input(build("ground-truth", constant()), x_0, [t])
    assert condition is None
    (derivative,) = torch.autograd.grad(x_t.sum(), x_0)
    root = math.sqrt(linear_levels()[t])
    torch.testing.assert_close(derivative, torch.full_like(x_0, root), rtol=1e-12, atol=0)
    # Beyond the derivative: the whole truth turned round.
    other, _ = second_input(build("ground-truth", constant()), -x_0.detach(), [t])
    torch.testing.assert_close(x_t - other, 2 * root * x_0, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("t", [0, 250, 500, 999])
def test_recycling_hides_the_truth(t):
    """O27: at most √ᾱ_T = 0.0063 comes through, all of it through the network; nothing by its gradient."""
    # Two regions, logits twice the mask: the estimate tanh(mask) is never steeper than the mask.
    method = build("recycling", lambda mask: 2 * mask, exclusive=False)
    x_0 = (torch.randint(0, 2, (1, 2, *SHAPE)) * 2 - 1).double().requires_grad_()
    x_t, _ = second_input(method, x_0, [t])
    assert not x_t.requires_grad
    other, _ = second_input(method, -x_0.detach(), [t])
    bound = math.sqrt(linear_levels()[1000])
    assert bound == pytest.approx(0.0063, abs=1e-4)
    change = (x_t - other).abs().max() / 2
    assert 0 < change <= bound * math.sqrt(linear_levels()[t]) * (1 + 1e-9)
    # A network that does not look at its mask lets nothing through.
    blind = build("recycling", constant(), exclusive=False)
    assert torch.equal(second_input(blind, x_0, [t])[0], second_input(blind, -x_0, [t])[0])


@pytest.mark.parametrize("t", [0, 500, 999])
def test_recycling_next_shows_the_truth_through_the_network_alone(t):
    method = build("recycling-next", lambda mask: 2 * mask, exclusive=False)
    x_0 = (torch.randint(0, 2, (1, 2, *SHAPE)) * 2 - 1).double()
    change = (second_input(method, x_0, [t])[0] - second_input(method, -x_0, [t])[0]).abs().max() / 2
    assert 0 < change <= math.sqrt(linear_levels()[t + 1])
    blind = build("recycling-next", constant(), exclusive=False)
    assert torch.equal(second_input(blind, x_0, [t])[0], second_input(blind, -x_0, [t])[0])


@pytest.mark.parametrize("strategy", TWO_PASSES)
def test_the_first_pass_has_no_gradient(strategy):
    method = build(strategy, lambda mask: mask, condition_share=1.0)
    sum(method.loss(cases(), STAGE, noise()).values()).backward()
    assert method.network.with_gradient == [False, True]
    assert method.network.scale.grad.abs() > 0


@pytest.mark.parametrize("strategy", TWO_PASSES)
def test_the_gradient_is_that_of_the_second_pass_with_the_first_ones_estimate_as_data(strategy):
    """The same numbers, the estimate having been made by another network of equal weights."""
    method, batch = build(strategy, lambda mask: mask, condition_share=1.0), cases()
    sum(method.loss(batch, STAGE, noise()).values()).backward()
    apart, first = (build(strategy, lambda mask: mask, condition_share=1.0) for _ in range(2))
    apart._first_pass = first._first_pass
    sum(apart.loss(batch, STAGE, noise()).values()).backward()
    assert first.network.scale.grad is None
    assert torch.equal(method.network.scale.grad, apart.network.scale.grad)


# --- which timesteps, which noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "largest", "first"),
    [
        ("ground-truth", 3, None),
        ("recycling", 2, lambda t: 3),
        ("recycling-next", 2, lambda t: t + 1),
        ("self-conditioning", 3, lambda t: t),
        ("self-conditioning-next", 2, lambda t: t + 1),
    ],
)
def test_timesteps_of_both_passes_are_those_of_the_paper(strategy, largest, first):
    method = build(strategy, constant(), schedule={"name": "linear", "T": 4}, condition_share=1.0)
    method.loss(cases(200), STAGE, noise(200))
    *before, second = method.network.t
    assert set(second) == set(range(largest + 1))
    assert before == ([] if first is None else [[first(t) for t in second]])


@pytest.mark.parametrize(
    ("strategy", "second", "first"),
    [
        ("ground-truth", (0, 250, 500, 750, 1000), {}),
        ("recycling", (0, 250, 500, 750), dict.fromkeys((0, 250, 500, 750), 1000)),
        ("recycling-next", (0, 250, 500, 750), {0: 250, 250: 500, 500: 750, 750: 1000}),
        ("self-conditioning", (0, 250, 500, 750, 1000), {t: t for t in (0, 250, 500, 750, 1000)}),
        ("self-conditioning-next", (0, 250, 500, 750), {0: 250, 250: 500, 500: 750, 750: 1000}),
    ],
)
def test_training_on_five_timesteps_visits_those_of_prediction(strategy, second, first):
    """Table 8; the posterior of Eq. 8 then leads over 250 timesteps."""
    method = build(strategy, constant(), training_timesteps=5, condition_share=1.0)
    method.loss(cases(100), STAGE, noise(100))
    *before, seen = method.network.t
    assert set(seen) == set(second)
    assert before == ([[first[t] for t in seen]] if first else [])
    if strategy == "self-conditioning-next":
        x_0 = torch.ones(1, 2, 300, 300, dtype=torch.float64)
        x_t, _ = second_input(method, x_0, [1])
        level, n = linear_levels()[250].item(), x_t.numel()
        assert x_t.mean().item() == pytest.approx(math.sqrt(level), abs=4 / math.sqrt(n))
        assert x_t.var().item() == pytest.approx(1 - level, abs=6 / math.sqrt(n))


@pytest.mark.parametrize("strategy", ["recycling", "recycling-next"])
def test_the_second_pass_sees_the_estimate_noised_by_its_level(strategy):
    """Eq. 5 and 6, by hand: x_t = √ᾱ_t x_0^ + √(1 - ᾱ_t) ε with the second noise drawn."""
    logits, t = 0.8, [400, 3]
    method = build(strategy, constant(logits), exclusive=False)
    x_t, condition = second_input(method, torch.ones(2, 2, *SHAPE, dtype=torch.float64), t)
    drawn = noise()
    drawn.randn(2, *SHAPE)
    level = linear_levels()[t].view(-1, 1, 1, 1)
    expected = level.sqrt() * math.tanh(logits / 2) + (1 - level).sqrt() * drawn.randn(2, *SHAPE)
    assert condition is None
    torch.testing.assert_close(x_t, expected, rtol=1e-10, atol=1e-12)


def test_both_passes_have_noise_of_their_own():
    method, x_0 = build("recycling", constant()), torch.zeros(4, 2, 200, 200, dtype=torch.float64)
    x_t, _ = second_input(method, x_0, [999] * 4)
    # What the first pass saw was clipped; its sign is the noise's.
    (seen,) = method.network.masks
    assert abs((seen.sign() * x_t).mean()) < 4 / math.sqrt(x_t.numel())


@pytest.mark.parametrize("t", [0, 500, 999])
def test_self_conditioning_next_draws_from_the_posterior_of_the_truth(t):
    """O29: mean and variance of q(x_t | x_{t+1}, x_0) with β_{t+1} and ᾱ_t (Ho et al. 2020, Eq. 7), by hand."""
    method = build("self-conditioning-next", constant())
    x_0 = (torch.randint(0, 2, (1, 2, *SHAPE)) * 2 - 1).double()
    x_t, condition = second_input(method, x_0, [t], told=[0])
    drawn, levels = noise(1), linear_levels()
    before, now = levels[t + 1], levels[t]
    beta = 1 - before / now
    x_before = before.sqrt() * x_0 + (1 - before).sqrt() * drawn.randn(2, *SHAPE).double()
    mean = (now.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - now) * x_before) / (1 - before)
    expected = mean + ((1 - now) / (1 - before) * beta).sqrt() * drawn.randn(2, *SHAPE).double()
    torch.testing.assert_close(x_t, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(method.network.masks[0], x_before.clamp(-1, 1), rtol=1e-12, atol=1e-12)
    assert condition.shape == x_0.shape


def test_the_posterior_of_the_noised_truth_is_the_noised_truth():
    """O29: over both noises x_t has mean √ᾱ_t x_0 and variance 1 - ᾱ_t, as if drawn at once."""
    x_0 = torch.ones(1, 2, 400, 400, dtype=torch.float64)
    x_t, _ = second_input(build("self-conditioning-next", constant()), x_0, [300])
    level, n = linear_levels()[300], x_t.numel()
    assert x_t.mean().item() == pytest.approx(math.sqrt(level), abs=4 / math.sqrt(n))
    assert x_t.var().item() == pytest.approx(1 - level.item(), abs=6 / math.sqrt(n))


# --- what conditions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["self-conditioning", "self-conditioning-next"])
def test_the_first_pass_is_told_nothing_and_the_second_its_estimate(strategy):
    method = build(strategy, constant(0.8), exclusive=False, condition_share=1.0)
    method.loss(cases(exclusive=False), STAGE, noise())
    first, second = method.network.conditions
    assert first.count_nonzero() == 0
    torch.testing.assert_close(second, torch.full_like(second, math.tanh(0.4)))


@pytest.mark.parametrize("strategy", ["self-conditioning", "self-conditioning-next"])
def test_only_items_that_are_told_go_through_the_first_pass(strategy):
    n = 40
    counts = {}
    for share in (0.0, 0.5, 1.0):
        method = build(strategy, constant(0.8), condition_share=share, exclusive=False)
        method.loss(cases(n, exclusive=False), STAGE, noise(n))
        *first, second = method.network.items
        assert second == list(range(n))
        told = first[0] if first else []
        assert {i for i, c in enumerate(method.network.conditions[-1]) if c.count_nonzero()} == set(told)
        counts[share] = (len(first), len(told))
    assert counts[0.0] == (0, 0), "nobody is told: the network runs once"
    assert counts[1.0] == (1, n)
    calls, told = counts[0.5]
    assert calls == 1
    assert abs(told - n / 2) <= 3 * math.sqrt(n) / 2


def test_self_conditioning_without_a_condition_is_training_on_the_noised_truth():
    """O28, with real networks: the one has input channels more, which see zeros."""
    conditioned, plain = build("self-conditioning", condition_share=0.0), build("ground-truth")
    with torch.no_grad():
        for name, parameter in conditioned.named_parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape) + (parameter.ndim == 1))
            same = plain.get_parameter(name)
            same.copy_(parameter if same.shape == parameter.shape else parameter[:, : same.shape[1]])
    terms, others = (method.loss(cases(), STAGE, noise()) for method in (conditioned, plain))
    assert terms.keys() == others.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term, others[name], rtol=1e-12, atol=0)
        assert term > 0.01, "the test's own weights must say something"


# --- what the network is shown --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask_range", "low"), [("signed", -1), ("unit", 0)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_network_sees_masks_clipped_to_their_range(strategy, mask_range, low):
    method = build(strategy, constant(-0.8), exclusive=False, mask_range=mask_range, condition_share=1.0)
    method.loss(cases(exclusive=False), STAGE, noise())
    for mask in method.network.masks:
        assert (mask.min(), mask.max()) == (low, 1), "noise reaches beyond both ends"
    told = method.network.conditions[-1]
    if told is not None:
        value = math.tanh(-0.4)
        torch.testing.assert_close(told, torch.full_like(told, value if low else (value + 1) / 2))


# --- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_terms_are_those_of_the_second_pass_by_hand(exclusive):
    """20 x cross-entropy + Dice of present foreground, of one item, from logits that are known."""
    method, batch = build("recycling", constant(0.0), exclusive=exclusive), cases(1, exclusive=exclusive)
    terms = method.loss(batch, STAGE, noise(1))
    assert terms["cross_entropy"].item() == pytest.approx(20 * math.log(2))
    truth = (batch.label == 1).double() if not exclusive else (batch.label == 1).double()[:, None]
    n = truth[0, 0].numel()
    dice = (2 * 0.5 * truth.sum((2, 3)) / (0.5 * n + truth.sum((2, 3)))).mean()
    assert terms["dice"].item() == pytest.approx(1 - dice.item())


def test_voxels_that_nobody_annotated_have_no_gradient():
    valid = torch.ones(2, *SHAPE, dtype=torch.bool)
    valid[:, :2] = False
    method = build("ground-truth", constant())
    offsets = torch.zeros(2, 2, *SHAPE, dtype=torch.float64, requires_grad=True)
    method.network.function = lambda mask: mask + offsets
    sum(method.loss(cases(valid=valid), STAGE, noise()).values()).backward()
    assert offsets.grad[:, :, :2].count_nonzero() == 0
    assert offsets.grad[:, :, 2:].count_nonzero() == offsets[:, :, 2:].numel()


@pytest.mark.parametrize("weighting", ["unbiased", "inverted"])
@pytest.mark.parametrize("rule", ["mean-loss", "root-mean-square-loss"])
def test_timesteps_are_learnt_from_unweighted_losses_once_a_step(rule, weighting):
    schedule = {"name": "linear", "T": 4}
    method = build("recycling", constant(0.0), schedule=schedule, timestep_sampling=rule, timestep_weight=weighting)
    sampler = method.timestep_sampler
    for seed in range(12):
        batch = cases(8)
        method.loss(batch, STAGE, noise(8, seed))
        before = sampler.moment.clone()
        assert torch.equal(sampler.moment, before), "the losses of a step count from the next one on"
        method.finish_step(lambda values: values.clone())
    assert sampler.T == 3, "recycling leaves the last timestep to its first pass"
    assert sampler.count.sum() == 12 * 8
    # Cross-entropy is 20 ln 2 at every timestep; Dice lies between 0 and 1.
    power = 1 if rule == "mean-loss" else 2
    low, high = (20 * math.log(2)) ** power, (20 * math.log(2) + 1) ** power
    assert ((low <= sampler.moment * (1 + 1e-6)) & (sampler.moment <= high)).all()
    assert build("recycling", constant()).timestep_sampler.state_dict() == {}, "uniform draws keep no state"
