"""Samplers: exact on Gaussian data, convergent at their order, equal where theory says so, cheap."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medsegdiff_cli.diffusion.gaussian import predict_epsilon, predict_x_0, q_posterior, training_target
from medsegdiff_cli.diffusion.grids import linspace_grid, transitions
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.diffusion.samplers import SAMPLERS, Ddim, Ddpm, DpmSolverPlusPlus, History, get_sampler, sample
from medsegdiff_cli.diffusion.schedules import CLEAN, cosine_schedule, linear_schedule
from medsegdiff_cli.errors import UsageError

# Data x_0 ~ N(M, S²): the best estimate and the exact flow are known.
M, S = 0.3, 0.5
FINE = {"linear": linear_schedule(4097, scaled=True), "cosine": cosine_schedule(4097)}
LINEAR = linear_schedule(1000)
PAIRS = [(999, 998), (999, 500), (500, 499), (250, 0), (37, 5), (1, 0)]
ALL = [*SAMPLERS.values(), Ddim(eta=0.3), Ddim(eta=1.0)]


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def best_estimate(schedule, m=M, s=S):
    """E[x_0 | x_t] for x_0 ~ N(m, s²)."""

    def denoise(x_t, t):
        level = schedule.alphas_cumprod[t].view(-1, *[1] * (x_t.ndim - 1))
        return m + level.sqrt() * s**2 * (x_t - level.sqrt() * m) / (level * s**2 + 1 - level)

    return denoise


def flow(x, level, level_next):
    """Where the probability flow takes x: quantiles of N(√ᾱ M, ᾱ S² + 1 - ᾱ) stay quantiles."""
    deviation, deviation_next = (math.sqrt(a * S**2 + 1 - a) for a in (level, level_next))
    return math.sqrt(level_next) * M + (x - math.sqrt(level) * M) * deviation_next / deviation


def error_at_the_last_index(sampler, schedule, n_intervals):
    grid = linspace_grid(schedule.T, n_intervals + 1)
    x, denoise, history = float64([1.5]), best_estimate(schedule), History()
    for t, t_next in list(transitions(grid))[:-1]:
        x = sampler.advance(x, denoise(x, torch.tensor([t])), t, t_next, None, schedule, history=history)
    return abs(x.item() - flow(1.5, schedule.level(grid[0]), schedule.level(0)))


@pytest.mark.parametrize("name", FINE)
@pytest.mark.parametrize("sampler", [s for s in SAMPLERS.values() if not s.is_stochastic])
def test_halving_the_steps_cuts_the_error_by_the_order(name, sampler):
    """O15, with O14's data: 64, 128 and 256 intervals."""
    errors = [error_at_the_last_index(sampler, FINE[name], n) for n in (64, 128, 256)]
    least = {1: 1.8, 2: 3.5}[sampler.order]
    assert errors[0] / errors[1] >= least
    assert errors[1] / errors[2] >= least


@pytest.mark.parametrize("schedule", [linear_schedule(1000), cosine_schedule(1000)])
@pytest.mark.parametrize("sampler", [s for s in SAMPLERS.values() if not s.is_stochastic])
def test_the_whole_walk_ends_where_the_exact_flow_does(schedule, sampler):
    """O14."""
    x_T = float64([1.5], [-2.0])
    x_0 = sample(best_estimate(schedule), x_T, linspace_grid(schedule.T, schedule.T), sampler, schedule)
    level = schedule.level(schedule.T - 1)
    expected = M + S * (x_T - math.sqrt(level) * M) / math.sqrt(level * S**2 + 1 - level)
    torch.testing.assert_close(x_0, expected, rtol=0, atol={1: 4e-3, 2: 4e-4}[sampler.order])


def chain_moments(sampler, schedule, grid, m, s):
    """Yield mean and variance of the chain after each step; steps are affine in x, so no sampling is needed."""
    denoise, level = best_estimate(schedule, m, s), schedule.level(grid[0])
    mean, variance = math.sqrt(level) * m, level * s**2 + 1 - level
    for t, t_next in transitions(grid):
        x_t = float64([0.0], [1.0], [0.0])
        noise = float64([0.0], [0.0], [1.0])
        x_0 = denoise(x_t, torch.tensor([t]))
        at_0, at_1, with_noise = sampler.advance(x_t, x_0, t, t_next, noise, schedule)[:, 0].tolist()
        mean = at_0 + (at_1 - at_0) * mean
        variance = (at_1 - at_0) ** 2 * variance + (with_noise - at_0) ** 2
        yield t_next, mean, variance


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("steps", [2, 7, 150])
def test_chains_of_a_known_image_have_the_exact_marginals(sampler, steps):
    """O14 with S = 0: the estimate is the truth, and every grid gives mean √ᾱ M and variance 1 - ᾱ."""
    for t, mean, variance in chain_moments(sampler, LINEAR, linspace_grid(1000, steps), M, 0.0):
        assert mean == pytest.approx(math.sqrt(LINEAR.level(t)) * M, rel=1e-10)
        assert variance == pytest.approx(1 - LINEAR.level(t), rel=1e-10, abs=1e-20)


@pytest.mark.parametrize("sampler", [Ddpm(), Ddim(eta=1.0)])
def test_the_variance_of_the_ancestral_chain_converges_to_the_datas(sampler):
    """O14: the small variance loses some of the data's spread in each step, in proportion to its length."""
    schedule, missing = FINE["cosine"], []
    for intervals in (64, 128, 256):
        *_, (_, mean, variance) = chain_moments(sampler, schedule, linspace_grid(schedule.T, intervals + 1), M, S)
        assert mean == pytest.approx(M, abs=1e-3)
        missing.append(S**2 - variance)
    assert missing[-1] > 0
    assert missing[0] / missing[1] == pytest.approx(2, abs=0.3)
    assert missing[1] / missing[2] == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("pair", PAIRS)
def test_ddim_with_the_posterior_variance_is_ddpm(pair):
    """O5, and both equal the posterior of `gaussian`."""
    generator = torch.Generator().manual_seed(0)
    x_t, x_0, noise = torch.randn(3, 2, 1, 4, generator=generator, dtype=torch.float64)
    expected, variance = q_posterior(x_0, x_t, torch.tensor([pair[0]] * 2), LINEAR, torch.tensor([pair[1]] * 2))
    for sampler in (Ddpm(), Ddim(eta=1.0)):
        mean = sampler.advance(x_t, x_0, *pair, None, LINEAR)
        torch.testing.assert_close(mean, expected, rtol=4e-13, atol=4e-13)
        drawn = sampler.advance(x_t, x_0, *pair, noise, LINEAR)
        torch.testing.assert_close(drawn, expected + variance[:, 0].sqrt()[:, None] * noise, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("pair", PAIRS)
def test_ddim_keeps_the_marginal_variance_for_every_eta(pair, eta):
    weights = Ddim(eta=eta).weights(*pair, LINEAR, None)
    now, then = (LINEAR.level(t) for t in pair)
    assert weights.x_t**2 * (1 - now) + weights.noise**2 == pytest.approx(1 - then, rel=1e-14)
    assert weights.x_0 + weights.x_t * math.sqrt(now) == pytest.approx(math.sqrt(then), rel=1e-13)
    # Song et al. 2021, Eq. 16: the deviation, not the variance, grows with eta.
    deviation = math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
    assert weights.noise == pytest.approx(eta * deviation, rel=1e-12)


def test_the_printed_ddim_formula_breaks_the_marginal_variance():
    """O8: σ instead of σ² under the root gives 0.831 where 0.921 is right."""
    sigma = Ddim(eta=1.0).weights(500, 499, LINEAR, None).noise
    right = 1 - LINEAR.level(499)
    printed = (right - sigma) + sigma**2
    assert round(right, 3) == 0.921
    assert round(printed, 3) == 0.831


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("schedule", [LINEAR, FINE["cosine"], linear_schedule(2), cosine_schedule(5)])
@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (1, 2, 2, 3, 4)])
def test_a_constant_estimate_is_where_every_walk_ends(sampler, schedule, shape):
    """O16, exactly, on any grid."""
    generator = torch.Generator().manual_seed(1)
    x_T, constant = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    noise = NoiseSource([(0, item) for item in range(shape[0])])
    for grid in (linspace_grid(schedule.T, 2), (schedule.T - 1,), (1,), linspace_grid(schedule.T, min(schedule.T, 9))):
        assert torch.equal(sample(lambda *_: constant, x_T, grid, sampler, schedule, noise), constant)


@pytest.mark.parametrize("sampler", ALL)
def test_the_last_step_returns_the_estimate(sampler):
    """O4 and O5: whatever x_t, noise and history are."""
    x_t, x_0, before, noise = torch.randn(4, 2, 1, 3, generator=torch.Generator().manual_seed(0))
    history = History(before, 10)
    assert torch.equal(sampler.advance(x_t, x_0, 3, CLEAN, noise, LINEAR, history=history), x_0)


@pytest.mark.parametrize("sampler", ALL)
def test_the_walk_tells_the_network_training_timesteps_and_keeps_its_start(sampler):
    x_T = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    start, seen = x_T.clone(), []

    def denoise(x_t, t):
        assert t.shape == (3,)
        assert t.dtype == torch.int64
        seen.append(set(t.tolist()))
        return x_t.tanh()

    noise = NoiseSource([(0, item) for item in range(3)])
    sample(denoise, x_T, (999, 730, 40, 3), sampler, LINEAR, noise)
    assert seen == [{999}, {730}, {40}, {3}]
    assert torch.equal(x_T, start)


@pytest.mark.parametrize("sampler", ALL)
def test_an_item_takes_the_same_walk_in_every_batch(sampler):
    def walk(items):
        x_T = NoiseSource([(1, item) for item in items]).randn(1, 5)
        noise = NoiseSource([(2, item) for item in items])
        return sample(lambda x_t, t: x_t.tanh(), x_T, linspace_grid(1000, 6), sampler, LINEAR, noise)

    together = walk([0, 1, 2])
    for item in range(3):
        assert torch.equal(walk([item])[0], together[item])


@pytest.mark.parametrize("parameterisation", ["epsilon", "v"])
def test_any_parameterisation_walks_through_its_estimate_of_x_0(parameterisation):
    best, x_T = best_estimate(LINEAR), float64([1.5], [-0.7])

    def network(x_t, t):
        x_0 = best(x_t, t)[:, :1]
        return training_target(x_0, predict_epsilon(x_0, x_t, t, LINEAR, "x_0"), t, LINEAR, parameterisation)

    def denoise(x_t, t):
        return predict_x_0(network(x_t, t), x_t, t, LINEAR, parameterisation)

    grid = linspace_grid(1000, 20)
    for sampler in (Ddim(), DpmSolverPlusPlus()):
        expected = sample(best, x_T, grid, sampler, LINEAR)
        torch.testing.assert_close(sample(denoise, x_T, grid, sampler, LINEAR), expected, rtol=1e-10, atol=1e-10)


def test_dpm_solver_without_history_is_ddim():
    """Lu et al.: the first-order solver; so is the first step of each walk."""
    x_t, x_0 = torch.randn(2, 1, 1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for pair in PAIRS:
        expected = Ddim().advance(x_t, x_0, *pair, None, LINEAR)
        for history in (None, History()):
            actual = DpmSolverPlusPlus().advance(x_t, x_0, *pair, None, LINEAR, history=history)
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert (history.x_0 is x_0, history.t) == (True, PAIRS[-1][0])


def test_single_step_samplers_leave_the_history_empty():
    x = torch.ones(1, 1, 2)
    for sampler in (Ddpm(), Ddim()):
        history = History()
        sampler.advance(x, x, 9, 4, None, LINEAR, history=history)
        assert history == History()


def test_an_estimate_that_is_the_state_itself_is_not_overwritten_too_early():
    x_T = float64([1.5, -0.5])
    expected = x_T
    for t, t_next in ((999, 500), (500, 20)):
        expected = Ddim().advance(expected.clone(), expected, t, t_next, None, LINEAR)
    assert torch.equal(sample(lambda x_t, t: x_t, x_T, (999, 500, 20), Ddim(), LINEAR), expected)


def test_gradients_flow_through_a_walk():
    scale = float64(0.5).requires_grad_()

    def walk(scale):
        return sample(lambda x_t, t: (scale * x_t).tanh(), float64([1.5, -0.5]), (999, 500, 20), Ddim(), LINEAR)

    assert torch.autograd.gradcheck(walk, scale)


class StateSizedOperations(TorchDispatchMode):
    """Names the operations whose result is as large as the state."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() >= 64:
            self.names.append(func.__name__)
        return result


@pytest.mark.parametrize(("sampler", "passes"), [(Ddim(), 2), (Ddpm(), 3), (DpmSolverPlusPlus(), 3)])
def test_a_step_costs_at_most_three_passes_over_one_buffer(sampler, passes):
    x_T, estimate, ready = torch.randn(3, 1, 64, generator=torch.Generator().manual_seed(0)).unsqueeze(1).unbind()

    class Ready(NoiseSource):
        def randn(self, *shape):
            return ready

    with StateSizedOperations() as counted:
        sample(lambda *_: estimate, x_T, linspace_grid(1000, 5), sampler, LINEAR, Ready([(0,)]))
    # The first step makes the buffer and has no history; three follow in place, the last one computes nothing.
    first = ["mul.Tensor"] + ["add_.Tensor"] * (2 if sampler.is_stochastic else 1)
    assert counted.names == first + 3 * (["mul.out"] + ["add_.Tensor"] * (passes - 1))


def test_samplers_are_found_by_name():
    assert get_sampler("ddim", 0.5) == Ddim(eta=0.5)
    assert get_sampler("ddpm").is_stochastic
    assert not get_sampler("ddim").is_stochastic
    assert get_sampler("ddim", 1.0).is_stochastic
    assert [sampler.order for sampler in SAMPLERS.values()] == [1, 1, 2]


@pytest.mark.fault("F100")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dimm",), "did you mean 'ddim'"),
        (("ddpm", 0.5), "has no eta"),
        (("ddim", 1.5), "eta is 1.5"),
        (("ddim", -0.1), "eta is -0.1"),
    ],
)
def test_unknown_samplers_and_etas_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        get_sampler(*arguments)


def test_steps_that_do_not_go_down_and_missing_noise_are_refused():
    x = torch.zeros(1, 1, 2)
    for pair in ((5, 5), (5, 6), (5, -2)):
        with pytest.raises(ValueError, match="from a noisier to a cleaner image"):
            Ddim().advance(x, x, *pair, None, LINEAR)
    with pytest.raises(ValueError, match="needs a noise source"):
        sample(lambda x_t, t: x_t, x, (5, 0), Ddpm(), LINEAR)
