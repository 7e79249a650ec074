"""A training step that is denied memory: exit code 4, and the training goes on from the last checkpoint."""

from pathlib import Path

import pytest
import torch
from toy_training import Toy, settings, toy, train

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.errors import ResourceError
from medsegdiff_cli.methods.base import Stage

STEPS = settings(6, checkpoint_minutes=1e-9)


@pytest.mark.fault("F60", "F61")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmany more lines"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_it_is_a_resource_error_and_nothing_is_lost(tmp_path: Path, error: Exception) -> None:
    class Greedy(Toy):
        calls = 0

        def loss(self, batch: Batch, stage: Stage, noise: object) -> dict[str, torch.Tensor]:
            self.calls += 1
            if self.calls == 5:
                raise error
            return super().loss(batch, stage, noise)  # type: ignore[arg-type]

    greedy = Greedy(toy().task, toy().settings)
    greedy.load_state_dict(toy().state_dict())
    with pytest.raises(ResourceError, match=r"memory does not suffice[\s\S]*'train'[\s\S]*batch_size") as caught:
        train(greedy, tmp_path / "greedy", STEPS)
    assert caught.value.exit_code == 4
    assert "many more lines" not in str(caught.value)
    assert greedy.calls == 5  # no smaller batch was tried
    again = train(toy(), tmp_path / "greedy", STEPS)
    assert again.weights_digest == train(toy(), tmp_path / "plain", STEPS).weights_digest


def test_another_error_is_not_mistaken_for_it(tmp_path: Path) -> None:
    class Wrong(Toy):
        def loss(self, batch: Batch, stage: Stage, noise: object) -> dict[str, torch.Tensor]:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(Wrong(toy().task, toy().settings), tmp_path, STEPS)
