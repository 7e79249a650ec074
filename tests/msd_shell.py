"""What tests of whole commands share: running `msd` in this process, and sources of seeded phantoms on disk."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from typer.testing import CliRunner

from medsegdiff_cli.cli.app import app
from medsegdiff_cli.workflows.phantoms import PhantomSettings, make_phantom

# Seconds instead of minutes, but long enough for predictions that are neither empty nor full.
_SETTINGS = {
    "steps": 20,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "validate_every_steps": 0,
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "ema_decay": 0.5,
}
QUICK = ["--scale", "tiny", "--workers", "0"]
QUICK += [word for key, value in _SETTINGS.items() for word in ("--set", f"{key}={value}")]
MAPS = ["--save-probabilities", "--save-uncertainty", "--save-members"]

# A rotation by 20 degrees about z and 10 degrees about x: no axis of the image is parallel to the patient's.
_A, _B = np.radians(20), np.radians(10)
OBLIQUE = np.array([[np.cos(_A), -np.sin(_A), 0], [np.sin(_A), np.cos(_A), 0], [0, 0, 1]]) @ np.array(
    [[1, 0, 0], [0, np.cos(_B), -np.sin(_B)], [0, np.sin(_B), np.cos(_B)]]
)


@dataclass(frozen=True)
class Outcome:
    """Exit code and what stood on both streams."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.stdout)


def msd(*words: object) -> Outcome:
    """Run `msd WORDS...` in this process; it may fail, but not fall over."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.stderr
    assert "internal error" not in result.stderr
    return Outcome(result.exit_code, result.stdout, result.stderr)


def done(*words: object) -> Outcome:
    """Run `msd WORDS...`, which must succeed."""
    outcome = msd(*words)
    assert outcome.code == 0, f"msd {' '.join(map(str, words))}\n{outcome.stdout}\n{outcome.stderr}"
    return outcome


def trained(workspace: Path, dataset: object, *words: object) -> Path:
    """Train `supervised` quickly and return the fold's folder."""
    return Path(done("train", "supervised", dataset, "--workspace", workspace, *QUICK, "--json", *words).json["run"])


def write_volume(path: Path, array: np.ndarray, spacing_xyz=(1.0, 1.0, 2.0), direction=None, origin=(0.0, 0.0, 0.0)):
    """Write (z, y, x) voxels with SimpleITK, so that no writer of ours vouches for itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing_xyz)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(np.asarray(direction).ravel().tolist())
    SimpleITK.WriteImage(image, str(path))


def write_oblique_source(folder: Path, n: int, labelled: int, seed: int = 0) -> Path:
    """Write `img/case_N.nii.gz` and `lab/case_N.nii.gz` on oblique, anisotropic grids of differing shape."""
    settings = PhantomSettings(shape=(16, 24, 20), difficulty=0.2, seed=seed)
    for index in range(n):
        phantom = make_phantom(index, settings)
        place = {"direction": OBLIQUE, "origin": (-12.5 + index, 30.25, 7.0)}
        write_volume(folder / "img" / f"case_{index}.nii.gz", phantom.image.array[0].astype(np.int16), **place)
        if index < labelled:
            write_volume(folder / "lab" / f"case_{index}.nii.gz", phantom.label, **place)
    return folder


def write_dataset(workspace: Path, dataset: int, name: str, content: dict[str, Any]) -> Path:
    """Create `raw/DatasetXXX_NAME/dataset.json`, as a user of nnU-Net would have it, and return the folder."""
    folder = workspace / "raw" / f"Dataset{dataset:03d}_{name}"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "name": name, **content}))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by relative name, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def images_only(folder: Path) -> dict[str, bytes]:
    """Return the image files of a prediction folder: label maps, probabilities, uncertainty, members."""
    return {name: content for name, content in tree(folder).items() if name.endswith((".nii.gz", ".png"))}


def voxels_of(path: Path) -> np.ndarray:
    """Return the voxels (z, y, x) of an image, read with SimpleITK."""
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    """Return the label maps of a folder of NIfTI files by case."""
    return {path.name.removesuffix(".nii.gz"): voxels_of(path) for path in sorted(folder.glob("*.nii.gz"))}
