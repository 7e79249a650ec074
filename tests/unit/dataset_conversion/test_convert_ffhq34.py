"""FFHQ-34: numpy labels beside photographs, ten of the test photographs validate, nothing is ever unpickled."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medsegdiff_cli.artifacts.dataset_folder import open_dataset
from medsegdiff_cli.dataset_conversion.contract import Options
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.planning.splits import splits_of
from medsegdiff_cli.workflows.convert import convert_dataset

SHAPE = (8, 34)


def photo(path: Path, shape: tuple[int, int] = SHAPE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(len(path.stem)).integers(0, 256, (*shape, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(path))


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A column for each class, in all cases."""
    label = np.tile(np.arange(34, dtype=np.uint8), (8, 1))
    for place, n in (("train", 3), ("test", 4)):
        for number in range(n):
            photo(tmp_path / "ffhq_34" / "real" / place / f"image_{number}.png")
            np.save(tmp_path / "ffhq_34" / "real" / place / f"image_{number}.npy", label)
    return tmp_path / "ffhq_34"


def convert(source: Path, **options: object) -> Path:
    folder = source.parent / "Dataset038_FFHQ34"
    convert_dataset("ffhq34", source, folder, Options.model_validate({"overwrite": True, **options}))
    return folder


def cases(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix("_0000.png") for path in folder.glob("*"))


def test_values_stay_and_255_becomes_the_ignored_class(source: Path) -> None:
    label = np.tile(np.arange(34, dtype=np.uint8), (8, 1))
    label[3] = 255
    np.save(source / "real" / "train" / "image_1.npy", label)
    folder = convert(source)
    written = read(folder / "labelsTr" / "train_image_1.png")
    assert np.array_equal(np.delete(written, 3, axis=0), np.delete(label, 3, axis=0))
    assert set(written[3].tolist()) == {34}
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    assert [labels[name] for name in ("background", "head", "cheek", "iris", "hair", "nose", "wrinkles", "ignore")] == [
        *(0, 1, 2, 9, 17, 26, 33, 34)
    ]
    assert sorted(labels.values()) == list(range(35))


def test_all_of_test_are_test_cases_unless_some_shall_validate(source: Path) -> None:
    folder = convert(source)
    assert cases(folder / "imagesTr") == [f"train_image_{n}" for n in range(3)]
    assert cases(folder / "imagesTs") == [f"test_image_{n}" for n in range(4)]
    assert not (folder / "splits_final.json").exists()


def test_the_recipe_trains_on_train_and_validates_on_the_test_photographs_that_were_not_drawn(source: Path) -> None:
    drawn = set()
    for seed in (0, 1, 0):
        folder = convert(source, test_count=2, seed=seed)
        test = cases(folder / "imagesTs")
        assert len(test) == 2
        fold = splits_of(open_dataset(folder)).fold("0")
        assert fold.train == tuple(f"train_image_{n}" for n in range(3))
        assert sorted((*fold.val, *test)) == [f"test_image_{n}" for n in range(4)]
        assert cases(folder / "imagesTr") == sorted((*fold.train, *fold.val))
        drawn.add(tuple(test))
    assert len(drawn) == 2, "the seed alone decides"
    with pytest.raises(UsageError, match="4 test cases asked for"):
        convert(source, test_count=4)


def test_other_kinds_of_whole_numbers_are_read(source: Path) -> None:
    label = np.tile(np.arange(34), (8, 1))
    for number, kind in enumerate((np.int64, np.float32, np.uint16)):
        np.save(source / "real" / "train" / f"image_{number}.npy", label.astype(kind))
    folder = convert(source)
    for number in range(3):
        assert np.array_equal(read(folder / "labelsTr" / f"train_image_{number}.png"), label)


def test_a_finer_label_is_thinned_and_a_coarser_one_refused(source: Path) -> None:
    path = source / "real" / "train" / "image_0.npy"
    label = np.random.default_rng(0).integers(0, 34, SHAPE).astype(np.uint8)
    fine = np.zeros((16, 68), np.uint8)
    fine[::2, ::2] = label
    np.save(path, fine)
    assert np.array_equal(read(convert(source) / "labelsTr" / "train_image_0.png"), label)
    np.save(path, label[:4, :17])
    with pytest.raises(InputDataError, match=r"shape \(4, 17\) does not fit"):
        convert(source)


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_never_opened(source: Path) -> None:
    proof = source.parent / "was unpickled"
    objects = np.full(SHAPE, Trap(proof), dtype=object)
    path = source / "real" / "train" / "image_0.npy"
    np.save(path, objects, allow_pickle=True)
    with pytest.raises(InputDataError, match="no array of plain numbers"):
        convert(source)
    objects.dump(path)
    with pytest.raises(InputDataError, match="no numpy file"):
        convert(source)
    assert not proof.exists()
    np.load(path, allow_pickle=True)
    assert proof.exists(), "the trap works"


def damaged(kind: str) -> bytes:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (8, 34), }"
    start = b"\x93NUMPY\x01\x00"
    whole = start + len(header).to_bytes(2, "little") + header + bytes(8 * 34)
    huge = header.replace(b"(8, 34)", b"(99999999, 99999999)")
    deep = b"{'descr': " + b"-" * 9000 + b"1}"
    return {
        "whole": whole,
        "empty": b"",
        "zip": b"PK\x03\x04" + bytes(99),
        "truncated": whole[:-1],
        "too long": whole + b"x",
        "huge": start + len(huge).to_bytes(2, "little") + huge + bytes(8 * 34),
        "deep": start + len(deep).to_bytes(2, "little") + deep,
        "three axes": whole.replace(b"(8, 34)", b"(8,2,17)").replace(b", }", b",}"),
        "floats": whole.replace(b"|u1", b"<f4")[: -8 * 34] + bytes([1]) * 4 * 8 * 34,
        "unknown class": whole[:-1] + b"\x22",
    }[kind]


@pytest.mark.parametrize("kind", [
    "whole", "empty", "zip", "truncated", "too long", "huge", "deep", "three axes", "floats", "unknown class",
])  # fmt: skip
def test_a_damaged_label_alone_is_refused_with_its_name(source: Path, kind: str) -> None:
    path = source / "real" / "train" / "image_2.npy"
    path.write_bytes(damaged(kind))
    if kind == "whole":
        assert not read(convert(source) / "labelsTr" / "train_image_2.png").any()
        return
    with pytest.raises(InputDataError) as error:
        convert(source)
    assert str(path) in str(error.value.where)


def test_a_label_without_a_photograph_is_an_error_and_the_other_way_round_unlabelled(source: Path) -> None:
    (source / "real" / "train" / "image_2.npy").unlink()
    assert cases(convert(source) / "imagesUn") == ["train_image_2"]
    (source / "real" / "test" / "image_3.png").unlink()
    with pytest.raises(InputDataError, match="a label has no photograph"):
        convert(source)
    with pytest.raises(InputDataError, match="no photographs"):
        convert(source / "real" / "train")
