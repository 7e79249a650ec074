"""The pretraining objective: Ho et al.'s Algorithm 1, written out by hand, and networks that know the answer."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import nn

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.denoising import Denoising, DenoisingSettings

SMALL = {"model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": ()}
STAGE = Denoising.stages[0]


class KnowsTheImage(nn.Module):
    """Takes the clean image away from x_t; what is left is the noise. Remembers the timesteps it was asked for."""

    divisor = (2, 2)

    def __init__(self, x_0, levels):
        super().__init__()
        self.x_0, self.levels, self.seen = x_0, levels, []

    def forward(self, x, t):
        self.seen += t.tolist()
        level = self.levels[t].view(-1, 1, 1, 1)
        return ((x - level.sqrt() * self.x_0) / (1 - level).sqrt()).float()


def objective(n_dims=2, in_channels=1, **changes):
    task = Task(n_dims=n_dims, in_channels=in_channels, class_names=("background", "organ"))
    built = Denoising(task, DenoisingSettings(**{**SMALL, **changes}))
    with torch.no_grad():
        for parameter in built.parameters():  # layers that start at 0 say something, too
            parameter.copy_(0.1 * torch.randn(parameter.shape) + (parameter.ndim == 1))
    return built


def batch_of(image, label=None):
    return Batch(image=image, label=label, valid=None, case_ids=("x",) * len(image), positions=torch.arange(len(image)))


def noise(*seeds):
    return NoiseSource([("noise", seed) for seed in seeds])


def cosine_levels(n_steps=1000, s=0.008):
    """Nichol & Dhariwal 2021, Eq. 17, with their cap of the last beta."""
    signal = [math.cos((i / n_steps + s) / (1 + s) * math.pi / 2) ** 2 for i in range(n_steps + 1)]
    levels = [1.0]
    for before, after in pairwise(signal):
        levels.append(levels[-1] * (1 - min(1 - after / before, 0.999)))
    return torch.tensor(levels[1:], dtype=torch.float64)


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("n_dims", [2, 3])
def test_the_loss_is_the_distance_between_the_true_and_the_predicted_noise(n_dims, distance):
    model = objective(n_dims, in_channels=2, distance=distance)
    image = torch.randn(3, 2, *(8, 6, 4)[:n_dims])
    drawn = noise(1, 2, 3)
    t, epsilon = drawn.randint(0, 1000), drawn.randn(*image.shape[1:])
    level = cosine_levels()[t].view(-1, 1, *[1] * n_dims)
    x_t = (level.sqrt() * image + (1 - level).sqrt() * epsilon).float()
    error = model.network(x_t, t) - epsilon
    expected = error.abs().mean() if distance == "l1" else (error**2).mean()
    (term,) = model.loss(batch_of(image), STAGE, noise(1, 2, 3)).values()
    assert term.item() == pytest.approx(expected.item(), rel=1e-5)
    assert term.item() > 0.1, "the test's own weights must say something"


def test_each_item_has_a_timestep_of_its_own_and_every_timestep_is_drawn():
    model = objective(schedule={"T": 6})
    image = torch.zeros(1000, 1, 2, 2)
    fake = KnowsTheImage(image, cosine_levels(6))
    model.network = fake
    model.loss(batch_of(image), STAGE, noise(*range(1000)))
    counts = Counter(fake.seen)
    assert sorted(counts) == [0, 1, 2, 3, 4, 5]
    # 1000 draws of 6: 167 each, with a standard deviation of 12.
    assert max(abs(count - 1000 / 6) for count in counts.values()) < 60


def test_a_network_that_knows_the_image_has_no_loss_and_illustrates_it():
    x_0 = 2 * torch.rand(2, 1, 4, 4) - 1
    model = objective()
    model.network = KnowsTheImage(x_0, cosine_levels())
    (term,) = model.loss(batch_of(x_0), STAGE, noise(1, 2)).values()
    assert term.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(model.illustrate(noise(1, 2), (4, 4)), x_0, rtol=0, atol=1e-3)
    asked = model.network.seen[2:]
    assert (asked[0], asked[-1]) == (999, 0), "from pure noise to the cleanest timestep"
    assert len(asked) == 2 * 50


def test_few_timesteps_are_illustrated_too():
    x_0 = torch.rand(1, 1, 4, 4)
    model = objective(schedule={"T": 10})
    model.network = KnowsTheImage(x_0, cosine_levels(10))
    torch.testing.assert_close(model.illustrate(noise(1), (4, 4)), x_0, rtol=0, atol=1e-3)


def test_pictures_depend_on_their_noise_alone():
    model = objective(schedule={"T": 20}).eval()
    first = model.illustrate(noise(1, 2), (8, 6))
    assert first.shape == (2, 1, 8, 6)
    assert not first.requires_grad
    assert torch.equal(first, model.illustrate(noise(1, 2), (8, 6)))
    torch.testing.assert_close(model.illustrate(noise(2), (8, 6)), first[1:], rtol=0, atol=1e-4)
    assert not torch.equal(first[0], first[1])


def test_labels_are_never_looked_at():
    model, image = objective(), torch.randn(2, 1, 4, 4)
    # An object that is no tensor: whatever is done with it fails.
    for label in (None, object()):
        terms = model.loss(batch_of(image, label), STAGE, noise(1, 2))
        assert list(terms) == ["noise"]
    assert STAGE.supervision == "none"


def test_the_network_gives_as_many_channels_as_the_image_has():
    model = objective(in_channels=3)
    assert model.network(torch.zeros(1, 3, 4, 4), torch.tensor([5])).shape == (1, 3, 4, 4)
    assert model.divisor == (2, 2)


def test_a_schedule_that_cannot_be_is_a_usage_error():
    with pytest.raises(UsageError, match="noise schedule"):
        objective(schedule={"name": "linear", "T": 100_000})
