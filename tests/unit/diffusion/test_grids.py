"""Timestep grids: ends, order, noise levels, and what is refused."""

import pytest
import torch

from medsegdiff_cli.diffusion.grids import linspace_grid, remap_by_snr, strided, transitions, validated_grid
from medsegdiff_cli.diffusion.schedules import CLEAN, cosine_schedule, linear_schedule
from medsegdiff_cli.errors import UsageError

TEDM_STEPS = (1, 10, 25, 50, 200, 400, 600, 800)


def test_five_of_1001_timesteps_are_the_recycling_papers():
    """O9."""
    assert linspace_grid(1001, 5) == (1000, 750, 500, 250, 0)


@pytest.mark.parametrize("steps", [2, 5, 11, 101, 1001])
def test_steps_that_divide_the_range_are_exact(steps):
    """O9: the recycling code's rule, (T - 1) % (steps - 1) = 0."""
    assert linspace_grid(1001, steps) == tuple(range(1000, -1, -1000 // (steps - 1)))


@pytest.mark.parametrize("T", [2, 5, 37, 50])
def test_every_number_of_steps_gives_a_valid_grid_with_both_ends(T):
    for steps in range(2, T + 1):
        grid = linspace_grid(T, steps)
        assert len(grid) == steps
        assert (grid[0], grid[-1]) == (T - 1, 0)
        assert validated_grid(grid, T) == grid


def test_one_step_starts_from_pure_noise():
    assert linspace_grid(1000, 1) == (999,)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(UsageError, match=f"{steps} sampling steps"):
        linspace_grid(1000, steps)


def test_any_decreasing_list_is_a_grid():
    assert validated_grid([600, 30, 7], 1000) == (600, 30, 7)
    assert validated_grid([4], 5) == (4,)


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([], "empty"),
        ([5, 5], "timestep 5 follows 5"),
        ([1, 2], "timestep 2 follows 1"),
        ([1000, 5], r"\[1000\] are out of range"),
        ([5, -1], r"\[-1\] are out of range"),
    ],
)
def test_other_lists_are_refused(timesteps, message):
    with pytest.raises(UsageError, match=message):
        validated_grid(timesteps, 1000)


def test_the_last_transition_leads_to_the_clean_image():
    assert list(transitions((9, 4, 0))) == [(9, 4), (4, 0), (0, CLEAN)]
    assert list(transitions((9,))) == [(9, CLEAN)]


@pytest.mark.parametrize("schedule", [linear_schedule(1001), cosine_schedule(1001)])
@pytest.mark.parametrize("grid", [(1000, 750, 500, 250, 0), (800, 31, 30, 2), (17,)])
def test_strided_betas_multiply_to_the_kept_levels(schedule, grid):
    """O10."""
    kept = strided(schedule, grid)
    expected = schedule.alphas_cumprod[list(grid[::-1])]
    assert torch.equal(kept.alphas_cumprod, expected)
    torch.testing.assert_close((1 - kept.betas).cumprod(0), expected, rtol=1e-12, atol=1e-16)


def test_keeping_every_timestep_changes_nothing():
    schedule = linear_schedule(100)
    assert torch.equal(strided(schedule, linspace_grid(100, 100)).betas, schedule.betas)


def test_remapping_to_the_same_schedule_changes_nothing():
    assert remap_by_snr(TEDM_STEPS, cosine_schedule(), cosine_schedule()) == TEDM_STEPS


def test_remapped_steps_have_the_nearest_noise_level():
    cosine, linear = cosine_schedule(), linear_schedule()
    steps = remap_by_snr(TEDM_STEPS, cosine, linear)
    assert steps == (0, 4, 11, 24, 99, 204, 324, 482)
    for t, t_linear in zip(TEDM_STEPS, steps, strict=True):
        wanted, found = cosine.log_snr[t], linear.log_snr
        for neighbour in {max(t_linear - 1, 0), t_linear + 1}:
            assert abs(found[t_linear] - wanted) <= abs(found[neighbour] - wanted)


def test_remapping_there_and_back_stays_within_the_coarser_schedules_spacing():
    cosine, linear = cosine_schedule(), linear_schedule()
    back = remap_by_snr(remap_by_snr(TEDM_STEPS, cosine, linear), linear, cosine)
    assert all(abs(t - again) <= 1 for t, again in zip(TEDM_STEPS, back, strict=True))


def test_levels_beyond_the_target_go_to_its_ends_in_the_given_order():
    # The linear schedule's first index is noisier than the cosine's, its last one cleaner.
    assert remap_by_snr([999, 0, 0], cosine_schedule(), linear_schedule()) == (999, 0, 0)
    with pytest.raises(UsageError, match=r"\[1000\] are out of range"):
        remap_by_snr([3, 1000], cosine_schedule(), linear_schedule())
