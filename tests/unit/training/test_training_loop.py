"""What the loop trains, selects, writes and refuses."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_training import CPU, accuracy, batches, settings, toy, train

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.checkpoint import read_checkpoint
from medsegdiff_cli.errors import MsdError
from medsegdiff_cli.methods.base import Method, Stage
from medsegdiff_cli.training.outcome import ValidationScore

pytestmark = pytest.mark.usefixtures("no_pictures")


def lines_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_toy_learns_its_rule(tmp_path: Path, n_dims: int, precision: str) -> None:
    method = toy(n_dims)
    assert accuracy(method.eval()).value < 0.8
    result = train(method, tmp_path, settings(120, learning_rate=3e-2, validate_every_steps=40), precision=precision)
    assert result.best_score is not None
    assert result.best_score > 0.95
    assert accuracy(method).value > 0.95  # the method comes back with its prediction weights, in eval mode


def test_channels_last_trains_to_the_same_weights_within_rounding(tmp_path: Path) -> None:
    first, second = toy(), toy()
    train(first, tmp_path / "a", settings(5, optimiser="sgd"))
    train(second, tmp_path / "b", settings(5, optimiser="sgd"), channels_last=True)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_sgd_without_its_trimmings_is_plain_gradient_descent(tmp_path: Path) -> None:
    plain = {"momentum": 0.0, "weight_decay": 0.0, "warmup_steps": 0, "schedule": "constant", "gradient_clip": None}
    chosen = settings(3, optimiser="sgd", ema_decay=None, learning_rate=0.5, **plain)
    trained, by_hand = toy(), toy()
    train(trained, tmp_path, chosen)
    from medsegdiff_cli.diffusion.noise import NoiseSource

    for step, batch in enumerate(batches(3)(0)):
        noise = NoiseSource([(7, "train", step, position) for position in range(4)])
        by_hand.zero_grad()
        sum(by_hand.loss(batch, Stage(name="train", supervision="full"), noise).values()).backward()
        with torch.no_grad():
            for parameter in by_hand.parameters():
                parameter -= 0.5 * parameter.grad
    for a, b in zip(trained.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_what_a_stage_does_not_train_stays_untouched_and_its_batch_norm_does_not_drift(tmp_path: Path) -> None:
    method = toy(batch_norm=True, dropout=0.5)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    stage = Stage(name="head", supervision="full", trains=("head",))
    train(method, tmp_path, settings(9, weight_decay=0.5), stage=stage)
    after = method.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}
    saved = read_checkpoint(tmp_path / "checkpoints" / "step_00000009")
    assert {name.rpartition(".")[0] for name in saved.part("optimiser")} == {"head.weight", "head.bias"}


@pytest.mark.fault("F94")
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_names_step_and_cases_and_keeps_the_last_checkpoint(
    tmp_path: Path, wrong: float
) -> None:
    def spoilt(start: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(12)(start), start):
            yield replace(batch, image=batch.image * wrong) if step == 5 else batch

    with pytest.raises(MsdError) as stopped:
        train(toy(), tmp_path, settings(checkpoint_minutes=1e-9), make_batches=spoilt)
    assert stopped.value.exit_code == 1
    assert "stage 'train' at step 6" in stopped.value.what
    assert "ce = nan" in stopped.value.what
    # Batches of four: step 5, counted from 0, has the patches 20 to 23.
    assert stopped.value.where == "cases case20, case21, case22, case23"
    saved = read_checkpoint(tmp_path / "checkpoints" / "step_00000005")
    assert all(torch.isfinite(tensor).all() for tensor in saved.tensors.values())


@pytest.mark.fault("F94")
def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path: Path) -> None:
    class RootOfZero(type(toy())):  # type: ignore[misc]
        def loss(self, batch: Batch, stage: Stage, noise: object) -> dict[str, torch.Tensor]:
            # sqrt has an infinite slope at 0; times 0 that is NaN, while the loss itself is 0.
            return {"root": (self.head.weight * 0).abs().sqrt().sum()}

    method = RootOfZero(toy().task, toy().settings)
    before = method.head.weight.detach().clone()
    with pytest.raises(MsdError, match="norm of the gradient = nan"):
        train(method, tmp_path, settings())
    assert torch.equal(method.head.weight, before)


def test_the_journal_has_a_line_per_window_with_its_means(tmp_path: Path) -> None:
    train(toy(), tmp_path, settings(4, validate_every_steps=2, schedule="constant", warmup_steps=2))
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["lr"] for line in lines] == pytest.approx([0.005, 0.01, 0.01, 0.01])
    assert ["validation" in line for line in lines] == [False, True, False, True]
    assert lines[1]["validation"] == {"score": pytest.approx(0.5, abs=0.5), "cases": 1, "details": {"blob": 0.5}}
    for line in lines:
        assert set(line["terms"]) == {"ce", "size"}
        assert line["loss"] == pytest.approx(line["terms"]["ce"] + line["terms"]["size"])
        assert line["grad_norm"] > 0
        assert line["seconds"] >= 0


def test_long_trainings_write_means_over_several_steps(tmp_path: Path) -> None:
    seen: list[float] = []

    class Recorder:
        def update(self, step: int, steps: int, loss: float, score: float | None) -> None:
            assert (step, steps, score) == (len(seen) + 1, 400, None)
            seen.append(loss)

    train(toy(), tmp_path, settings(400), validate=None, progress=Recorder())
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(2, 401, 2))
    assert [line["loss"] for line in lines] == pytest.approx(
        [(a + b) / 2 for a, b in zip(seen[::2], seen[1::2], strict=True)]
    )


def scripted(scores: list[float]) -> object:
    remaining = list(scores)

    def validate(method: Method) -> ValidationScore:
        return ValidationScore(value=remaining.pop(0), cases=1)

    return validate


def test_best_keeps_the_weights_of_the_best_validation_and_patience_ends_the_stage(tmp_path: Path) -> None:
    chosen = settings(40, validate_every_steps=2, patience=3)
    result = train(toy(), tmp_path, chosen, validate=scripted([0.2, 0.6, 0.5, 0.6, math.nan]))
    # Best at step 4; an equal score and an undefined one are no improvements, so three bad validations end it at 10.
    assert (result.best_score, result.best_step, result.steps_done) == (0.6, 4, 10)
    best, last = (read_checkpoint(tmp_path / "checkpoints" / name) for name in ("best", "last"))
    assert (best.state["step"], best.state["score"], last.state["step"]) == (4, 0.6, 10)
    until_four = toy()
    train(until_four, tmp_path / "b", chosen.model_copy(update={"patience": 1}), validate=scripted([0.6, 0.5]))
    assert read_checkpoint(tmp_path / "b" / "checkpoints" / "last").state["step"] == 4
    for name, tensor in until_four.state_dict().items():
        assert torch.equal(tensor, best.part("model")[name])
    assert lines_of(tmp_path)[-1]["validation"]["score"] is None


def test_an_early_stop_is_remembered(tmp_path: Path) -> None:
    chosen = settings(40, validate_every_steps=2, patience=1)
    train(toy(), tmp_path, chosen, validate=scripted([0.5, 0.4]))
    (tmp_path / "checkpoints" / "last.json").unlink()
    assert train(toy(), tmp_path, chosen, validate=scripted([])).steps_done == 4


def test_validation_sees_the_averaged_weights_and_training_goes_on_with_the_raw_ones(tmp_path: Path) -> None:
    seen = {}

    def look(method: Method) -> ValidationScore:
        seen.update({name: p.detach().clone() for name, p in method.named_parameters()})
        return ValidationScore(value=0.5, cases=1)

    train(toy(), tmp_path, settings(4, validate_every_steps=4), validate=look)
    saved = read_checkpoint(tmp_path / "checkpoints" / "step_00000004")
    last = read_checkpoint(tmp_path / "checkpoints" / "last")
    for name, tensor in seen.items():
        assert torch.equal(saved.part("ema")[name], tensor)
        assert torch.equal(last.part("model")[name], tensor)
        assert not torch.equal(saved.part("model")[name], tensor)


def test_without_averaging_the_raw_weights_predict(tmp_path: Path) -> None:
    train(toy(), tmp_path, settings(4, ema_decay=None))
    saved = read_checkpoint(tmp_path / "checkpoints" / "step_00000004")
    assert saved.part("ema") == {}
    last = read_checkpoint(tmp_path / "checkpoints" / "last").part("model")
    assert all(torch.equal(tensor, last[name]) for name, tensor in saved.part("model").items())


@pytest.mark.parametrize(("every", "calls"), [(None, 10), (0, 0), (7, 3), (20, 1)])
def test_validations_happen_as_often_as_asked_and_at_the_end(tmp_path: Path, every: int | None, calls: int) -> None:
    # 20 steps: None is every second; 7 means steps 7, 14 and the last one.
    count = []

    def validate(method: Method) -> ValidationScore:
        count.append(1)
        return ValidationScore(value=0.5, cases=1)

    train(toy(), tmp_path, settings(20, validate_every_steps=every), validate=validate)
    assert len(count) == calls


def test_the_seed_changes_the_noise_and_nothing_else_does(tmp_path: Path) -> None:
    digests = [
        train(toy(dropout=0.3), tmp_path / name, settings(3), seed=seed, device=CPU).weights_digest
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert digests[0] == digests[1] != digests[2]
