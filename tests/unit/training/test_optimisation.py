"""Learning rate, optimiser state, clipping and averages against torch's own and against sums by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from toy_training import settings

from medsegdiff_cli.errors import IntegrityError
from medsegdiff_cli.training.ema import Ema
from medsegdiff_cli.training.optimisation import (
    build_optimiser,
    gradient_norm,
    learning_rate,
    load_optimiser_tensors,
    optimiser_tensors,
)

Scheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


@pytest.mark.parametrize(
    ("schedule", "oracle"),
    [
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=50)),
        ("poly", lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total_iters=50, power=0.9)),
        ("constant", lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
    ],
)
def test_schedules_equal_torchs_schedulers(schedule: str, oracle: Scheduler) -> None:
    chosen = settings(50, schedule=schedule, warmup_steps=0, learning_rate=0.3)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = oracle(optimiser)
    for step in range(50):
        assert learning_rate(step, chosen) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimiser.step()
        scheduler.step()


def test_warm_up_is_linear_and_then_meets_the_schedule() -> None:
    chosen = settings(100, warmup_steps=4, learning_rate=1.0, schedule="cosine")
    assert [learning_rate(step, chosen) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    # Half way through the 96 steps after the warm-up the cosine is at a half.
    assert learning_rate(4 + 48, chosen) == pytest.approx(0.5)
    assert learning_rate(100, chosen) == pytest.approx(0.0)


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_the_rate_falls_to_its_floor(schedule: str) -> None:
    """A floor shifts and shrinks the schedule: halfway down the cosine is the mean of both ends."""
    plain = settings(104, warmup_steps=4, learning_rate=8e-4, schedule=schedule)
    floored = settings(104, warmup_steps=4, learning_rate=8e-4, final_learning_rate=5e-5, schedule=schedule)
    assert [learning_rate(step, floored) for step in range(5)] == [learning_rate(step, plain) for step in range(5)]
    for step in range(4, 110):
        expected = 5e-5 + (8e-4 - 5e-5) / 8e-4 * learning_rate(step, plain)
        assert learning_rate(step, floored) == pytest.approx(expected, rel=1e-9)
    assert learning_rate(104, floored) == pytest.approx(5e-5)
    if schedule == "cosine":
        assert learning_rate(54, floored) == pytest.approx((8e-4 + 5e-5) / 2)


def test_fewer_steps_of_decay_end_at_the_floor_and_stay_there() -> None:
    """Fu et al. 2023, Table 7: the cosine ends at a step of its own, whatever the length of training."""
    chosen = settings(
        300, warmup_steps=100, decay_steps=50, learning_rate=1.0, final_learning_rate=0.1, schedule="cosine"
    )
    assert learning_rate(100, chosen) == 1.0
    assert learning_rate(125, chosen) == pytest.approx(0.55)
    assert [learning_rate(step, chosen) for step in (150, 151, 299, 1000)] == pytest.approx([0.1] * 4)
    # More than are left: the schedule ends with the training, as without.
    longer, without = (settings(300, warmup_steps=100, decay_steps=n) for n in (10_000, None))
    assert [learning_rate(s, longer) for s in range(300)] == [learning_rate(s, without) for s in range(300)]


def test_a_constant_rate_has_no_floor_to_fall_to() -> None:
    chosen = settings(50, warmup_steps=0, schedule="constant", learning_rate=0.3, final_learning_rate=0.1)
    assert {learning_rate(step, chosen) for step in range(60)} == {0.3}


def test_warm_up_takes_at_most_half_of_a_short_stage() -> None:
    chosen = settings(10, warmup_steps=1000, learning_rate=1.0)
    assert max(learning_rate(step, chosen) for step in range(10)) == learning_rate(5, chosen) == 1.0


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_stages_have_a_positive_learning_rate(steps: int) -> None:
    assert all(learning_rate(step, settings(steps, warmup_steps=100)) > 0 for step in range(steps))


def layers() -> dict[str, nn.Parameter]:
    torch.manual_seed(1)
    return dict(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(3, 2)).named_parameters())


def take_steps(parameters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        torch.manual_seed(number)
        for parameter in parameters.values():
            parameter.grad = torch.randn_like(parameter)
        optimiser.step()


@pytest.mark.parametrize("kind", [{"optimiser": "adamw"}, {"optimiser": "adam"}, {"optimiser": "sgd"}])
def test_an_optimiser_put_back_from_its_tensors_goes_on_exactly(kind: dict[str, Any]) -> None:
    chosen = settings(10, **kind)
    straight, resumed = layers(), layers()
    optimiser = build_optimiser(straight, chosen)
    take_steps(straight, optimiser, range(3))
    tensors = {name: tensor.clone() for name, tensor in optimiser_tensors(optimiser, straight).items()}
    for name, parameter in resumed.items():
        parameter.data.copy_(straight[name])
    second = build_optimiser(resumed, chosen)
    load_optimiser_tensors(second, resumed, tensors)
    take_steps(straight, optimiser, range(3, 6))
    take_steps(resumed, second, range(3, 6))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_optimiser_state_of_an_unknown_parameter_is_refused() -> None:
    parameters = layers()
    optimiser = build_optimiser(parameters, settings())
    with pytest.raises(IntegrityError, match=r"'other\.weight', which this stage does not train"):
        load_optimiser_tensors(optimiser, parameters, {"other.weight.exp_avg": torch.zeros(1)})


def test_the_gradient_norm_is_measured_before_clipping() -> None:
    parameters = {
        "a": nn.Parameter(torch.zeros(2)),
        "b": nn.Parameter(torch.zeros(1)),
        "c": nn.Parameter(torch.ones(1)),
    }
    parameters["a"].grad, parameters["b"].grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    assert float(gradient_norm(parameters, 3.5)) == 7.0  # sqrt(4 + 9 + 36)
    torch.testing.assert_close(parameters["a"].grad, torch.tensor([1.0, 1.5]))
    torch.testing.assert_close(parameters["b"].grad, torch.tensor([3.0]))
    assert parameters["c"].grad is None
    assert float(gradient_norm(parameters, None)) == pytest.approx(3.5)


def test_averages_follow_the_recursion_by_hand() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    ema = Ema({"p": parameter}, decay=0.25)
    expected = 1.0
    for n, value in enumerate((2.0, -1.0, 5.0, 0.5)):
        parameter.data.fill_(value)
        ema.update(n)
        decay = min(0.25, (1 + n) / (10 + n))  # 1/10, 2/11, then 1/4 = 3/12, then 1/4 < 4/13
        expected = decay * expected + (1 - decay) * value
        assert float(ema.averages["p"]) == pytest.approx(expected, rel=1e-6)


def test_averages_are_swapped_in_and_out_exactly_even_when_the_block_fails() -> None:
    parameter = nn.Parameter(torch.tensor([0.1, 0.2]))
    ema = Ema({"p": parameter}, decay=0.9)
    parameter.data.copy_(torch.tensor([math.pi, math.e]))
    ema.update(50)
    raw, averaged = parameter.detach().clone(), ema.averages["p"].clone()

    def fail_inside() -> None:
        with ema.applied():
            assert torch.equal(parameter, averaged)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(parameter, raw)
    assert torch.equal(ema.averages["p"], averaged)


def test_averages_of_other_parameters_are_refused() -> None:
    ema = Ema({"p": nn.Parameter(torch.zeros(1))}, decay=0.9)
    with pytest.raises(IntegrityError, match="another set of parameters"):
        ema.load({"q": torch.zeros(1)})
