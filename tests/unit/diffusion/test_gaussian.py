"""The Gaussian process: Bayes' rule, marginals, conversions, in float64 against closed forms."""

import pytest
import torch

from medsegdiff_cli.diffusion.gaussian import (
    p_step,
    predict_epsilon,
    predict_x_0,
    q_posterior,
    q_sample,
    q_transition,
    training_target,
)
from medsegdiff_cli.diffusion.schedules import cosine_schedule, linear_schedule

SCHEDULES = {"linear": linear_schedule(1000), "cosine": cosine_schedule(1000), "short": linear_schedule(5, scaled=True)}
PARAMETERISATIONS = ["x_0", "epsilon", "v"]


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


def every_t(schedule):
    return torch.arange(schedule.T)


def column(schedule, value):
    """One number for each timestep, (T, 1) float64."""
    return torch.full((schedule.T, 1), value, dtype=torch.float64)


def posterior_terms(schedule, t_next=None):
    """Factors of x_0 and of x_t, and the variance: the mean is linear in both."""
    t, zero, one = every_t(schedule), column(schedule, 0.0), column(schedule, 1.0)
    of_x_0, variance = q_posterior(one, zero, t, schedule, t_next)
    of_x_t, _ = q_posterior(zero, one, t, schedule, t_next)
    return of_x_0[:, 0], of_x_t[:, 0], variance[:, 0]


def images(batch, n_dims, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 2, *(3, 4, 5)[:n_dims])
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def assert_close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0)


def test_posterior_precision_is_the_sum_of_both_precisions(schedule):
    """O1: x_{t-1} is known through x_t with precision α/β and through x_0 with 1 / (1 - ᾱ_{t-1})."""
    _, _, variance = posterior_terms(schedule)
    precision = schedule.alphas / schedule.betas + 1 / (1 - schedule.alphas_cumprod_previous)
    assert_close(variance[1:], 1 / precision[1:], 1e-12)


def test_posterior_mean_of_a_noiseless_image_is_the_noiseless_image(schedule):
    """O2."""
    of_x_0, of_x_t, _ = posterior_terms(schedule)
    expected = schedule.alphas_cumprod_previous.sqrt()
    assert_close(of_x_0 + of_x_t * schedule.sqrt_alphas_cumprod, expected, 1e-12)


def test_posterior_keeps_the_marginal_variance(schedule):
    """O3."""
    _, of_x_t, variance = posterior_terms(schedule)
    actual = of_x_t**2 * (1 - schedule.alphas_cumprod) + variance
    torch.testing.assert_close(actual, 1 - schedule.alphas_cumprod_previous, rtol=0, atol=1e-15)


def test_the_first_index_leads_to_x_0_exactly(schedule):
    """O4."""
    of_x_0, of_x_t, variance = posterior_terms(schedule)
    assert (of_x_0[0], of_x_t[0], variance[0]) == (1, 0, 0)
    x_0, noise = images(3, 2)
    t = torch.zeros(3, dtype=torch.int64)
    assert torch.equal(p_step(x_0, 7 * noise, t, noise, schedule), x_0)


def test_strided_posteriors_keep_mean_and_marginal_variance(schedule):
    """O2 and O3 from every t to about a third of it."""
    t_next = every_t(schedule) // 3 - 1
    then = torch.where(t_next < 0, 1.0, schedule.alphas_cumprod[t_next])
    of_x_0, of_x_t, variance = posterior_terms(schedule, t_next)
    assert_close(of_x_0 + of_x_t * schedule.sqrt_alphas_cumprod, then.sqrt(), 1e-12)
    marginal = of_x_t**2 * (1 - schedule.alphas_cumprod) + variance
    torch.testing.assert_close(marginal, 1 - then, rtol=0, atol=1e-15)


def test_single_steps_add_up_to_the_closed_form(schedule):
    """O11: mean and variance after t + 1 transitions from x_0 = 1."""
    mean, variance = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    means, variances = [], []
    for t in range(schedule.T):
        step = torch.tensor([t])
        factor, _ = q_transition(torch.ones_like(mean), step, schedule)
        mean, added = q_transition(mean, step, schedule)
        variance = factor**2 * variance + added
        means.append(mean.item())
        variances.append(variance.item())
    assert_close(torch.tensor(means, dtype=torch.float64), schedule.sqrt_alphas_cumprod, 1e-12)
    assert_close(torch.tensor(variances, dtype=torch.float64), 1 - schedule.alphas_cumprod, 1e-12)


@pytest.mark.parametrize("n_dims", [2, 3])
def test_each_item_is_noised_to_its_own_timestep(schedule, n_dims):
    x_0, noise = images(3, n_dims)
    t = torch.tensor([0, schedule.T // 2, schedule.T - 1])
    x_t = q_sample(x_0, t, noise, schedule)
    for item, step in enumerate(t.tolist()):
        level = schedule.alphas_cumprod[step].item()
        torch.testing.assert_close(x_t[item], level**0.5 * x_0[item] + (1 - level) ** 0.5 * noise[item])


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_the_right_output_gives_image_and_noise_back(schedule, parameterisation, n_dims):
    """O12: from (x_0, ε) to any parameterisation and back."""
    x_0, noise = images(4, n_dims)
    t = torch.tensor([0, 1, schedule.T // 2, schedule.T - 2])
    x_t = q_sample(x_0, t, noise, schedule)
    output = training_target(x_0, noise, t, schedule, parameterisation)
    assert output.shape == x_0.shape
    back = predict_x_0(output, x_t, t, schedule, parameterisation)
    torch.testing.assert_close(back, x_0, rtol=1e-10, atol=1e-10)
    back = predict_epsilon(output, x_t, t, schedule, parameterisation)
    torch.testing.assert_close(back, noise, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("source", PARAMETERISATIONS)
@pytest.mark.parametrize("target", PARAMETERISATIONS)
def test_any_output_turns_into_any_other(schedule, source, target):
    """O12, for outputs of a network that is wrong: x_0 and ε of one output still explain the same x_t."""
    output, x_t = images(3, 2)
    t = torch.tensor([0, schedule.T // 3, schedule.T // 2])

    def both(value, parameterisation):
        given = (value, x_t, t, schedule, parameterisation)
        return predict_x_0(*given), predict_epsilon(*given)

    x_0, epsilon = both(output, source)
    torch.testing.assert_close(q_sample(x_0, t, epsilon, schedule), x_t, rtol=1e-11, atol=1e-11)
    x_0_again, epsilon_again = both(training_target(x_0, epsilon, t, schedule, target), target)
    torch.testing.assert_close(x_0_again, x_0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(epsilon_again, epsilon, rtol=1e-10, atol=1e-10)


def test_errors_of_image_and_noise_differ_by_the_snr(schedule):
    """O12: SNR · |x_0 - x̂_0|² = |ε - ε̂|²."""
    x_0, noise = images(4, 2)
    t = torch.tensor([0, 1, schedule.T // 2, schedule.T - 1])
    x_t = q_sample(x_0, t, noise, schedule)
    guess = images(4, 2, seed=1)[0]
    guessed_noise = predict_epsilon(guess, x_t, t, schedule, "x_0")
    of_image = schedule.snr[t] * (x_0 - guess).square().sum(dim=(1, 2, 3))
    of_noise = (noise - guessed_noise).square().sum(dim=(1, 2, 3))
    assert_close(of_image, of_noise, 1e-10)


def test_v_is_the_velocity_on_the_circle(schedule):
    """With x_t = cos φ x_0 + sin φ ε, v = dx_t / dφ."""
    x_0, noise = column(schedule, 1.3), column(schedule, -0.4)
    angle = torch.acos(schedule.sqrt_alphas_cumprod)[:, None].requires_grad_()
    x_t = angle.cos() * x_0 + angle.sin() * noise
    (velocity,) = torch.autograd.grad(x_t.sum(), angle)
    v = training_target(x_0, noise, every_t(schedule), schedule, "v")
    torch.testing.assert_close(v, velocity, rtol=1e-10, atol=1e-10)


def test_a_posterior_draw_has_the_posteriors_moments():
    schedule = linear_schedule(10, scaled=True)
    x_0, x_t = images(2, 3)
    t, t_next = torch.tensor([9, 4]), torch.tensor([2, -1])
    mean, variance = q_posterior(x_0, x_t, t, schedule, t_next)
    assert variance.shape == (2, 1, 1, 1, 1)
    assert torch.equal(p_step(x_0, x_t, t, torch.zeros_like(x_t), schedule, t_next), mean)
    shifted = p_step(x_0, x_t, t, torch.ones_like(x_t), schedule, t_next)
    torch.testing.assert_close(shifted - mean, variance.sqrt().expand_as(mean))
    assert torch.equal(shifted[1], x_0[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_images_are_noised_in_float32(dtype):
    schedule = SCHEDULES["linear"]
    x_0 = torch.ones(2, 1, 2, 2, dtype=dtype)
    x_t = q_sample(x_0, torch.tensor([3, 700]), torch.zeros_like(x_0), schedule)
    assert x_t.dtype == torch.promote_types(dtype, torch.float32)
    expected = schedule.sqrt_alphas_cumprod[[3, 700]].to(x_t.dtype)
    assert torch.equal(x_t[:, 0, 0, 0], expected)


def test_timesteps_without_an_entry_are_refused():
    x, schedule = torch.zeros(1, 1, 2, 2), SCHEDULES["short"]
    with pytest.raises(IndexError, match="out of range"):
        q_sample(x, torch.tensor([-1]), x, schedule)
    with pytest.raises(IndexError):
        q_sample(x, torch.tensor([5]), x, schedule)
    for t, t_next in ((2, 2), (2, 3), (2, -2)):
        with pytest.raises(AssertionError, match="leads to a cleaner image"):
            q_posterior(x, x, torch.tensor([t]), schedule, torch.tensor([t_next]))
