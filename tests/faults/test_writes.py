"""One writer for everything: no product file writes past `atomic`, but for a short list with reasons."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("medsegdiff_cli", "dataset_conversion", "plans")
WRITING = {
    *("write_text", "write_bytes", "savefig", "savez", "savez_compressed", "savetxt", "tofile"),
    *("save_file", "save_model", "WriteImage", "imwrite", "imsave", "FileHandler", "copy2", "copyfile", "copytree"),
    *("move", "symlink_to", "touch", "NamedTemporaryFile", "mkstemp", "mkdtemp"),
    *("rename", "truncate", "ftruncate", "pwrite", "ImageFileWriter", "memmap"),
}
# Words that are methods of our own, too, unless they are called on these.
AMBIGUOUS = {"save": {"np", "numpy", "nib", "nibabel", "torch", "image"}, "to_csv": {"frame", "table"}}
STREAMS = {"BytesIO", "StringIO"}
# What may write otherwise, and why that loses nothing.
ALLOWED = {
    "medsegdiff_cli/atomic.py": "the one writer",
    "medsegdiff_cli/locks.py": "a lock's file says who holds it, to people",
    "medsegdiff_cli/log.py": "a log is appended to",
    "medsegdiff_cli/training/journal.py": "metrics.jsonl is appended to; resuming drops a line that is cut short",
    "medsegdiff_cli/training/figure.py": "draws to the staged name that the journal hands it",
    "medsegdiff_cli/imaging/itk.py": "writes to the staged name that `imaging.writing` hands it",
    "medsegdiff_cli/imaging/reading.py": "hands a palette's indices to the reader through a temporary folder",
    "dataset_conversion/dicom.py": "makes the series that its own contract test reads",
}


def writes_past_atomic(source: str) -> Iterator[str]:
    """Yield line and name of every call that writes a file by itself."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "medsegdiff_cli.atomic"
        for alias in node.names
    }
    harmless = {"atomic"} | staged_names(tree) | stream_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        given = {owner, *(argument.id for argument in node.args if isinstance(argument, ast.Name))}
        writes = name in WRITING or owner in AMBIGUOUS.get(name, ()) or opens_for_writing(node, name)
        if writes and not given & harmless and name not in imported:
            yield f"{node.lineno} {ast.unparse(function)}"


def opens_for_writing(node: ast.Call, name: str) -> bool:
    if name not in ("open", "fdopen"):
        return False
    words = [*node.args, *(keyword.value for keyword in node.keywords)]
    modes = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    flags = " ".join(ast.unparse(word) for word in words)
    return any(set(mode) & set("wax+") and set(mode) <= set("rwaxbt+") for mode in modes) or "O_CREAT" in flags


def staged_names(tree: ast.AST) -> set[str]:
    """Return the names bound by `with atomic.staged(...) as name`, and by archives that are opened on such a name."""
    found: set[str] = set()
    for item in (item for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items):
        if isinstance(item.context_expr, ast.Call) and isinstance(item.optional_vars, ast.Name):
            opened = ast.unparse(item.context_expr.func).split(".")[-1]
            given = {argument.id for argument in item.context_expr.args if isinstance(argument, ast.Name)}
            if opened in ("staged", "staged_stream") or (opened == "ZipFile" and given & found):
                found.add(item.optional_vars.id)
    return found


def stream_names(tree: ast.AST) -> set[str]:
    """Return the names of what is written in memory: assigned from BytesIO(), or parameters that are said to be it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            if ast.unparse(node.value.func).split(".")[-1] in STREAMS:
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.arg) and node.annotation is not None and "BytesIO" in ast.unparse(node.annotation):
            found.add(node.arg)
    return found


@pytest.mark.fault("F41", "F42", "F43")
def test_no_file_is_written_past_the_one_writer() -> None:
    found = {}
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))):
        name = str(path.relative_to(ROOT))
        calls = list(writes_past_atomic(path.read_text(encoding="utf-8")))
        if calls and name not in ALLOWED:
            found[name] = calls
    assert found == {}


def test_every_exception_is_still_one() -> None:
    assert [name for name in ALLOWED if not list(writes_past_atomic((ROOT / name).read_text(encoding="utf-8")))] == []


@pytest.mark.parametrize(
    "source",
    [
        "open(path, 'w')",
        "path.open('wb')",
        "path.open(mode='a')",
        "open(path, 'r+b')",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "path.write_text(text)",
        "path.write_bytes(content)",
        "np.save(path, array)",
        "numpy.savez(path, a=array)",
        "frame.to_csv(path)",
        "figure.savefig(path)",
        "save_file(tensors, path)",
        "sitk.WriteImage(image, name)",
        "shutil.copyfile(a, b)",
        "shutil.move(a, b)",
        "path.rename(other)",
        "path.touch()",
        "with atomic.staged(path) as temporary:\n    figure.savefig(path)",
    ],
)
def test_a_planted_write_is_found(source: str) -> None:
    assert len(list(writes_past_atomic(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "atomic.write_text(path, text)",
        "from medsegdiff_cli.atomic import write_json\nwrite_json(path, content)",
        "with atomic.staged(path) as temporary:\n    save_file(tensors, temporary)",
        "with atomic.staged_stream(path) as stream:\n    np.save(stream, array)",
        "with atomic.staged(path) as temporary, ZipFile(temporary, 'w') as archive:\n    archive.open('name', 'w')",
        "buffer = io.BytesIO()\nnp.savez(buffer, a=array)",
        "open(path)\npath.open('rb')\npath.open(encoding='utf-8')",
        "name.replace('a', 'b')",
    ],
)
def test_what_only_looks_like_writing_is_let_through(source: str) -> None:
    assert list(writes_past_atomic(source)) == []
