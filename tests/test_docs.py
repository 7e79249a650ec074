"""The documents keep up with the program: commands in them parse, links lead somewhere, every verb is explained."""

import re
import shlex
import typing
from itertools import takewhile
from pathlib import Path

import pytest

from medsegdiff_cli.cli.app import all_commands
from medsegdiff_cli.methods.registry import METHODS
from medsegdiff_cli.workflows.convert import available_formats

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
# Options that stand alone; all others take the next word.
STANDALONE = {"--help", "-h", "--version"}


def options_of_verbs() -> dict[str, set[str]]:
    """Return every spelling of every option, as the commands declare them."""
    found: dict[str, set[str]] = {}
    for name, function in all_commands().items():
        hints = typing.get_type_hints(function, include_extras=True)
        declared = [hint.__metadata__[0] for hint in hints.values() if hasattr(hint, "__metadata__")]
        spellings = [text for info in declared for text in (info.default, *(info.param_decls or ()))]
        split = [part for text in spellings if isinstance(text, str) for part in text.split("/")]
        found[name] = {part for part in split if part.startswith("-")} | STANDALONE
    return found


OPTIONS = options_of_verbs()


def commands_in(page: Path) -> list[str]:
    """Return the `msd ...` lines of the page's code blocks and inline code, continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = [line for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    inline = re.findall(r"`(msd [^`\n]+)`", text)
    return [line.split("  #")[0].strip() for line in (*blocks, *inline) if line.startswith("msd ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_a_page_exists_with_its_options(page: Path) -> None:
    for line in commands_in(page):
        words = list(takewhile(lambda word: word != "|", shlex.split(line)[1:]))
        if words[0] in {"COMMAND", *STANDALONE}:
            continue
        name = next((name for name in (" ".join(words[:2]), words[0]) if name in OPTIONS), None)
        assert name, line
        flags = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert flags <= OPTIONS[name], line


def test_every_link_leads_to_a_file() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_every_page_can_be_found_from_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def test_every_method_has_a_page_and_every_format_is_described() -> None:
    assert {name for name in METHODS if not (ROOT / "docs" / "methods" / f"{name}.md").is_file()} == set()
    datasets = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert {name for name in available_formats() if f"| `{name}` |" not in datasets} == set()


def test_the_readme_tells_the_two_names_apart_in_its_first_line() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[0]
    assert "`msd` is this tool" in first
    assert "Medical Segmentation Decathlon is called `decathlon` here" in first


def test_the_readme_lists_every_exit_code() -> None:
    from medsegdiff_cli import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MsdError)]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {kind.exit_code for kind in kinds if f"| {kind.exit_code} |" not in readme} == set()


def test_every_proof_that_the_security_page_names_is_there() -> None:
    proofs = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(proofs) > 20
    for file, test in proofs:
        assert f"def {test or 'test_'}" in (ROOT / file).read_text(encoding="utf-8"), (file, test)
