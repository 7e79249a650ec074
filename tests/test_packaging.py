"""The wheel holds what the tree holds, and puts nothing else into site-packages."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "medsegdiff_cli"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that no build/ folder of the checkout can leak into it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tree_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(target.glob("*.whl")))


def tree_files() -> list[str]:
    """Return every module, template and recipe of the tree, relative to its root."""
    patterns = [
        (PACKAGE, "*.py"),
        (PACKAGE, "*.jinja"),
        ("dataset_conversion", "*.py"),
        ("plans", "*.py"),
        ("plans", "*.yaml"),
    ]
    return sorted(str(path.relative_to(ROOT)) for folder, kind in patterns for path in (ROOT / folder).rglob(kind))


def installed_name(name: str) -> str:
    return name if name.startswith(f"{PACKAGE}/") else f"{PACKAGE}/{name}"


def test_the_wheel_holds_every_module_template_and_recipe_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == {installed_name(name) for name in tree_files()}


def test_no_generic_name_leaks_into_site_packages(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {PACKAGE}


def test_the_wheel_brings_its_licence_and_its_command(wheel: zipfile.ZipFile) -> None:
    names = {name.split(".dist-info/")[1]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert wheel.read(names["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
    assert b"msd = medsegdiff_cli.__main__:main" in wheel.read(names["entry_points.txt"])
    metadata = wheel.read(names["METADATA"]).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.10" in metadata


def test_every_pinned_version_satisfies_what_the_package_asks_for() -> None:
    """`constraints.txt` and the floors in pyproject.toml cannot drift apart."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    asked = [Requirement(text) for text in requires("medsegdiff-cli") or []]
    asked = [item for item in asked if item.marker is None or item.marker.evaluate({"extra": "test"})]
    assert {item.name for item in asked if canonicalize_name(item.name) not in versions} == set()
    assert [str(item) for item in asked if versions[canonicalize_name(item.name)] not in item.specifier] == []
