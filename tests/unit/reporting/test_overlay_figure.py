"""The row of panels of one case: right slice, right colours, one panel a model; PIL reads the PNG back."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image as Pil

from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.reporting.overlay_figure import Overlay, UncertaintyMap, overlay_figure
from medsegdiff_cli.reporting.slices import choose_cut, panels_of, slice_at

LEGEND = {"organ": (1,), "nodule": (2,)}
RED, CYAN = (255, 77, 77), (46, 196, 255)


def volume(shape=(6, 24, 20), spacing_mm=(2.0, 1.0, 1.0), direction=None):
    grid = Geometry.plain(shape, spacing_mm)
    if direction is not None:
        grid = Geometry(shape=shape, spacing_mm=spacing_mm, origin_mm=(0.0,) * 3, direction=direction)
    array = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    label = np.zeros(shape, np.uint8)
    label[4, 5:18, 4:15], label[2, 8:10, 4:6] = 1, 2
    return Image(array=array, geometry=grid), label


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Pil.open(BytesIO(png)).convert("RGB")).astype(int)


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture - colour).max(axis=-1) < 25).sum())


def parts(png: bytes, n: int) -> list[np.ndarray]:
    """Return the panels of a row without colour bar, without titles and legend."""
    picture = pixels(png)
    height, width = picture.shape[:2]
    return [picture[height // 4 : 3 * height // 4, i * width // n : (i + 1) * width // n] for i in range(n)]


def test_each_panel_shows_its_own_outline() -> None:
    image, reference = volume()
    wrong = np.zeros_like(reference)
    wrong[4, 8:14, 6:12] = 2

    panels = parts(overlay_figure(image, reference, [Overlay(name="a", label=wrong, dice=0.25)], LEGEND), 3)

    assert [count(panel, RED) > 50 for panel in panels] == [False, True, False]
    assert [count(panel, CYAN) > 50 for panel in panels] == [False, False, True]


def test_a_model_and_a_map_widen_the_figure_by_a_panel_each() -> None:
    image, reference = volume()
    overlay = Overlay(name="model", label=reference, dice=1.0)
    widths = [pixels(overlay_figure(image, reference, [overlay] * n, LEGEND)).shape[1] for n in (0, 1, 3)]
    unsure = UncertaintyMap(name="entropy", values=np.zeros(reference.shape))
    with_map = pixels(overlay_figure(image, reference, [overlay], LEGEND, uncertainty=unsure)).shape[1]

    assert widths[1] - widths[0] == pytest.approx((widths[2] - widths[1]) / 2, abs=2)
    assert with_map > widths[1] + (widths[1] - widths[0])


def test_the_map_is_dark_where_sure_and_bright_at_the_top() -> None:
    image, reference = volume()
    nothing, values = np.zeros_like(reference), np.zeros(reference.shape)
    values[:, :, 10:] = 0.7
    figure = overlay_figure(
        image, nothing, [], LEGEND, uncertainty=UncertaintyMap(name="entropy", values=values, top=0.7)
    )
    # Two panels of 2.3 inches with gaps of 0.06 come before; the resolution is 110 dots an inch.
    picture = pixels(figure)
    middle = picture[picture.shape[0] // 2]
    left, right = round((3 * 0.06 + 2 * 2.3) * 110), round((3 * 0.06 + 3 * 2.3) * 110)
    quarter = (right - left) // 4

    assert middle[left + quarter].max() < 20
    assert middle[left + 3 * quarter].min() > 180


def test_pictures_keep_the_physical_aspect() -> None:
    image, reference = volume(shape=(6, 24, 20), spacing_mm=(2.0, 2.0, 1.0))
    square, reference_2 = volume(shape=(6, 20, 20), spacing_mm=(1.0, 1.0, 1.0))
    # A panel of 2.4 times its width in height, against one as high as wide: 1.4 * 2.3 inches at 110 dots an inch.
    tall = pixels(overlay_figure(image, reference, [], LEGEND)).shape[0]
    assert tall - pixels(overlay_figure(square, reference_2, [], LEGEND)).shape[0] == pytest.approx(
        1.4 * 2.3 * 110, abs=2
    )


def test_maps_are_cut_and_turned_like_the_image() -> None:
    # Stored with every axis backwards and the head first.
    image, reference = volume(direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, -1.0))
    (panel,) = panels_of(image, reference)
    cut = choose_cut(image.geometry, reference)

    np.testing.assert_array_equal(slice_at(reference, image.geometry, cut), panel.label)
    np.testing.assert_array_equal(panel.label, reference[4, ::-1, ::-1])


def test_photographs_are_drawn_in_colour() -> None:
    blue = np.stack([np.full((30, 40), value, np.uint8) for value in (10, 20, 200)])
    image = Image(array=blue, geometry=Geometry.plain((30, 40), has_physical_spacing=False))
    reference = np.zeros((30, 40), np.uint8)
    reference[8:20, 10:30] = 1
    panels = parts(overlay_figure(image, reference, [Overlay(name="m", label=reference)], {"lesion": (1,)}), 3)

    assert all(count(panel, (10, 20, 200)) > 2000 for panel in panels)
    assert [count(panel, CYAN) > 50 for panel in panels] == [False, True, True]


def test_the_same_case_gives_the_same_bytes_and_an_empty_one_is_drawn() -> None:
    image, reference = volume()
    assert overlay_figure(image, reference, [], LEGEND) == overlay_figure(image, reference, [], LEGEND)
    assert overlay_figure(image, np.zeros_like(reference), [], {}).startswith(b"\x89PNG")


@pytest.mark.parametrize("wrong", ["reference", "label", "map"])
def test_what_does_not_fit_the_image_is_refused(wrong: str) -> None:
    image, reference = volume()
    bad = reference[:, :-1]
    overlay = Overlay(name="m", label=bad if wrong == "label" else reference)
    unsure = UncertaintyMap(name="u", values=(bad if wrong == "map" else reference).astype(float))
    with pytest.raises(ValueError, match="does not fit"):
        overlay_figure(image, bad if wrong == "reference" else reference, [overlay], LEGEND, uncertainty=unsure)
