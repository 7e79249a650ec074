"""Several processes train as one; a lost one is noticed; a killed one resumes."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from medsegdiff_cli.artifacts.checkpoint import read_checkpoint

PROGRAM = Path(__file__).with_name("toy_training.py")


def start(folder: Path, world_size: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """Start the ranks as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), *map(str, arguments)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def weights_printed(processes: list[subprocess.Popen[str]]) -> list[torch.Tensor]:
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [torch.tensor([float(number) for number in out.split()]) for out, _ in outputs]


@pytest.mark.fault("F98")
@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [4, 5])  # 5: the ranks' shares are unequal
def test_two_ranks_equal_one_with_the_same_global_batch(tmp_path: Path, batch_size: int) -> None:
    (alone,) = weights_printed(start(tmp_path / "one", 1, batch_size))
    first, second = weights_printed(start(tmp_path / "two", 2, batch_size))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, atol=1e-5, rtol=1e-5)
    saved = [read_checkpoint(tmp_path / name / "checkpoints" / "step_00000006") for name in ("one", "two")]
    assert saved[0].tensors.keys() == saved[1].tensors.keys()
    for name, tensor in saved[0].tensors.items():
        torch.testing.assert_close(saved[1].tensors[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.fault("F98")
@pytest.mark.slow
def test_a_rank_that_dies_is_noticed_and_the_next_start_goes_on(tmp_path: Path) -> None:
    undisturbed = weights_printed(start(tmp_path / "a", 2, 4))
    began = time.monotonic()
    survivor, killed = start(tmp_path / "b", 2, 4, 1)
    _, message = survivor.communicate(timeout=60)
    seconds = time.monotonic() - began
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    assert seconds < 60  # both starts of Python included
    assert survivor.returncode != 0
    assert "ResourceError: another training process is gone" in message
    resumed = weights_printed(start(tmp_path / "b", 2, 4))
    assert all(torch.equal(a, b) for a, b in zip(undisturbed, resumed, strict=True))


@pytest.mark.fault("F97")
@pytest.mark.slow
def test_a_training_killed_by_signal_9_resumes_exactly(tmp_path: Path) -> None:
    (undisturbed,) = weights_printed(start(tmp_path / "a", 1, 4))
    (killed,) = start(tmp_path / "b", 1, 4, 0)
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    weights_printed(start(tmp_path / "b", 1, 4))
    digests = {(tmp_path / name / "checkpoints" / "last.safetensors").read_bytes() for name in ("a", "b")}
    assert len(digests) == 1
    assert undisturbed.numel() > 100
