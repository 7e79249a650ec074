"""Write docs/reference/errors.md from errors.py; a test holds the page to what this returns."""

import inspect
from pathlib import Path

from medsegdiff_cli import errors

PAGE = Path(__file__).parent / "reference" / "errors.md"
HEAD = """# Errors and exit codes

This page is written by `make docs` from `medsegdiff_cli/errors.py`.

Every command ends with one of these exit codes. What went wrong stands on stderr in three lines: what (with the value),
where (file, key or case) and what to do. With `--json` the same three are in the one object on stdout:

```
{"schema_version": 1, "exit_code": 3, "error": {"what": "...", "where": "...", "fix": "..."}}
```

A script needs the exit code alone. Codes 4, 5, 7 and 130 keep what is finished, and the same command goes on from it.

| exit code | name | meaning | what to do |
| --- | --- | --- | --- |
"""
# The two codes that no class of a user's error stands for.
_OTHERS = {
    0: ("", "Done.", "Nothing."),
    1: ("", "A fault of msd itself.", "Run the command again with `-v` and report what it prints."),
}
_MARK = "To do: "


def errors_page() -> str:
    """Return the page's text: a row an exit code, ascending."""
    rows = dict(_OTHERS)
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.MsdError) and kind is not errors.MsdError:
            assert kind.exit_code not in rows, f"two errors have exit code {kind.exit_code}"
            rows[kind.exit_code] = (f"`{kind.__name__}`", *_meaning_and_advice(kind))
    return HEAD + "".join(f"| {code} | {' | '.join(rows[code])} |\n" for code in sorted(rows))


def _meaning_and_advice(kind: type[errors.MsdError]) -> tuple[str, str]:
    paragraphs = [" ".join(text.split()) for text in (inspect.getdoc(kind) or "").split("\n\n")]
    advice = [text.removeprefix(_MARK) for text in paragraphs if text.startswith(_MARK)]
    assert len(advice) == 1, f"the docstring of {kind.__name__} needs one paragraph that begins with '{_MARK}'"
    return paragraphs[0], advice[0][0].upper() + advice[0][1:]


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(errors_page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
