"""Prediction of diffusion on masks as a walk: which timesteps, which states, where it starts and where it may end."""

import pytest
import torch
from torch import nn

from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.gaussian import q_sample
from medsegdiff_cli.diffusion.grids import linspace_grid
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.diffusion.samplers import SAMPLERS, Ddim, sample
from medsegdiff_cli.diffusion.schedules import linear_schedule
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.methods.mask_diffusion import MaskDiffusion, MaskDiffusionSettings

SMALL = {"model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": ()}
LINEAR = linear_schedule(1001)
SHAPE = (4, 6)


class Watched(nn.Module):
    """Gives a function of (image, mask, t) as logits; remembers masks, conditions and timesteps."""

    divisor = (2, 2)

    def __init__(self, function, n_classes=2):
        super().__init__()
        self.function, self.n_classes = function, n_classes
        self.masks, self.conditions, self.t = [], [], []

    def forward(self, x, t):
        mask, condition = x[:, 1 : 1 + self.n_classes], x[:, 1 + self.n_classes :]
        self.masks.append(mask.clone())
        self.conditions.append(condition.clone())
        self.t.append(t.tolist())
        return self.function(x[:, :1], mask, t.view(-1, *[1] * (x.ndim - 1)))


def mixed(image, mask, t):
    """Logits that depend on everything."""
    return torch.cat([image, -image], 1) + mask.roll(1, -1) + torch.sin(t / 100)


def build(function=mixed, **changes):
    task = Task(n_dims=2, in_channels=1, class_names=("organ", "nodule"), classes_are_exclusive=False)
    torch.manual_seed(0)
    method = MaskDiffusion(task, MaskDiffusionSettings(**{**SMALL, **changes})).double().eval()
    method.network = Watched(function)
    return method


def images(n=2):
    return torch.randn(n, 1, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def noise(n=2, first=0):
    return NoiseSource([("walk", item) for item in range(first, first + n)])


def walked(method, sampling, *, image=None, init=None, first=0):
    image = images() if image is None else image
    return list(method.steps(method.prepare(image), noise(len(image), first), sampling, init))


def estimate_of(method, image):
    """The network's x_0 in -1 ... 1, for `diffusion.samplers.sample`."""
    return lambda x_t, t: 2 * torch.sigmoid(method.network.function(image, x_t.clamp(-1, 1), t.view(-1, 1, 1, 1))) - 1


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [1000, 750, 500, 250, 0]),
        (Sampling(steps=2), [1000, 0]),
        (Sampling(steps=1), [1000]),
        (Sampling(start=400), [400, 300, 200, 100, 0]),
        (Sampling(start=2), [2, 1, 0]),
        (Sampling(start=0), [0]),
        (Sampling(start=500, steps=3), [500, 250, 0]),
    ],
)
def test_the_network_is_told_training_timesteps_evenly_spaced_down_to_zero(sampling, expected):
    method = build()
    steps = walked(method, sampling)
    assert [step.t for step in steps] == expected
    assert method.network.t == [[t, t] for t in expected]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
@pytest.mark.parametrize("steps", [2, 5, 11])
def test_a_walk_is_that_of_the_samplers(sampler, steps):
    """Which diffusers' schedulers agree with; also the history of DPM-Solver++ is that of one walk."""
    method, image = build(sampler=sampler), images()
    stream = noise()
    x_T = stream.randn(2, *SHAPE).double()
    expected = sample(estimate_of(method, image), x_T, linspace_grid(1001, steps), SAMPLERS[sampler], LINEAR, stream)
    *_, last = walked(method, Sampling(steps=steps))
    torch.testing.assert_close(2 * last.probabilities.double() - 1, expected, rtol=0, atol=1e-6)
    again = method.predict(method.prepare(image), noise(), Sampling(steps=steps))
    assert torch.equal(again[:, 0], last.probabilities)


def test_a_sampler_that_is_asked_for_is_taken_instead_of_the_models():
    asked = walked(build(), Sampling(sampler="ddim"))[-1].probabilities
    assert torch.equal(asked, walked(build(sampler="ddim"), Sampling())[-1].probabilities)
    assert not torch.equal(asked, walked(build(), Sampling())[-1].probabilities)
    ancestral = walked(build(), Sampling(sampler="ddim", eta=1.0))[-1].probabilities
    torch.testing.assert_close(ancestral, walked(build(), Sampling())[-1].probabilities, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("mask_range", "low"), [("signed", -1.0), ("unit", 0.0)])
def test_the_chain_goes_on_unclipped_and_the_network_sees_it_clipped(mask_range, low):
    """States by hand: DDIM from one estimate that never changes."""
    method = build(lambda image, mask, t: torch.full_like(mask, 0.8), mask_range=mask_range)
    walked(method, Sampling(sampler="ddim"))
    x_t, x_0 = noise().randn(2, *SHAPE).double(), torch.full((2, 2, *SHAPE), 0.8, dtype=torch.float64).sigmoid() * 2 - 1
    is_beyond = []
    for seen, t, t_next in zip(method.network.masks, (1000, 750, 500, 250, 0), (750, 500, 250, 0, None), strict=True):
        clipped = x_t.clamp(-1, 1)
        shown = clipped if mask_range == "signed" else (clipped + 1) / 2
        torch.testing.assert_close(seen, shown, rtol=0, atol=1e-6)
        assert low <= seen.min()
        assert seen.max() <= 1
        is_beyond.append(bool((x_t.abs() > 1).any()))
        if t_next is not None:
            x_t = Ddim().advance(x_t, x_0, t, t_next, None, LINEAR)
    assert sum(is_beyond) >= 2, "the test's own states must reach beyond -1 and 1"


@pytest.mark.parametrize("start", [0, 300, 1000])
def test_a_warm_start_is_the_segmentation_noised_to_its_timestep(start):
    method = build()
    init = torch.rand(2, 2, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    first = walked(method, Sampling(start=start), init=init)[0]
    assert first.t == start
    epsilon = noise().randn(2, *SHAPE)
    expected = q_sample(2 * init - 1, torch.tensor([start, start]), epsilon, LINEAR)
    torch.testing.assert_close(method.network.masks[0], expected.clamp(-1, 1), rtol=0, atol=1e-6)
    # Without a segmentation to start from it is noise, wherever the walk starts.
    method = build()
    walked(method, Sampling(start=start))
    torch.testing.assert_close(method.network.masks[0], epsilon.clamp(-1, 1).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("start", [-1, 1001])
def test_a_start_that_the_model_does_not_have_is_a_usage_error(start):
    with pytest.raises(UsageError, match="choose 0 to 1000"):
        walked(build(), Sampling(start=start))


@pytest.mark.parametrize(
    "sampling", [Sampling(steps=1002), Sampling(start=3, steps=5), Sampling(sampler="euler"), Sampling(eta=0.5)]
)
def test_walks_that_do_not_exist_are_usage_errors(sampling):
    with pytest.raises(UsageError):
        walked(build(), sampling)


# --- the end of a walk ----------------------------------------------------------------------------------------------


def settling(image, mask, t):
    """Both classes fill as many columns as the timestep says, until the image's limit; then nothing changes.

    Images say the timestep from which on they stay as they are.
    """
    shown = torch.where(t > image[:, :, :1, :1], t, image[:, :, :1, :1])
    column = torch.arange(SHAPE[1]).view(1, 1, 1, -1).expand(len(image), 2, *SHAPE)
    return 10 * (shown / 1000 * SHAPE[1] - column - 0.5)


def limits(*timesteps):
    return torch.tensor(timesteps, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 1, *SHAPE).contiguous()


EVERY = [1000, 800, 600, 400, 200, 0]


def settled_at(limit, stop_change=0.01):
    """Return the timesteps of an item's walk, alone."""
    sampling = Sampling(steps=6, stop_change=stop_change)
    return [step.t for step in walked(build(settling), sampling, image=limits(limit))]


def test_a_walk_ends_when_its_labels_have_settled():
    assert settled_at(0) == EVERY
    # From 600 on all steps are equal: the first that differs from the one before by nothing is 400.
    assert settled_at(600) == [1000, 800, 600, 400]
    assert settled_at(600, None) == EVERY
    assert settled_at(600, 0.0) == EVERY, "less than none is never"


def test_an_item_ends_its_walk_whatever_its_neighbours_do():
    sampling, timesteps = Sampling(steps=6, stop_change=0.01), (600, 0, 400)
    together = walked(build(settling), sampling, image=limits(*timesteps))
    assert [step.t for step in together] == EVERY, "the batch walks as long as its last item"
    for item, timestep in enumerate(timesteps):
        alone = walked(build(settling), sampling, image=limits(timestep), first=item)
        assert torch.equal(alone[-1].probabilities[0], together[-1].probabilities[item])
        kept = [step.t for step in together if step.settled[item]]
        assert kept == [t for t in EVERY if t < alone[-1].t], "settled items keep their estimate"
        for step in together[len(alone) :]:
            assert torch.equal(step.probabilities[item], alone[-1].probabilities[0])


def test_the_share_that_changed_is_of_the_foreground():
    method = build()
    before, after = torch.zeros(2, 2, *SHAPE), torch.zeros(2, 2, *SHAPE)
    before[0, 0, :2] = 1
    after[0, 0, 1:3] = 1
    # Rows 0 and 2 of three rows with foreground; the second item has none.
    assert method.changed_share(before, after).tolist() == pytest.approx([2 / 3, 0])
    task = Task(n_dims=2, in_channels=1, class_names=("background", "organ", "nodule"))
    exclusive = MaskDiffusion(task, MaskDiffusionSettings(**SMALL))
    one, other = torch.zeros(1, 3, *SHAPE), torch.zeros(1, 3, *SHAPE)
    one[:, 1], other[:, 1] = 0.4, 0.6
    one[:, 2, 0] = other[:, 2, 1] = 0.9
    one[:, 0, 3], other[:, 0, 3] = 0.9, 0.95
    # Rows 0 and 1 change between organ and nodule, row 2 stays organ, row 3 is background in both.
    assert exclusive.changed_share(one, other).item() == pytest.approx(2 / 3)


# --- self-conditioning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_range", ["signed", "unit"])
def test_each_step_is_told_the_estimate_of_the_step_before(mask_range):
    method = build(strategy="self-conditioning", mask_range=mask_range)
    steps = walked(method, Sampling())
    first, *later = method.network.conditions
    assert first.count_nonzero() == 0
    for told, step in zip(later, steps, strict=False):
        p = step.probabilities
        torch.testing.assert_close(told, (p if mask_range == "unit" else 2 * p - 1).double(), rtol=0, atol=1e-6)
    assert all(condition.shape[1] == 0 for condition in _conditions_of(build()))


def _conditions_of(method):
    walked(method, Sampling())
    return method.network.conditions
