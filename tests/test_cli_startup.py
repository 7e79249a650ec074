"""The command line before any work starts: what it imports, how it helps, how it fails."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from medsegdiff_cli import __version__
from medsegdiff_cli.cli.app import all_commands, app

HEAVY = ("torch", "numpy", "scipy", "SimpleITK", "diffusers", "monai", "matplotlib", "nibabel", "yaml")
VERBS = list(all_commands())
DOCS = Path(__file__).resolve().parents[1] / "docs"

# Runs one command line after the other in a process of its own and prints which heavy modules that brought in.
PROBE = """
import json, sys
from medsegdiff_cli.__main__ import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["msd", *words]
    try:
        main()
    except SystemExit as end:
        assert end.code in (0, None), (words, end.code)
print("\\nHEAVY", [name for name in json.loads(%r) if name in sys.modules])
"""


def run_msd(*words: str, workspace: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    if workspace:
        environment["MSD_WORKSPACE"] = str(workspace)
    command = [sys.executable, "-m", "medsegdiff_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def imported_by(command_lines: list[list[str]], modules: tuple[str, ...]) -> str:
    command = [sys.executable, "-c", PROBE % json.dumps(modules), json.dumps(command_lines)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_no_help_imports_anything_heavy() -> None:
    help_of_all = [["--help"], *([*verb.split(), "--help"] for verb in VERBS), ["bundle", "--help"]]
    assert imported_by(help_of_all, HEAVY) == "HEAVY []"


def test_the_version_is_answered_before_typer_is_imported() -> None:
    assert imported_by([["--version"]], (*HEAVY, "typer", "rich")) == "HEAVY []"


def test_the_probe_sees_a_heavy_import() -> None:
    assert imported_by([["--version"]], ("json",)) == "HEAVY ['json']"


@pytest.mark.parametrize("verb", VERBS)
def test_each_help_shows_an_example(verb: str) -> None:
    for flag in ("--help", "-h"):
        result = CliRunner().invoke(app, [*verb.split(), flag], terminal_width=300)
        assert result.exit_code == 0
        assert f"Example: msd {verb}" in " ".join(result.output.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_speaks_json_and_can_be_quiet(verb: str) -> None:
    text = CliRunner().invoke(app, [*verb.split(), "--help"], terminal_width=300).output
    assert all(flag in text for flag in ("--json", "--quiet", "-q", "--verbose", "-v"))


def test_the_version_is_one_line() -> None:
    done = run_msd("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"msd {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["trian"], "train"),
        (["train", "--devise", "cpu"], "--device"),
        (["evaluate", "a", "b", "--grdi", "native"], "--grid"),
        (["convert", "--labl-map", "1:a"], "--label-map"),
    ],
)
def test_an_unknown_word_is_a_usage_error_with_the_nearest_match(words: list[str], nearest: str) -> None:
    result = CliRunner().invoke(app, words, terminal_width=300)
    assert result.exit_code == 2
    assert nearest in result.output


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["check", "99"], 2, "no dataset '99'"),
        (["convert", "nnunett", ".", "--dataset", "1", "--name", "A"], 2, "did you mean 'nnunet'?"),
        (["convert", "nnunet", "no/such/folder", "--dataset", "1", "--name", "A"], 3, "no/such/folder"),
        (["convert", "nnunet", ".", "--dataset", "1000", "--name", "A"], 2, "1000"),
        (["doctor", "--require", "free=1000000G"], 4, "free"),
        (["train", "supervised", "99", "--max-time", "soon"], 2, "'soon'"),
    ],
)
def test_a_users_error_has_its_exit_code_and_says_what_and_what_to_do(
    words: list[str], code: int, what: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, words, env={"MSD_WORKSPACE": str(tmp_path)})
    assert result.exit_code == code, result.stderr
    assert what in result.stderr
    assert "to do:" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == "" or words[0] == "doctor"


def test_with_json_an_error_is_one_object_on_stdout(tmp_path: Path) -> None:
    done = run_msd("check", "99", "--json", workspace=tmp_path)
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert (answer["exit_code"], answer["error"]["what"]) == (2, "no dataset '99'")


def test_looking_something_up_leaves_no_folder_behind(tmp_path: Path) -> None:
    for words in (["check", "99"], ["plan", "99"], ["runs"]):
        CliRunner().invoke(app, words, env={"MSD_WORKSPACE": str(tmp_path / "workspace")})
    assert list(tmp_path.iterdir()) == []


def _page_writer(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    """After a change of an option: `make docs`."""
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == _page_writer("write_cli_page").cli_page()


def test_the_page_of_errors_is_what_the_errors_say() -> None:
    """After a change of errors.py: `make docs`."""
    page = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    assert page == _page_writer("write_errors_page").errors_page()
