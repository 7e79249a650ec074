"""Installing where there is no network: what `make wheelhouse` collects is enough for pip alone.

The wheels of the dependencies (gigabytes) are not collected here: msd's own wheel is, and the dependencies of this
environment stand in for theirs.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NO_NETWORK = {"PIP_INDEX_URL": "http://192.0.2.1/", "PIP_NO_INPUT": "1", "http_proxy": "http://192.0.2.1:1/"}


def run(*words: object, **settings: object) -> str:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=280, check=False, **settings
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheelhouse_is_pinned_and_the_readme_says_how_to_install_from_it() -> None:
    words = run("make", "-n", "wheelhouse", f"VENV={sys.prefix}", cwd=ROOT)
    assert re.search(r"pip wheel +-c constraints.txt --wheel-dir wheelhouse \.", words)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install --no-index --find-links wheelhouse medsegdiff-cli" in readme
    assert "wheelhouse/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_msd_installs_and_starts_without_an_index(tmp_path: Path) -> None:
    source, house, place = tmp_path / "source", tmp_path / "wheelhouse", tmp_path / "venv"
    left_out = shutil.ignore_patterns(
        ".*", "__pycache__", "*.egg-info", "build", "msd_workspace", "tests", "wheelhouse"
    )
    shutil.copytree(ROOT, source, ignore=left_out)
    flags = "PIP_FLAGS=--no-deps --no-build-isolation --no-index"
    environment = {**os.environ, **NO_NETWORK}
    run("make", "wheelhouse", f"VENV={sys.prefix}", flags, f"WHEELHOUSE={house}", cwd=source, env=environment)
    (wheel,) = house.glob("*.whl")
    assert wheel.name.startswith("medsegdiff_cli-")
    venv.create(place, symlinks=True)
    words = ["install", "--no-index", "--find-links", house, "--no-deps", "medsegdiff-cli"]
    run(sys.executable, "-m", "pip", "--python", place / "bin" / "python", *words, env=environment, cwd=tmp_path)
    # Dependencies from here, msd from there: a path does not carry this environment's editable install along.
    elsewhere = {**environment, "PYTHONPATH": sysconfig.get_paths()["purelib"]}
    shown = run(place / "bin" / "msd", "--version", env=elsewhere, cwd=tmp_path)
    assert re.fullmatch(r"msd \d+\.\d+\.\d+\n", shown)
    where = "import medsegdiff_cli as a, medsegdiff_cli.dataset_conversion as b; print(a.__file__, b.__file__)"
    found = run(place / "bin" / "python", "-c", where, env=elsewhere, cwd=tmp_path).split()
    assert len(found) == 2
    assert all(str(place) in path for path in found)
    assert "supervised" in run(place / "bin" / "msd", "methods", "--json", env=elsewhere, cwd=tmp_path)
