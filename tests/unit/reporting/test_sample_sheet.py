"""The sheet of generated images: what is shown, in which window, and that nothing is hidden."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from medsegdiff_cli.reporting.sample_sheet import draw_samples


def share_of(path: Path, colour: tuple[int, int, int]) -> float:
    """Return the share of the picture's pixels that have a colour."""
    picture = np.round(imread(path)[..., :3] * 255)
    return float((np.abs(picture - colour).max(axis=-1) <= 1).mean())


def tile_means(path: Path, columns: int) -> list[float]:
    """Return the mean brightness of the middle of each tile of one row, below the title."""
    picture = imread(path)[..., :3].mean(axis=-1)
    height, width = picture.shape
    middle = picture[int(height * 0.45) : int(height * 0.75)]
    step = width // columns
    return [float(middle[:, left + step // 4 : left + 3 * step // 4].mean()) for left in range(0, columns * step, step)]


def test_all_tiles_share_one_window(tmp_path: Path) -> None:
    levels = np.array([-2.0, 0.0, 2.0])
    images = np.broadcast_to(levels[:, None, None, None], (3, 1, 16, 16))

    path = draw_samples(images, tmp_path / "samples.png", title="three greys")

    # Tiles of one grey each: a window per tile would make them equal.
    assert np.allclose(tile_means(path, 3), [0.0, 0.5, 1.0], atol=0.02)


def test_outliers_do_not_set_the_window(tmp_path: Path) -> None:
    images = np.tile(np.linspace(-2, 2, 400).reshape(1, 1, 20, 20), (2, 1, 1, 1))
    images[0, 0, 10, 10] = 1e6

    path = draw_samples(images, tmp_path / "samples.png", title="")

    assert tile_means(path, 2)[1] > 0.3


def test_a_volume_shows_the_middle_slice_of_its_first_channel(tmp_path: Path) -> None:
    volume = np.zeros((2, 2, 5, 12, 12))
    volume[1, 0, 2] = 1.0
    volume[0, 1] = 1.0

    path = draw_samples(volume, tmp_path / "samples.png", title="volumes")

    assert np.allclose(tile_means(path, 2), [0.0, 1.0], atol=0.02)


def test_three_channels_are_colours(tmp_path: Path) -> None:
    images = np.full((1, 3, 8, 8), -1.0)
    images[0, 1] = 1.0

    assert share_of(draw_samples(images, tmp_path / "samples.png", title=""), (0, 255, 0)) > 0.8


def test_pixels_that_are_not_finite_are_red(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(2, 1, 8, 8))
    images[0] = np.nan

    assert 0.3 < share_of(draw_samples(images, tmp_path / "one.png", title="diverged"), (229, 0, 25)) < 0.5
    assert share_of(draw_samples(images[:1], tmp_path / "all.png", title="diverged"), (229, 0, 25)) > 0.7


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(7, 1, 10, 14))
    first = draw_samples(images, tmp_path / "a" / "samples.png", title="step 100 " * 30)

    assert first.read_bytes() == draw_samples(images, tmp_path / "b.png", title="step 100 " * 30).read_bytes()


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (4, 8, 8), (1, 1, 2, 3, 4, 5)])
def test_what_is_no_batch_of_images_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="channel"):
        draw_samples(np.zeros(shape), tmp_path / "samples.png", title="")
