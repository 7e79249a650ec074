"""The same numbers as diffusers' schedulers, in float64 where their tables can be set to it."""

import re

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from medsegdiff_cli.diffusion import samplers
from medsegdiff_cli.diffusion.gaussian import predict_x_0, q_sample, training_target
from medsegdiff_cli.diffusion.grids import linspace_grid, transitions, validated_grid
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.diffusion.samplers import (
    CONFORMING,
    SAMPLERS,
    Ddim,
    Ddpm,
    DpmSolverPlusPlus,
    History,
    get_sampler,
    sample,
)
from medsegdiff_cli.diffusion.schedules import CLEAN, cosine_schedule, linear_schedule
from medsegdiff_cli.errors import UsageError

LINEAR = {T: linear_schedule(T) for T in (1000, 1001)}
SHAPE = (2, 3, 4)


def images(count, seed=0):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_float64(scheduler, schedule):
    """Replace the scheduler's float32 tables."""
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    scheduler.betas, scheduler.alphas = schedule.betas, schedule.alphas
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return scheduler


def linear_scheduler(kind, T, **settings):
    built = kind(num_train_timesteps=T, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **settings)
    return in_float64(built, LINEAR[T])


@pytest.mark.parametrize(
    ("schedule", "name"),
    [(linear_schedule(1000), "linear"), (cosine_schedule(1000), "squaredcos_cap_v2"), (linear_schedule(50), "linear")],
)
def test_schedules_equal_diffusers_in_single_precision(schedule, name):
    oracle = DDPMScheduler(num_train_timesteps=schedule.T, beta_start=1e-4, beta_end=0.02, beta_schedule=name)
    torch.testing.assert_close(schedule.betas.float(), oracle.betas, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(schedule.alphas_cumprod.float(), oracle.alphas_cumprod, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("T", [2, 50, 1000, 1001])
def test_linspace_grids_equal_diffusers(T):
    """O9."""
    for steps in {2, 5, 11, 37, 50, 999, T} & set(range(2, T + 1)):
        oracle = DDPMScheduler(num_train_timesteps=T, timestep_spacing="linspace")
        oracle.set_timesteps(steps)
        assert list(linspace_grid(T, steps)) == oracle.timesteps.tolist()


def test_noising_and_velocity_equal_diffusers():
    schedule, t = LINEAR[1000], torch.tensor([0, 700])
    oracle = linear_scheduler(DDPMScheduler, 1000)
    x_0, noise = images(2)
    torch.testing.assert_close(q_sample(x_0, t, noise, schedule), oracle.add_noise(x_0, noise, t), rtol=0, atol=1e-15)
    velocity = training_target(x_0, noise, t, schedule, "v")
    torch.testing.assert_close(velocity, oracle.get_velocity(x_0, noise, t), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("ours", "theirs"), [("x_0", "sample"), ("epsilon", "epsilon"), ("v", "v_prediction")])
@pytest.mark.parametrize("steps", [1001, 11, 5, 2])
def test_ddpm_equals_diffusers(ours, theirs, steps):
    """O6: each step from the same state."""
    oracle = linear_scheduler(
        DDPMScheduler, 1001, prediction_type=theirs, variance_type="fixed_small", clip_sample=False,
        timestep_spacing="linspace",
    )  # fmt: skip
    oracle.set_timesteps(steps)
    x_t, output = images(2)
    for t, t_next in transitions(linspace_grid(1001, steps)):
        expected = oracle.step(output, t, x_t, generator=torch.Generator().manual_seed(t)).prev_sample
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        x_0 = predict_x_0(output, x_t, torch.full((2,), t), LINEAR[1001], ours)
        actual = Ddpm().advance(x_t, x_0, t, t_next, noise, LINEAR[1001])
        torch.testing.assert_close(actual, expected, rtol=1e-15, atol=2e-15)
        x_t = (x_t + noise) / 2


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("T", "steps", "spacing"),
    [(1001, 5, "linspace"), (1001, 51, "linspace"), (1000, 5, "leading"), (1000, 50, "leading"), (1000, 5, "trailing")],
)
def test_ddim_equals_diffusers(eta, T, steps, spacing):
    """O7: each step from the same state."""
    oracle = linear_scheduler(
        DDIMScheduler, T, prediction_type="sample", clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing
    )
    oracle.set_timesteps(steps)
    grid = validated_grid(oracle.timesteps.tolist(), T)
    if spacing == "linspace":
        assert grid == linspace_grid(T, steps)
        oracle.num_inference_steps = steps - 1  # diffusers walks T // n down, which misses its own linspace grid
    x_t, x_0, noise = images(3)
    for t, t_next in transitions(grid):
        result = oracle.step(x_0, t, x_t, eta=eta, variance_noise=noise if eta else None)
        actual = Ddim(eta=eta).advance(x_t, x_0, t, t_next, noise, LINEAR[T])
        torch.testing.assert_close(actual, result.prev_sample, rtol=1e-15, atol=2e-15)
        x_t = (x_t + actual) / 2


def dpm_solver(grid, schedule, kind="sample"):
    oracle = DPMSolverMultistepScheduler(
        num_train_timesteps=schedule.T, beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
        prediction_type=kind, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint",
        final_sigmas_type="zero",
    )  # fmt: skip
    oracle.set_timesteps(timesteps=list(grid))
    assert oracle.timesteps.tolist() == list(grid)
    sigmas = [(1 / schedule.level(t) - 1) ** 0.5 for t in grid]
    oracle.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float64)
    return oracle


def network(x_t, t):
    return torch.tanh(2 * x_t + t.view(-1, 1, 1) / 1000)


@pytest.mark.parametrize("grid", [linspace_grid(1000, 5), linspace_grid(1000, 20), (999, 800, 799, 20, 3), (500, 0)])
def test_dpm_solver_steps_equal_diffusers(grid):
    """Single updates in float64; diffusers' `step` would round the state to float32."""
    schedule, oracle, history = LINEAR[1000], dpm_solver(grid, LINEAR[1000]), History()
    x_t, before = images(1)[0], None
    for index, (t, t_next) in enumerate(transitions(grid)):
        oracle._step_index = index
        x_0 = network(x_t, torch.full((2,), t))
        if before is None or t_next == CLEAN:
            expected = oracle.dpm_solver_first_order_update(x_0, sample=x_t)
        else:
            expected = oracle.multistep_dpm_solver_second_order_update([before, x_0], sample=x_t)
        before, x_t = x_0, DpmSolverPlusPlus().advance(x_t, x_0, t, t_next, None, schedule, history=history)
        torch.testing.assert_close(x_t, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_whole_dpm_solver_walks_equal_diffusers_in_single_precision(steps):
    grid, x_T = linspace_grid(1000, steps), images(1)[0].float()
    oracle, expected = dpm_solver(grid, LINEAR[1000]), x_T
    for t in grid:
        expected = oracle.step(network(expected, torch.full((2,), t)), t, expected).prev_sample
    actual = sample(network, x_T, grid, DpmSolverPlusPlus(), LINEAR[1000])
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-5)


def test_whole_ddpm_walks_equal_diffusers():
    """With noise from the item's own stream."""
    oracle = linear_scheduler(
        DDPMScheduler, 1001, prediction_type="sample", clip_sample=False, timestep_spacing="linspace"
    )
    oracle.set_timesteps(11)
    x_T, keys = images(1)[0], [("a",), ("b",)]
    stream, expected = NoiseSource(keys), x_T
    for t in oracle.timesteps.tolist():
        x_0 = network(expected, torch.full((2,), t))
        mean = oracle.step(x_0, t, expected, generator=torch.Generator().manual_seed(0)).prev_sample
        if t > 0:
            variance = oracle._get_variance(t)
            theirs = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            mean = mean + variance**0.5 * (stream.randn(*SHAPE[1:]) - theirs)
        expected = mean
    actual = sample(network, x_T, linspace_grid(1001, 11), Ddpm(), LINEAR[1001], NoiseSource(keys))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "kind"), [("ddim", DDIMScheduler), ("ddpm", DDPMScheduler)])
def test_walks_whose_estimates_are_kept_within_limits_equal_diffusers_down_the_cosine(name, kind):
    """At the cosine's last index an estimate from predicted noise is off by thousands: limits decide what comes out."""
    schedule, limit, steps, keys = cosine_schedule(1001), 2.0, 11, [("a",), ("b",)]
    settings = {"variance_type": "fixed_small"} if kind is DDPMScheduler else {"set_alpha_to_one": True}
    oracle = in_float64(
        kind(num_train_timesteps=1001, beta_schedule="squaredcos_cap_v2", clip_sample=True, clip_sample_range=limit,
             timestep_spacing="linspace", **settings),
        schedule,
    )  # fmt: skip
    oracle.set_timesteps(steps)
    if kind is DDIMScheduler:
        oracle.num_inference_steps = steps - 1  # as above
    n_kept, x_T = 0, images(1)[0]

    def denoise(x_t, t):
        nonlocal n_kept
        estimate = predict_x_0(network(x_t, t), x_t, t, schedule, "epsilon")
        n_kept += int((estimate.abs() > limit).sum())
        return estimate.clamp(-limit, limit)

    actual = sample(
        denoise, x_T, linspace_grid(1001, steps), get_sampler(name, 0.0, "epsilon"), schedule, NoiseSource(keys)
    )
    expected, noise = x_T, NoiseSource(keys)
    for t in oracle.timesteps.tolist():
        output = network(expected, torch.full((2,), t))
        if kind is DDIMScheduler:
            expected = oracle.step(output, t, expected, use_clipped_model_output=True).prev_sample
            continue
        expected = oracle.step(output, t, expected, generator=torch.Generator().manual_seed(0)).prev_sample
        if t > 0:
            theirs = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            expected = expected + oracle._get_variance(t) ** 0.5 * (noise.randn(*SHAPE[1:]) - theirs)
    assert n_kept > 0, "the limits were never met"
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


# --- what `get_sampler` grants: whole walks of every (parameterisation, sampler), the network being asked at each state

THEIRS = {"x_0": "sample", "epsilon": "epsilon", "v": "v_prediction"}


def ddpm_walk(kind, x_t, grid, noise):
    oracle = linear_scheduler(
        DDPMScheduler, 1001, prediction_type=kind, clip_sample=False, variance_type="fixed_small",
        timestep_spacing="linspace",
    )  # fmt: skip
    oracle.set_timesteps(len(grid))
    for t in grid:
        mean = oracle.step(network(x_t, torch.full((2,), t)), t, x_t, generator=torch.Generator().manual_seed(0))
        x_t = mean.prev_sample
        if t > 0:
            theirs = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            x_t = x_t + oracle._get_variance(t) ** 0.5 * (noise.randn(*SHAPE[1:]) - theirs)
    return x_t


def ddim_walk(kind, x_t, grid, noise):
    oracle = linear_scheduler(
        DDIMScheduler, 1001, prediction_type=kind, clip_sample=False, set_alpha_to_one=True, timestep_spacing="linspace"
    )
    oracle.set_timesteps(len(grid))
    oracle.num_inference_steps = len(grid) - 1  # as above
    for t in grid:
        x_t = oracle.step(network(x_t, torch.full((2,), t)), t, x_t).prev_sample
    return x_t


def dpm_solver_walk(kind, x_t, grid, noise):
    oracle, before = dpm_solver(grid, LINEAR[1001], kind), None
    for index, t in enumerate(grid):
        oracle._step_index = index
        x_0 = oracle.convert_model_output(network(x_t, torch.full((2,), t)), sample=x_t)
        if before is None or index == len(grid) - 1:
            x_t = oracle.dpm_solver_first_order_update(x_0, sample=x_t)
        else:
            x_t = oracle.multistep_dpm_solver_second_order_update([before, x_0], sample=x_t)
        before = x_0
    return x_t


WALKS = {"ddpm": ddpm_walk, "ddim": ddim_walk, "dpm++": dpm_solver_walk}


@pytest.mark.parametrize("steps", [5, 11])
@pytest.mark.parametrize(("parameterisation", "name"), sorted(CONFORMING))
def test_every_granted_pair_walks_as_diffusers_does(parameterisation, name, steps):
    """A pair that is granted without an entry in `THEIRS` or `WALKS` fails here."""
    sampler, x_T, grid = get_sampler(name, 0.0, parameterisation), images(1)[0], linspace_grid(1001, steps)

    def denoise(x_t, t):
        return predict_x_0(network(x_t, t), x_t, t, LINEAR[1001], parameterisation)

    keys = [("a",), ("b",)]
    expected = WALKS[name](THEIRS[parameterisation], x_T, grid, NoiseSource(keys))
    actual = sample(denoise, x_T, grid, sampler, LINEAR[1001], NoiseSource(keys))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("parameterisation", "name"), sorted(CONFORMING))
def test_a_pair_that_is_not_granted_refuses_to_run(parameterisation, name, monkeypatch):
    monkeypatch.setattr(samplers, "CONFORMING", CONFORMING - {(parameterisation, name)})
    with pytest.raises(UsageError, match=f"'{re.escape(name)}' is not proved for networks that predict") as error:
        get_sampler(name, 0.0, parameterisation)
    assert error.value.exit_code == 2
    assert all(other in str(error.value) for other in set(SAMPLERS) - {name}), "it says which are"


def test_a_new_sampler_is_not_granted_before_it_is_compared(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "new", Ddim())
    with pytest.raises(UsageError, match="not proved"):
        get_sampler("new")


def test_diffusers_leading_grid_would_never_see_pure_noise():
    """Why `linspace` is the only spacing here: a grid without T-1 breaks methods that train from it."""
    oracle = DDPMScheduler(num_train_timesteps=1001, timestep_spacing="leading")
    oracle.set_timesteps(5)
    assert oracle.timesteps.tolist() == [800, 600, 400, 200, 0]
    assert linspace_grid(1001, 5)[0] == 1000
