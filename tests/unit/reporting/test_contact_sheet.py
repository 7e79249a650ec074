"""Contact sheets: right slices the right way up, right colours, same bytes; PIL reads the PNG back."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pil

from medsegdiff_cli.artifacts.dataset_folder import open_dataset
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.writing import write_image, write_label
from medsegdiff_cli.reporting.contact_sheet import SheetItem, contact_sheet, item_of_case, sheet_items_of_dataset
from medsegdiff_cli.reporting.slices import panels_of

RED, CYAN = np.array([255, 77, 77]), np.array([46, 196, 255])


def volume(shape=(6, 20, 16), spacing_mm=(1.0, 1.0, 1.0)):
    grid = Geometry.plain(shape, spacing_mm)
    array = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    label = np.zeros((1, *shape), dtype=np.uint8)
    label[0, 4, 5:15, 4:12], label[0, 2, 8:10, 4:6] = 1, 2
    return Image(array=array, geometry=grid), Image(array=label, geometry=grid)


def photo(n_channels=3, shape=(30, 40), seed=0):
    array = np.random.default_rng(seed).integers(0, 90, (n_channels, *shape), dtype=np.uint8)
    return Image(array=array, geometry=Geometry.plain(shape, has_physical_spacing=False))


def box(shape=(30, 40)):
    label = np.zeros((1, *shape), dtype=np.uint8)
    label[0, 8:20, 10:30] = 1
    return Image(array=label, geometry=Geometry.plain(shape, has_physical_spacing=False))


def n_pixels_near(path, colour):
    pixels = np.asarray(Pil.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - colour).max(axis=-1) < 25).sum())


def test_the_axial_slice_with_most_label_is_shown():
    image, label = volume()
    (panel,) = panels_of(image, label.array[0])
    assert panel.caption == "axial 5/6"
    np.testing.assert_array_equal(panel.label, label.array[0, 4])


def test_an_unlabelled_volume_shows_its_middle():
    image, _ = volume()
    (panel,) = panels_of(image, None)
    assert (panel.caption, panel.label) == ("axial 4/6", None)


def test_thick_slices_are_shown_in_the_plane_of_acquisition():
    image, label = volume(spacing_mm=(1.0, 1.0, 4.0))
    (panel,) = panels_of(image, label.array[0])
    assert panel.caption.startswith("sagittal")
    assert panel.spacing == (1.0, 1.0)


def test_three_planes_have_the_head_up_and_the_pixels_aspect():
    image, label = volume(spacing_mm=(3.0, 0.5, 0.7))
    axial, coronal, sagittal = panels_of(image, label.array[0], three_planes=True)
    assert [p.spacing for p in (axial, coronal, sagittal)] == [(0.5, 0.7), (3.0, 0.7), (3.0, 0.5)]
    column = int(label.array[0].any(axis=(0, 1)).argmax())
    assert column == 4
    # In LPS z runs to the head, so the last slice is the picture's first row.
    densest_y = int(label.array[0].astype(bool).sum(axis=(0, 2)).argmax())
    np.testing.assert_array_equal(coronal.label, label.array[0, ::-1, densest_y])


def test_a_volume_stored_in_another_orientation_looks_the_same():
    image, label = volume()
    # The same patient with all axes stored backwards: directions -1, origin at the other end.
    ends = [float(n - 1) for n in image.geometry.shape[::-1]]
    backwards = replace(image.geometry, direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, -1.0), origin_mm=tuple(ends))
    turned = Image(array=image.array[:, ::-1, ::-1, ::-1], geometry=backwards)
    expected, found = panels_of(image, label.array[0]), panels_of(turned, label.array[0, ::-1, ::-1, ::-1])
    np.testing.assert_array_equal(expected[0].image, found[0].image)
    np.testing.assert_array_equal(expected[0].label, found[0].label)


def test_a_volume_stored_with_axes_swapped_looks_the_same():
    image, label = volume()
    # Array axes (x, y, z) instead of (z, y, x): ITK's first axis then runs along world z.
    grid = Geometry(
        shape=(16, 20, 6),
        spacing_mm=(1.0, 1.0, 1.0),
        origin_mm=(0.0, 0.0, 0.0),
        direction=(0.0, 0, 1.0, 0, 1.0, 0, 1.0, 0, 0),
    )
    turned = Image(array=image.array.transpose(0, 3, 2, 1), geometry=grid)
    found = panels_of(turned, label.array[0].transpose(2, 1, 0))
    np.testing.assert_array_equal(found[0].label, panels_of(image, label.array[0])[0].label)


def test_constant_images_are_drawn_without_complaint(tmp_path):
    flat = replace(photo(1), array=np.full((1, 30, 40), 7, dtype=np.uint8))
    contact_sheet([item_of_case("flat", flat, None)], {}, tmp_path / "sheet.png")
    assert np.asarray(Pil.open(tmp_path / "sheet.png")).shape[0] > 200


def test_each_class_has_its_own_colour_and_absent_classes_are_not_drawn(tmp_path):
    image, label = volume()
    first_only = replace(label, array=np.minimum(label.array, 1) * (label.array == 1))
    for name, shown in (("both", label), ("one", first_only)):
        items = [item_of_case("case", image, shown, three_planes=True)]
        contact_sheet(items, {"liver": (1,), "tumour": (2,)}, tmp_path / f"{name}.png")
    assert n_pixels_near(tmp_path / "both.png", RED) > 100
    # The legend's line has the colour as well, hence the comparison.
    assert n_pixels_near(tmp_path / "both.png", CYAN) > n_pixels_near(tmp_path / "one.png", CYAN) > 0


def test_overlapping_regions_are_outlined_each(tmp_path):
    image, label = volume()
    items = [item_of_case("case", image, label)]
    contact_sheet(items, {"whole": (1, 2), "core": (1,)}, tmp_path / "sheet.png")
    assert n_pixels_near(tmp_path / "sheet.png", CYAN) > 50


def test_colour_photographs_keep_their_colours(tmp_path):
    blue = replace(photo(), array=np.stack([np.full((30, 40), v, dtype=np.uint8) for v in (10, 20, 200)]))
    contact_sheet([item_of_case("case", blue, box())], {"lesion": (1,)}, tmp_path / "sheet.png")
    assert n_pixels_near(tmp_path / "sheet.png", np.array([10, 20, 200])) > 10_000


def test_the_same_items_give_the_same_bytes(tmp_path):
    items = [item_of_case(f"case {i}", photo(seed=i), box()) for i in range(5)]
    for name in ("a", "b"):
        contact_sheet(items, {"lesion": (1,)}, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_label_and_image_of_different_shape_are_said_not_drawn():
    item = item_of_case("case", photo(), box((10, 12)))
    assert item.panels == ()
    assert "differ in shape" in item.note


def test_more_classes_than_named_colours_are_drawn(tmp_path):
    label = replace(box(), array=(np.arange(1200).reshape(1, 30, 40) // 100).astype(np.uint8))
    legend = {f"class {value}": (value,) for value in range(1, 12)}
    contact_sheet([item_of_case("case", photo(1), label)], legend, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 0


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "Dataset003_Photos"
    for part, n in (("Tr", 9), ("Ts", 4), ("Un", 5)):
        for index in range(n):
            image = photo(1, seed=index)
            write_image(root / f"images{part}" / f"{part}{index}_0000.png", image)
            if part != "Un":
                write_label(root / f"labels{part}" / f"{part}{index}.png", box().array, image.geometry)
    info = {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 9,
        "file_ending": ".png",
    }
    (root / "dataset.json").write_text(json.dumps(info))
    return open_dataset(root)


def test_a_datasets_sheet_spreads_over_all_parts_and_marks_them(dataset):
    items = sheet_items_of_dataset(dataset, 8)
    assert [(item.title[:2], item.note) for item in items] == [
        *[("Tr", "")] * 4,
        *[("Ts", "test")] * 2,
        *[("Un", "unlabelled")] * 2,
    ]
    assert [item.title for item in items[:4]] == ["Tr0", "Tr3", "Tr5", "Tr8"]
    assert len(sheet_items_of_dataset(dataset, 100)) == 18
    assert len(sheet_items_of_dataset(dataset, 1)) == 1


def test_a_damaged_case_is_shown_as_such(dataset, tmp_path):
    (dataset.path / "imagesTr" / "Tr0_0000.png").write_bytes(b"broken")
    items = sheet_items_of_dataset(dataset, 8)
    assert items[0].note.startswith("cannot be read")
    contact_sheet(items, dataset.label_scheme().file_values(), tmp_path / "sheet.png")


def test_a_sheet_without_items_is_a_fault():
    with pytest.raises(ValueError, match="at least one item"):
        contact_sheet([], {}, None)


def test_neither_pyplot_nor_a_display_is_needed():
    code = "import sys, medsegdiff_cli.reporting.contact_sheet; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_items_with_and_without_panels_can_be_mixed(tmp_path):
    items = [SheetItem(title="bad", panels=(), note="cannot be read: x"), item_of_case("good", photo(), box())]
    contact_sheet(items, {"lesion": (1,)}, tmp_path / "sheet.png")
    assert np.asarray(Pil.open(tmp_path / "sheet.png")).shape[1] > 200
