"""Noise schedules: valid at every length, derived from their papers' formulas, refused when they cannot work."""

import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medsegdiff_cli.diffusion.schedules import CLEAN, Schedule, ScheduleSettings, cosine_schedule, linear_schedule
from medsegdiff_cli.errors import UsageError

SCHEDULES = {
    "linear": linear_schedule,
    "scaled linear": lambda T: linear_schedule(T, scaled=True),
    "cosine": cosine_schedule,
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [2, 5, 50, 1000, 1001])
def test_every_schedule_falls_strictly_within_0_and_1(name, T):
    schedule = SCHEDULES[name](T)
    levels = schedule.alphas_cumprod
    assert levels.dtype == torch.float64
    assert levels.shape == (T,)
    assert ((levels > 0) & (levels < 1)).all()
    assert (levels.diff() < 0).all()
    assert (schedule.log_snr.diff() < 0).all()
    for table in (schedule.betas, schedule.alphas, schedule.snr, schedule.log_snr):
        assert torch.isfinite(table).all()
    # Nothing visible is lost at the cleanest step of a usable length, nothing visible is left at the noisiest.
    if T >= 1000:
        assert levels[0] > 0.999
        assert levels[-1] < 1e-4


def test_linear_betas_are_evenly_spaced():
    schedule = linear_schedule(3, 0.1, 0.3)
    expected = torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], dtype=torch.float64)
    torch.testing.assert_close(schedule.alphas_cumprod, expected, rtol=1e-15, atol=0)
    torch.testing.assert_close(schedule.betas, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), rtol=1e-14, atol=0)


def test_scaled_linear_betas_grow_as_the_steps_get_fewer():
    # 1000 / 500 = 2 doubles them; 1000 / 5 = 200 would give a last one of 4, which is capped.
    assert linear_schedule(500, scaled=True).betas[[0, -1]].tolist() == pytest.approx([2e-4, 4e-2])
    assert linear_schedule(5, scaled=True).betas[-1].item() == pytest.approx(0.999)
    assert torch.equal(linear_schedule(1000, scaled=True).alphas_cumprod, linear_schedule(1000).alphas_cumprod)


def test_cosine_levels_equal_the_closed_form_until_the_cap():
    def f(time):
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    levels = cosine_schedule(1000).alphas_cumprod
    for t in (0, 1, 10, 500, 990, 998):
        assert levels[t].item() == pytest.approx(f((t + 1) / 1000) / f(0), rel=1e-10)
    # The last beta would be 1.
    assert levels[999] / levels[998] == pytest.approx(1 - 0.999)


def test_noise_levels_of_published_steps():
    cosine = cosine_schedule(1000).sqrt_one_minus_alphas_cumprod
    assert cosine[[1, 10, 25]].tolist() == pytest.approx([0.009, 0.027, 0.052], abs=6e-4)
    linear = linear_schedule(1000).sqrt_one_minus_alphas_cumprod
    assert linear[[0, 50]].tolist() == pytest.approx([0.010, 0.173], abs=5e-4)
    levels = linear_schedule(1001).alphas_cumprod
    assert levels[[0, 250, 500, 750]].tolist() == pytest.approx([0.9999, 0.5218, 0.0780, 0.0033], abs=5e-5)
    assert levels[1000].item() == pytest.approx(4.0e-5, abs=5e-7)


def test_tables_agree_with_each_other():
    schedule = linear_schedule(50)
    levels = schedule.alphas_cumprod
    torch.testing.assert_close(schedule.alphas + schedule.betas, torch.ones_like(levels), rtol=1e-15, atol=0)
    torch.testing.assert_close(schedule.alphas.cumprod(0), levels, rtol=1e-14, atol=0)
    torch.testing.assert_close(schedule.log_snr.exp(), schedule.snr, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        schedule.sqrt_alphas_cumprod**2 + schedule.sqrt_one_minus_alphas_cumprod**2, torch.ones_like(levels)
    )
    assert schedule.alphas_cumprod_previous[0] == 1
    assert torch.equal(schedule.alphas_cumprod_previous[1:], levels[:-1])


def test_the_level_of_the_clean_image_is_1():
    schedule = linear_schedule(5)
    assert schedule.level(CLEAN) == 1.0
    assert schedule.level(4) == schedule.alphas_cumprod[4].item()
    for t in (5, -2):
        with pytest.raises(IndexError, match=f"timestep {t} of a schedule with 5"):
            schedule.level(t)


def test_a_description_survives_json():
    schedule = linear_schedule(7, 0.01, 0.2, scaled=False)
    text = json.dumps(schedule.settings.model_dump())
    again = ScheduleSettings.model_validate_json(text).build()
    assert again.settings == schedule.settings
    assert torch.equal(again.alphas_cumprod, schedule.alphas_cumprod)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "linear", "beta": 0.1}, "beta"),
        ({"name": "quadratic"}, "name"),
        ({"T": 1}, "T"),
        ({"name": "linear", "beta_first": 0.0}, "beta_first"),
        ({"name": "cosine", "beta_last": 0.1}, "beta_last: no setting of the cosine schedule"),
        ({"name": "linear", "s": 0.1}, "s: no setting of the linear schedule"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        ScheduleSettings(**settings)


@pytest.mark.parametrize(
    "levels", [[], [0.5, 0.5], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0], [0.5, float("nan")], [float("nan"), 0.5], [0.5, -1]]
)
def test_invalid_tables_are_refused(levels):
    with pytest.raises(UsageError, match="does not fall from 1 to 0"):
        Schedule(np.array(levels))


def test_a_signal_that_underflows_is_refused_with_its_settings():
    with pytest.raises(UsageError, match="T=100000"):
        linear_schedule(100_000)
