"""The documents keep up with the program: commands in them parse, links lead somewhere, every verb is explained."""

import re
import shlex
import typing
from itertools import pairwise, takewhile
from pathlib import Path

import pytest

from medsegdiff_cli.cli.app import all_commands
from medsegdiff_cli.methods.registry import METHODS, OBJECTIVES
from medsegdiff_cli.workflows.convert import available_formats
from medsegdiff_cli.workflows.pretraining import of_method, of_pretraining, pretraining_run_name
from medsegdiff_cli.workflows.recipes import apply_overrides, load_recipe, pretraining_choice, sections_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
# Their headers hold commands, too.
RECIPES = sorted((ROOT / "plans").glob("*.yaml"))
every_text = pytest.mark.parametrize("page", [*PAGES, *RECIPES], ids=lambda page: str(page.relative_to(ROOT)))
TRAININGS = ("pretrain", "train", "finetune")
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
    """Return the `msd ...` lines of a page's code blocks and inline code, or of comments; continued lines joined."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        comments = re.sub(r"\\\n# *", "", "\n".join(re.findall(r"^# .*", text, re.MULTILINE)))
        return [line[1:].strip() for line in comments.splitlines() if line[1:].strip().startswith("msd ")]
    text = text.replace("\\\n", " ")
    blocks = [line for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    inline = re.findall(r"`(msd [^`\n]+)`", text)
    return [line.split("  #")[0].strip() for line in (*blocks, *inline) if line.startswith("msd ")]


@every_text
def test_every_command_in_a_page_exists_with_its_options(page: Path) -> None:
    for line in commands_in(page):
        words = list(takewhile(lambda word: word != "|", shlex.split(line)[1:]))
        if words[0] in {"COMMAND", *STANDALONE}:
            continue
        name = next((name for name in (" ".join(words[:2]), words[0]) if name in OPTIONS), None)
        assert name, line
        flags = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert flags <= OPTIONS[name], line


@every_text
def test_every_setting_in_a_command_is_one_of_the_method(page: Path) -> None:
    for line in commands_in(page):
        words = list(takewhile(lambda word: word != "|", shlex.split(line)[1:]))
        if words[0] not in TRAININGS or len(words) == 1:
            continue
        values = {flag: value for flag, value in pairwise(words) if flag in ("--recipe", "--preset")}
        settings = dict(value.split("=", 1) for flag, value in pairwise(words) if flag == "--set" and "=" in value)
        recipe, preset = values.get("--recipe"), values.get("--preset", "recommended")
        for name in words[1].split("|"):
            if name not in {*METHODS, *OBJECTIVES}:  # a placeholder
                continue
            method = pretraining_run_name(name) if words[0] == "pretrain" else name
            sections = sections_of(method, load_recipe(recipe or method), preset)
            apply_overrides(sections, of_method(settings, method), method)
            if theirs := of_pretraining(settings, method):
                choice = pretraining_choice(method, recipe, preset)
                assert choice is not None, line
                apply_overrides(choice.sections(), theirs, choice.method)


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
