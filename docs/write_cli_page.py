"""Write docs/cli.md from the commands themselves; a test holds the page to what this returns."""

import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo

from medsegdiff_cli.cli.app import all_commands

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# Commands

This page is written by `make docs` from the help texts; `msd COMMAND --help` shows the same.
Every command also takes `--help` (`-h`).
"""


def cli_page() -> str:
    """Return the page's text: for each command its help and a table of arguments and options."""
    return HEAD + "".join(_section(name, function) for name, function in all_commands().items())


def _section(name: str, function: Callable[..., Any]) -> str:
    hints = typing.get_type_hints(function, include_extras=True)
    arguments, rows = [], []
    for parameter in inspect.signature(function).parameters.values():
        kind, info = hints[parameter.name].__origin__, hints[parameter.name].__metadata__[0]
        required = parameter.default is inspect.Parameter.empty
        if isinstance(info, ArgumentInfo):
            shown = (info.metavar or parameter.name.upper()).strip("[]")
            arguments.append(shown if required else f"[{shown}]")
            rows.append((f"`{shown}`", info.help))
        else:
            default = "Required." if required else _default_in_words(parameter.default)
            rows.append((_option(info, kind), f"{info.help} {default}".strip()))
    usage = " ".join(["msd", name, *arguments, "[OPTIONS]"])
    table = "".join("| {} | {} |\n".format(*(cell.replace("|", r"\|") for cell in row)) for row in rows)
    head = f"\n## msd {name}\n\n{inspect.getdoc(function)}\n\n```\n{usage}\n```\n"
    return f"{head}\n| argument or option | meaning |\n| --- | --- |\n{table}"


def _option(info: Any, kind: Any) -> str:
    # Inside Annotated typer keeps the first spelling where it otherwise keeps the default.
    names = ", ".join(f"`{name}`" for name in (info.default, *info.param_decls))
    bare = [member for member in typing.get_args(kind) if member is not type(None)] if _is_union(kind) else [kind]
    if bool in bare or info.count:
        return names
    member = (typing.get_args(bare[0]) or bare)[0]
    value = {int: "NUMBER", float: "NUMBER", Path: "PATH"}.get(member, "TEXT")
    return f"{names} {info.metavar or value}"


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union


def _default_in_words(default: Any) -> str:
    return "" if default in (None, False, True, "", 0) else f"Default: {default}."


if __name__ == "__main__":
    PAGE.write_text(cli_page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
