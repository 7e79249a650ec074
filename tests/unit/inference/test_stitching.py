"""Averages of overlapping windows: of probabilities or of their logarithms, with Gaussian or uniform weights."""

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, logit, softmax

from medsegdiff_cli.inference.stitching import Stitcher
from medsegdiff_cli.inference.windows import WindowGrid


def windows_of(seed, exclusive, n=3, shape=(3, 4)):
    scores = np.random.default_rng(seed).normal(size=(n, 2, 3, *shape)) * 3
    return softmax(scores, axis=2) if exclusive else expit(scores)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("overlap", ["mean", "log-mean"])
@pytest.mark.parametrize("weights", ["gaussian", "uniform"])
def test_every_voxel_is_the_weighted_average_of_its_windows(exclusive, overlap, weights):
    grid = WindowGrid((3, 8), (3, 4), 0.5, weights)
    assert len(grid.starts) == 3
    windows = windows_of(0, exclusive)
    stitcher = Stitcher(grid, overlap, exclusive)
    for numbers in grid.batches(2):
        stitcher.add(numbers, torch.from_numpy(windows[numbers.start : numbers.stop]).float())
    found = stitcher.result().numpy()

    weight = grid.weight.numpy().astype(float)
    values = windows if overlap == "mean" else np.log(windows) if exclusive else logit(windows)
    total, count = np.zeros((2, 3, 3, 8)), np.zeros((3, 8))
    for (row, column), window in zip(grid.starts, values, strict=True):
        total[..., row : row + 3, column : column + 4] += weight * window
        count[row : row + 3, column : column + 4] += weight
    expected = total / count
    if overlap == "log-mean":
        expected = np.exp(log_softmax(expected, axis=1)) if exclusive else expit(expected)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(grid.total_weight.numpy(), count, rtol=1e-6)


def test_certain_windows_have_a_logarithm():
    grid = WindowGrid((1, 3), (1, 2), 0.5, "uniform")
    for exclusive in (True, False):
        stitcher = Stitcher(grid, "log-mean", exclusive)
        sure = torch.zeros(2, 1, 2, 1, 2)
        sure[0, :, 0], sure[1, :, 1] = 1, 1
        stitcher.add(range(2), sure)
        found = stitcher.result()
        assert found.isfinite().all()
        # Where one window says the one class and the other the other, neither wins.
        torch.testing.assert_close(found[0, :, 0, 1], torch.tensor([0.5, 0.5]), rtol=0, atol=1e-3)


def test_an_image_has_windows():
    with pytest.raises(RuntimeError, match="without windows"):
        Stitcher(WindowGrid((2, 2), (2, 2), 0.5), "mean", True).result()
