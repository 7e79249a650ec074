"""Bugs planted on purpose, each a line or two in a copy of the code: the tests that guard the place must notice.

Three places are tried, at which a mistake would lose or forge data in silence: the gate that images pass, the one
writer, and resuming. A bug whose lines are gone from the code fails here, too: plant it anew where they went.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("planted"), pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
GATE = (
    "tests/unit/imaging/test_nifti_reading.py",
    "truncated or announced or trailing or checksum or no_numbers or fewer",
)
WRITER = ("tests/unit/test_atomic.py", "")
CHECKPOINT = ("tests/unit/artifacts/test_checkpoint.py", "")
RESUME = ("tests/unit/training/test_resume.py", "stopped_twice")


@dataclass(frozen=True)
class Bug:
    """What is planted: `old` becomes `new` in `file`; `guard` is the test file that must fail, and its selection."""

    name: str
    file: str
    old: str
    new: str
    guard: tuple[str, str]

    def __str__(self) -> str:
        return self.name


BUGS = (
    Bug("short-volume-accepted", "imaging/inflating.py", "if end < expected_bytes:", "if end < 0:", GATE),
    Bug(
        "trailing-bytes-accepted",
        "imaging/inflating.py",
        "            position -= len(inflater.unused_data)\n",
        "            position = len(compressed)\n",
        GATE,
    ),
    Bug(
        "nan-accepted",
        "imaging/reading.py",
        'if array.dtype.kind != "f" or (np.isfinite(array.min()) and np.isfinite(array.max())):',
        'if array.dtype.kind != "f" or np.isfinite(np.nanmin(array)):',
        GATE,
    ),
    Bug(
        "checksum-ignored",
        "imaging/inflating.py",
        "    inflater = zlib.decompressobj(window_bits)\n    position = 0\n",
        "    inflater = zlib.decompressobj(-15 if window_bits == GZIP_WINDOW_BITS else window_bits)\n"
        "    compressed, position = (compressed[10:-8], 0) if window_bits == GZIP_WINDOW_BITS else (compressed, 0)\n",
        GATE,
    ),
    Bug(
        "renamed-before-it-is-flushed",
        "atomic.py",
        "        yield temporary\n        _flush(temporary)\n        temporary.replace(path)\n",
        "        yield temporary\n        temporary.replace(path)\n        _flush(path)\n",
        WRITER,
    ),
    Bug(
        "folder-not-flushed",
        "atomic.py",
        "        temporary.replace(path)\n        _flush(path.parent)\n",
        "        temporary.replace(path)\n",
        WRITER,
    ),
    Bug(
        "written-under-the-final-name",
        "atomic.py",
        "    temporary = hidden_name(path, PART_SUFFIX)\n    try:\n        _make_tidy",
        "    temporary = path\n    try:\n        _make_tidy",
        WRITER,
    ),
    Bug(
        "leftover-stays-after-a-failure",
        "atomic.py",
        "    except BaseException:\n        remove(temporary)\n        raise\n",
        "    except BaseException:\n        raise\n",
        WRITER,
    ),
    Bug(
        "damaged-checkpoint-trusted",
        "artifacts/checkpoint.py",
        '    _compare_digests(atomic.digest_of_file(weights), header["sha256"], str(weights))\n',
        "",
        CHECKPOINT,
    ),
    Bug(
        "optimiser-forgotten",
        "training/updater.py",
        '        load_optimiser_tensors(self._optimiser, self._parameters, checkpoint.part("optimiser"))\n',
        "",
        RESUME,
    ),
    Bug(
        "averages-forgotten",
        "training/updater.py",
        '            self._ema.load(checkpoint.part("ema"))\n',
        "            pass\n",
        RESUME,
    ),
    Bug(
        "batches-start-again",
        "training/stage_run.py",
        "self.outside.make_batches(self.counters.step)",
        "self.outside.make_batches(0)",
        RESUME,
    ),
)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, in which the package is found before the installed one."""
    copy = tmp_path_factory.mktemp("planted") / "checkout"
    copy.mkdir()
    without = shutil.ignore_patterns("__pycache__")
    for name in ("medsegdiff_cli", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=without)
    # As they are installed: below the package.
    for name in ("dataset_conversion", "plans"):
        shutil.copytree(ROOT / name, copy / "medsegdiff_cli" / name, ignore=without)
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def guarded(copy: Path, guard: tuple[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the guarding tests on the copy until one fails."""
    file, selection = guard
    flags = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not slow", "--tb=line", "-k", selection]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(copy)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *flags, file],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("guard", [GATE, WRITER, CHECKPOINT, RESUME], ids=lambda guard: Path(guard[0]).stem)
def test_without_a_bug_the_guards_are_content(copied, guard) -> None:
    outcome = guarded(copied, guard)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert " passed" in outcome.stdout


@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_the_guards_notice(copied, bug) -> None:
    file = copied / "medsegdiff_cli" / bug.file
    sound = file.read_text(encoding="utf-8")
    assert sound.count(bug.old) == 1, f"{bug.name}: {bug.file} has changed; plant the bug anew"
    file.write_text(sound.replace(bug.old, bug.new), encoding="utf-8")
    try:
        outcome = guarded(copied, bug.guard)
    finally:
        file.write_text(sound, encoding="utf-8")
    # 1 says that tests failed; anything else would be no verdict on the bug.
    assert outcome.returncode == 1, f"'{bug.name}' was not noticed\n{outcome.stdout}{outcome.stderr}"
    assert "FAILED" in outcome.stdout
    assert "SyntaxError" not in outcome.stdout
