"""O32: importance sampling of training timesteps, by enumeration over all of them."""

import math

import pytest
import torch

from medsegdiff_cli.artifacts.checkpoint import read_checkpoint, write_checkpoint
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.diffusion.timestep_sampling import TimestepSampler

LEARNT = ("mean-loss", "root-mean-square-loss")


def alone(values):
    return values.clone()


def noise(n, seed=0):
    return NoiseSource([(seed, item) for item in range(n)])


def taught(rule, losses, weighting="unbiased", steps=10):
    """Return a sampler that has seen each timestep's loss once in each of `steps` steps."""
    sampler = TimestepSampler(len(losses), rule, weighting)
    for _ in range(steps):
        sampler.observe(torch.arange(len(losses)), torch.tensor(losses))
        sampler.learn(alone)
    return sampler


@pytest.mark.parametrize("rule", LEARNT)
def test_probabilities_follow_the_mean_loss_but_for_a_thousandth(rule):
    """A loss that is always the same has √E[L²] = E[L] = L."""
    losses = [1.0, 2.0, 4.0, 0.0, 13.0]
    expected = [0.999 * loss / 20 + 0.001 / 5 for loss in losses]
    assert taught(rule, losses).probabilities().tolist() == pytest.approx(expected, rel=1e-5)


def test_the_rules_differ_by_the_spread_of_the_losses():
    """Two timesteps of equal mean: 3 and 3, and 1 and 5. √E[L²] is 3 and √13."""
    roots = {"mean-loss": (3.0, 3.0), "root-mean-square-loss": (3.0, math.sqrt(13))}
    for rule, (first, second) in roots.items():
        sampler = TimestepSampler(2, rule)
        for _ in range(5):
            # Both losses at once: the running mean moves towards the mean of the step.
            sampler.observe(torch.tensor([0, 0, 1, 1]), torch.tensor([3.0, 3.0, 1.0, 5.0]))
            sampler.learn(alone)
        p = sampler.probabilities()
        assert (p[1] / p[0]).item() == pytest.approx(second / first, rel=1e-3)


@pytest.mark.parametrize("rule", LEARNT)
def test_weighted_losses_keep_their_mean_over_all_timesteps(rule):
    """Enumeration: the sum over t of p_t w_t L_t is the mean of L, whatever p is; the inverted weight breaks it."""
    losses = torch.tensor([0.5, 3.0, 0.1, 8.0, 1.0, 1.0], dtype=torch.float64)
    for weighting, exact in (("unbiased", True), ("inverted", False)):
        sampler = taught(rule, losses.float().tolist(), weighting)
        p = sampler.probabilities()
        t, weight = sampler.draw(noise(400))
        weights = torch.zeros(6, dtype=torch.float64)
        weights[t] = weight.double()
        assert set(t.tolist()) == set(range(6))
        total = (p * weights * losses).sum().item()
        assert (total == pytest.approx(losses.mean().item(), rel=1e-5)) == exact
        torch.testing.assert_close(weights, 6 * p if weighting == "inverted" else 1 / (6 * p), rtol=1e-5, atol=0)


def test_timesteps_are_drawn_as_often_as_their_probability_says():
    sampler = taught("mean-loss", [1.0, 2.0, 5.0])
    counts = torch.bincount(sampler.draw(noise(3000))[0], minlength=3).double()
    p = sampler.probabilities()
    assert ((counts - 3000 * p).abs() < 4 * (3000 * p * (1 - p)).sqrt()).all()


def test_a_draw_is_a_function_of_the_items_stream():
    sampler = taught("mean-loss", [1.0, 2.0, 5.0, 1.0])
    together = sampler.draw(noise(5))
    for item in range(5):
        t, weight = sampler.draw(NoiseSource([(0, item)]))
        assert (t, weight) == (together[0][item], together[1][item])


@pytest.mark.parametrize("rule", LEARNT)
@pytest.mark.parametrize("weighting", ["unbiased", "inverted"])
def test_until_each_has_been_seen_ten_times_only_what_lacks_is_drawn_and_all_count_alike(rule, weighting):
    sampler = taught(rule, [1.0, 1.0, 1.0, 1.0], weighting, steps=7)
    sampler.observe(torch.tensor([1] * 3 + [2] * 2), torch.full((5,), 100.0))
    sampler.learn(alone)
    # 3, 0, 1 and 3 draws are missing.
    assert sampler.probabilities().tolist() == pytest.approx([3 / 7, 0, 1 / 7, 3 / 7])
    t, weight = sampler.draw(noise(300))
    assert set(t.tolist()) == {0, 2, 3}
    assert set(weight.tolist()) == {1.0}
    fresh = TimestepSampler(5, rule, weighting)
    assert fresh.probabilities().tolist() == [0.2] * 5


def test_uniform_draws_learn_nothing():
    sampler = TimestepSampler(3)
    t, weight = sampler.draw(noise(60))
    sampler.observe(t, torch.rand(60))
    sampler.learn(alone)
    assert set(t.tolist()) == {0, 1, 2}
    assert set(weight.tolist()) == {1.0}
    assert sampler.probabilities().tolist() == [1 / 3] * 3
    assert sampler.state_dict() == {}


def test_the_running_mean_forgets_by_a_tenth_a_loss():
    sampler = TimestepSampler(2, "mean-loss")
    sampler.observe(torch.tensor([0]), torch.tensor([4.0]))
    sampler.learn(alone)
    assert sampler.moment.tolist() == [4.0, 0.0], "the first loss is taken as it is"
    sampler.observe(torch.tensor([0]), torch.tensor([2.0]))
    sampler.learn(alone)
    assert sampler.moment[0].item() == pytest.approx(0.9 * 4 + 0.1 * 2)
    expected = sampler.moment[0].item()
    for _ in range(3):
        expected = 0.9 * expected + 0.1 * 7
    sampler.observe(torch.zeros(3, dtype=torch.long), torch.full((3,), 7.0))
    sampler.learn(alone)
    assert sampler.moment[0].item() == pytest.approx(expected), "three equal losses at once, or one after another"
    assert sampler.count.tolist() == [5.0, 0.0]


@pytest.mark.parametrize("rule", LEARNT)
def test_two_processes_learn_what_one_with_both_batches_does(rule):
    random = torch.Generator().manual_seed(0)
    single, pair = TimestepSampler(4, rule), [TimestepSampler(4, rule) for _ in range(2)]
    for _ in range(30):
        t = torch.randint(0, 4, (6,), generator=random)
        losses = torch.randint(0, 9, (6,), generator=random).float()  # sums of whole numbers are exact
        single.observe(t, losses)
        single.learn(alone)
        for rank, sampler in enumerate(pair):
            sampler.observe(t[rank::2], losses[rank::2])
        shared = {name: pair[0].get_buffer(name) + pair[1].get_buffer(name) for name in ("new_sum", "new_count")}
        for sampler in pair:
            sums = iter((shared["new_sum"], shared["new_count"]))
            sampler.learn(lambda values, sums=sums: next(sums).clone())
        for sampler in pair:
            for name, value in single.state_dict().items():
                assert torch.equal(sampler.get_buffer(name), value), name
    assert torch.equal(pair[0].probabilities(), single.probabilities())


@pytest.mark.parametrize("rule", LEARNT)
@pytest.mark.parametrize("stop", [3, 30])
def test_a_sampler_from_a_checkpoint_goes_on_exactly(rule, stop, tmp_path):
    """Stopped while it is still warming up, and afterwards."""

    def go_on(sampler, first, last):
        drawn = []
        for step in range(first, last):
            t, weight = sampler.draw(noise(4, step))
            sampler.observe(t, torch.rand(4, generator=torch.Generator().manual_seed(step)))
            sampler.learn(alone)
            drawn.append((t.tolist(), weight.tolist()))
        return drawn

    undisturbed = TimestepSampler(5, rule)
    expected = go_on(undisturbed, 0, 50)
    stopped, resumed = TimestepSampler(5, rule), TimestepSampler(5, rule)
    assert go_on(stopped, 0, stop) == expected[:stop]
    write_checkpoint(tmp_path / "state", {f"model.{k}": v for k, v in stopped.state_dict().items()}, {"step": stop})
    resumed.load_state_dict(read_checkpoint(tmp_path / "state").part("model"))
    assert go_on(resumed, stop, 50) == expected[stop:]
    assert torch.equal(resumed.probabilities(), undisturbed.probabilities())
    assert not torch.equal(resumed.count, torch.zeros(5))
