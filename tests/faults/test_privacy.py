"""Planted patients: names in the headers of images reach nothing that msd writes or says, however much it says.

What a user types (paths, the command line) is provenance and stays; what stands in an image's header does not leave it.
"""

import logging
import shutil
import struct
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from PIL import Image as Pil
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from medsegdiff_cli.cli.app import app
from medsegdiff_cli.imaging import dicom, nifti
from medsegdiff_cli.training.journal import Journal
from medsegdiff_cli.workflows import plan, run_setup
from medsegdiff_cli.workflows.phantoms import PhantomSettings, make_phantom

pytestmark = [pytest.mark.xdist_group("privacy"), pytest.mark.fault("F101")]

CANARY = "ZQXCANARY"
TAGS = {
    "0008|0080": "INSTITUTION",
    "0008|0090": "REFERRER^DR",
    "0008|1010": "STATION",
    "0008|1030": "STUDY",
    "0008|103e": "SERIES",
    "0010|0010": "PATIENT^NAME",
    "0010|0020": "ID4711",
    "0010|4000": "COMMENTS",
    "0018|1030": "PROTOCOL",
}
SHAPE = (8, 16, 16)
SETTINGS = {"steps": 2, "model_channels": 8, "channel_mult": [1, 2], "validate_every_steps": 0, "warmup_steps": 0}
QUICK = ["--scale", "tiny", *(word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}"))]


def hits(content: bytes | str) -> list[str]:
    """Return what of the planted text is in some bytes, as they are or compressed."""
    plain = content.encode() if isinstance(content, str) else content
    forms = [plain, zlib.decompressobj(31).decompress(plain) if plain[:2] == b"\x1f\x8b" else b""]
    wide = CANARY.encode("utf-16-le")
    return [
        f"...{form[max(0, form.find(word) - 40) : form.find(word) + 60]!r}"
        for form in forms
        for word in (CANARY.encode(), wide)
        if word in form
    ]


def files_with_canary(folder: Path) -> dict[str, list[str]]:
    found = {str(path.relative_to(folder)): hits(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    return {name: where for name, where in found.items() if where}


@pytest.fixture(scope="module", autouse=True)
def quick_machine() -> Iterator[None]:
    """Train without pictures and with a rough count of memory."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (plan, run_setup):
            patch.setattr(module, "measure_training", lambda *_: 10_000_000)
        patch.setattr(Journal, "draw", lambda self: None)
        yield


@pytest.fixture
def msd(capfd: pytest.CaptureFixture[str]) -> Callable[..., int]:
    """Run `msd WORDS...` here; whatever it, its libraries or its traceback say must be free of the planted text."""

    def run(*words: object, code: int | None = 0) -> int:
        seen: list[str] = []
        handler = logging.Handler(logging.NOTSET)
        handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger().addHandler(handler)
        try:
            result = CliRunner().invoke(app, [str(word) for word in words])
        finally:
            logging.getLogger().removeHandler(handler)
        if result.exc_info is not None:
            seen += traceback.format_exception(*result.exc_info)
        native = capfd.readouterr()
        assert hits("\n".join([result.output, result.stderr, native.out, native.err, *seen])) == []
        assert code is None or result.exit_code == code, f"{words}\n{result.output}\n{result.stderr}"
        return result.exit_code

    return run


def write_series(folder: Path, voxels: np.ndarray) -> None:
    """Write one DICOM slice a plane, with a patient in every header."""
    folder.mkdir(parents=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    uid = f"1.2.3.{zlib.crc32(folder.name.encode())}"
    for index, plane in enumerate(voxels):
        slice_ = SimpleITK.GetImageFromArray(plane[None].astype(np.int16))
        slice_.SetSpacing((1.0, 1.0, 2.0))
        facts = {"0008|0060": "MR", "0008|0016": "1.2.840.10008.5.1.4.1.1.4", "0020|000e": uid, "0020|000d": f"{uid}.9"}
        facts |= {"0008|0018": f"{uid}.{index}", "0020|0037": r"1\0\0\0\1\0", "0020|0032": rf"0\0\{2 * index}"}
        for tag, value in (facts | {tag: f"{CANARY}{word}" for tag, word in TAGS.items()}).items():
            slice_.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{index:03}.dcm"))
        writer.Execute(slice_)
    assert hits((folder / "000.dcm").read_bytes())


def write_nifti(path: Path, voxels: np.ndarray) -> None:
    """Write (z, y, x) voxels with a patient in every text field and in an extension."""
    image = nib.Nifti1Image(voxels.T, np.diag([-1.0, -1.0, 2.0, 1.0]))
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = CANARY.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"{CANARY}^COMMENT".encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    assert hits(path.read_bytes())


def write_png(path: Path, voxels: np.ndarray) -> None:
    """Write a grey photograph with a patient in its text chunks and its EXIF block."""
    texts = PngInfo()
    texts.add_text("Patient", CANARY)
    texts.add_text("Comment", CANARY * 9, zip=True)
    texts.add_itxt("Description", CANARY)
    exif = Pil.Exif()
    exif[0x010E] = f"{CANARY} EXIF"
    path.parent.mkdir(parents=True, exist_ok=True)
    Pil.fromarray(voxels).save(path, pnginfo=texts, exif=exif)
    assert hits(path.read_bytes())


@pytest.fixture(scope="module")
def phantoms() -> list[tuple[np.ndarray, np.ndarray]]:
    """Images (z, y, x) and labels."""
    found = [make_phantom(index, PhantomSettings(shape=SHAPE, difficulty=0.2)) for index in range(3)]
    return [(phantom.image.array[0].astype(np.int16), phantom.label) for phantom in found]


@pytest.fixture
def exported(tmp_path: Path, phantoms) -> Path:
    """A hospital's export: three DICOM series, labels as NIfTI, all of them with patients."""
    for index, (image, label) in enumerate(phantoms):
        write_series(tmp_path / "export" / f"case{index}", image)
        write_nifti(tmp_path / "export" / "labels" / f"case{index}.nii.gz", label)
    return tmp_path / "export"


@pytest.mark.fault("F102")
@pytest.mark.parametrize("loud", [pytest.param("-v", marks=pytest.mark.slow), "-vv"])
def test_the_whole_chain_says_and_writes_no_name(msd, exported, phantoms, tmp_path, loud) -> None:
    place = ["--workspace", tmp_path / "workspace", loud]
    names = ["--label-map", "1:organ", "--label-map", "2:nodule"]
    msd("convert", "dicom", exported, "--dataset", 1, "--name", "Scan", *names, *place)
    dataset = tmp_path / "workspace" / "raw" / "Dataset001_Scan"
    # The same volumes again, in NIfTI files that hold names, as nnU-Net's users have them.
    for index, (image, _) in enumerate(phantoms):
        write_nifti(tmp_path / "images" / f"case{index}_0000.nii.gz", image)
    msd("check", 1, *place)
    msd("plan", 1, "--workers", 0, *place)
    msd("train", "supervised", 1, "--config", "3d", "--fold", 0, "--workers", 0, *QUICK, *place)
    (run,) = (tmp_path / "workspace" / "results").rglob("fold_0")
    for source in (tmp_path / "images", exported / "case0"):
        maps = ["--save-probabilities", "--save-uncertainty", "--save-members"]
        msd("predict", run, source, tmp_path / f"out_{source.name}", "--workers", 0, *maps, *place)
    msd("evaluate", tmp_path / "out_images", dataset, *place)
    msd("preview", 1, *place)
    msd("runs", *place)
    shutil.rmtree(exported)
    shutil.rmtree(tmp_path / "images")
    assert len(list((tmp_path / "out_images").glob("case*.nii.gz"))) == 3
    assert files_with_canary(tmp_path) == {}


@pytest.mark.fault("F102")
def test_a_dataset_whose_own_files_hold_names_is_used_without_passing_them_on(msd, phantoms, tmp_path) -> None:
    workspace = tmp_path / "workspace"
    for index, (image, label) in enumerate(phantoms):
        write_nifti(tmp_path / "vendor" / "img" / f"case{index}.nii.gz", image)
        write_nifti(tmp_path / "vendor" / "lab" / f"case{index}.nii.gz", label)
    words = ["--images", "img/*", "--labels", "lab/*", "--label-map", "1:organ", "--label-map", "2:nodule"]
    place = ["--workspace", workspace, "-vv"]
    msd("convert", "folder", tmp_path / "vendor", "--dataset", 1, "--name", "Scan", *words, *place)
    assert files_with_canary(workspace) == {}
    # In nnU-Net's layout nothing is converted: the images keep their headers, and nothing else gets them.
    dataset = workspace / "raw" / "Dataset001_Scan"
    for index, (image, label) in enumerate(phantoms):
        write_nifti(dataset / "imagesTr" / f"case{index}_0000.nii.gz", image)
        write_nifti(dataset / "labelsTr" / f"case{index}.nii.gz", label)
    msd("check", 1, "--json", *place)
    msd("plan", 1, "--workers", 0, *place)
    msd("preprocess", 1, "--config", "3d", "--workers", 0, *place)
    shutil.rmtree(dataset)
    assert files_with_canary(workspace) == {}


@pytest.mark.fault("F102")
def test_texts_of_photographs_stay_behind(msd, phantoms, tmp_path) -> None:
    for index, (image, label) in enumerate(phantoms[:2]):
        grey = np.clip(image[4], 0, 255).astype(np.uint8)
        write_png(tmp_path / "vendor" / "img" / f"case{index}.png", grey)
        write_png(tmp_path / "vendor" / "lab" / f"case{index}.png", (label[4] > 0).astype(np.uint8))
    words = ["--images", "img/*", "--labels", "lab/*", "--label-map", "1:organ"]
    place = ["--workspace", tmp_path / "workspace", "-vv"]
    msd("convert", "folder", tmp_path / "vendor", "--dataset", 1, "--name", "Photo", *words, *place)
    msd("check", 1, *place)
    msd("plan", 1, "--workers", 0, *place)
    assert len(list((tmp_path / "workspace").rglob("*.png"))) == 4
    assert files_with_canary(tmp_path / "workspace") == {}


def _lose_a_slice(folder: Path) -> None:
    (folder / "003.dcm").unlink()


def _cut_a_slice(folder: Path) -> None:
    (folder / "003.dcm").write_bytes((folder / "003.dcm").read_bytes()[:-100])


def _double_a_slice(folder: Path) -> None:
    shutil.copy(folder / "003.dcm", folder / "099.dcm")


@pytest.mark.parametrize("damage", [_lose_a_slice, _cut_a_slice, _double_a_slice])
def test_a_damaged_series_is_named_without_its_patient(msd, exported, tmp_path, damage) -> None:
    damage(exported / "case0")
    place = ["--workspace", tmp_path / "workspace", "-vv"]
    msd("convert", "dicom", exported, "--dataset", 1, "--name", "Scan", "--label-map", "1:a", *place, code=3)
    assert files_with_canary(tmp_path / "workspace") == {}


def _cut_short(content: bytearray) -> None:
    del content[-50:]


def _impossible_axes(content: bytearray) -> None:
    struct.pack_into("<h", content, 40, 9)


def _unknown_type(content: bytearray) -> None:
    struct.pack_into("<h", content, 70, 9999)


def _lying_extension(content: bytearray) -> None:
    struct.pack_into("<i", content, 352, 1 << 20)


def _no_number(content: bytearray) -> None:
    struct.pack_into("<f", content, 280, float("nan"))


@pytest.mark.fault("F102")
@pytest.mark.parametrize("damage", [_cut_short, _impossible_axes, _unknown_type, _lying_extension, _no_number])
def test_a_damaged_image_is_named_without_its_patient(msd, phantoms, tmp_path, damage) -> None:
    for kind, number in (("img", 0), ("lab", 1)):
        write_nifti(tmp_path / "vendor" / kind / "case0.nii", phantoms[0][number])
    broken = tmp_path / "vendor" / "img" / "case0.nii"
    content = bytearray(broken.read_bytes())
    damage(content)
    broken.write_bytes(content)
    words = ["--images", "img/*", "--labels", "lab/*", "--label-map", "1:organ", "--label-map", "2:nodule"]
    place = ["--workspace", tmp_path / "workspace", "-vv"]
    msd("convert", "folder", tmp_path / "vendor", "--dataset", 1, "--name", "Scan", *words, *place, code=3)
    assert files_with_canary(tmp_path / "workspace") == {}


@pytest.mark.parametrize("loud", [[], ["-v"]])
def test_a_fault_of_msd_itself_shows_no_patient(msd, exported, tmp_path, monkeypatch, loud) -> None:
    """With -v the traceback is shown: code and values that msd chose to say, no variables."""

    def fail(*_: object, **__: object) -> None:
        header = CANARY + "^IN^A^VARIABLE"
        raise RuntimeError(f"planted, {len(header)} letters")

    place = ["--workspace", tmp_path / "workspace", *loud]
    words = ["convert", "dicom", exported, "--dataset", 1, "--name", "Scan", "--label-map", "1:organ"]
    monkeypatch.setattr(dicom, "array_of", fail)
    assert msd(*words, *place, code=None) == 1
    monkeypatch.undo()
    monkeypatch.setattr(nifti, "_voxels", fail)
    assert msd(*words, *place, code=None) == 1
    assert files_with_canary(tmp_path / "workspace") == {}
