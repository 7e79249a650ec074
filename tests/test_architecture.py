"""The house rules, read from the syntax trees: who imports whom, how long a file is, what no file may do.

Layers, from the ground up. A room imports from lower layers and from itself; rooms of one layer never import each
other, except on the ground, whose files serve everyone.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "medsegdiff_cli"
LAYERS = (
    {PACKAGE, "errors", "paths", "log", "atomic", "leftovers", "locks", "workers"},
    {"artifacts"},
    {"imaging", "diffusion", "networks", "metrics", "losses", "phantoms"},
    {"methods"},
    {"inference"},
    {
        "fingerprinting",
        "planning",
        "preprocessing",
        "batching",
        "training",
        "prediction",
        "evaluation",
        "reporting",
        "checking",
    },
    {"workflows"},
    {"cli"},
    {"__main__"},
)
TOOLBOXES = LAYERS[2]
# Installed as sub-packages, laid out beside the package; the core finds what is in them through importlib.
BESIDE = {"dataset_conversion": LAYERS[0] | LAYERS[1] | LAYERS[2], "plans": set()}
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "os.system", "os.popen"}
VAGUE_NAMES = {"utils", "helpers", "common", "misc"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


PRODUCT = python_files(PACKAGE, *BESIDE)
EVERYTHING = PRODUCT + python_files("tests", "docs")


def dotted_name(path: Path) -> str:
    """`dataset_conversion/folder.py` -> `medsegdiff_cli.dataset_conversion.folder`, as it is installed."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == PACKAGE else (PACKAGE, *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """`medsegdiff_cli.imaging.crop` -> `imaging`; the package itself is a room of the ground floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def allowed_rooms(room: str) -> set[str]:
    if room in BESIDE:
        return BESIDE[room] | {room}
    level = next(number for number, rooms in enumerate(LAYERS) if room in rooms)
    if level == 0:
        return LAYERS[0]
    below = LAYERS[0] if room in TOOLBOXES else set().union(*LAYERS[:level])
    return below | {room}


def imported_modules(tree: ast.AST, module: str, is_package: bool, known: set[str]) -> Iterator[tuple[int, str]]:
    """Yield line and full name of each import, also `from package import module`, relative, and by a literal name."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in known or base == PACKAGE else base
        elif isinstance(node, ast.Call) and _last_name(node.func) in {"import_module", "__import__"} and node.args:
            name = _literal_start(node.args[0])
            if name and not re.match(rf"{PACKAGE}\.({'|'.join(BESIDE)})\b", name):
                yield node.lineno, name


def _last_name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _literal_start(argument: ast.expr) -> str:
    if isinstance(argument, ast.JoinedStr) and argument.values:
        argument = argument.values[0]
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else ""


def import_violations(source: str, module: str, is_package: bool = False, known: set[str] | None = None) -> list[str]:
    room, found = room_of(module), []
    for line, name in imported_modules(ast.parse(source), module, is_package, known or set()):
        if name.split(".")[0] in BESIDE:
            found.append(f"{module}:{line} imports {name} by the name it has in the checkout only")
        elif name.split(".")[0] == PACKAGE:
            target = room_of(name)
            is_version = name in {PACKAGE, f"{PACKAGE}.__version__"}
            if not is_version and target not in allowed_rooms(room):
                found.append(f"{module}:{line} ({room}) imports {name} ({target})")
    return found


def forbidden_things(source: str) -> list[str]:
    """Return what is not safe, or not finished, in a source file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            found += [f"{line} imports {a.name}" for a in node.names if a.name.split(".")[0] in PICKLERS]
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".")[0]
            names = {f"{base}.{alias.name}" for alias in node.names}
            found += [f"{line} imports {name}" for name in names if base in PICKLERS or name in FORBIDDEN_CALLS]
        elif isinstance(node, ast.Attribute) and node.attr == "extractall":
            found.append(f"{line} extractall")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN_CALLS:
            found.append(f"{line} {ast.unparse(node)}")
        elif isinstance(node, ast.Call) and _last_name(node.func) == "read_text" and not (node.args or node.keywords):
            # SimpleITK's DICOM code can leave the process in the "C" locale: then the default is ASCII.
            found.append(f"{line} read_text without encoding")
        elif isinstance(node, ast.Name) and node.id in {"eval", "exec", "NotImplementedError"}:
            found.append(f"{line} {node.id}")
        elif isinstance(node, ast.keyword) and node.arg in {"shell", "allow_pickle"}:
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.append(f"{node.value.lineno} {node.arg}=")
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{line} bare except")
    found += [
        f"{n} {text.strip()}" for n, text in enumerate(source.splitlines(), 1) if re.search(r"#.*\b(TODO|FIXME)", text)
    ]
    return found


def undocumented(tree: ast.Module) -> list[str]:
    """Return public modules, classes, functions and methods without a docstring."""
    found = [] if ast.get_docstring(tree) else ["module"]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            inner = node.body if isinstance(node, ast.ClassDef) else []
            methods = [m for m in inner if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
            found += [item.name for item in (node, *methods) if not ast.get_docstring(item)]
    return found


KNOWN = {dotted_name(path) for path in PRODUCT}


def test_every_import_points_down_or_stays_in_its_room() -> None:
    violations = []
    for path in PRODUCT:
        source = path.read_text(encoding="utf-8")
        violations += import_violations(source, dotted_name(path), path.name == "__init__.py", KNOWN)
    assert violations == []


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(name) for name in KNOWN}
    placed = set().union(*LAYERS) | set(BESIDE)
    assert rooms - placed == set()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("imaging.crop", "from medsegdiff_cli.metrics.overlap import dice"),
        ("imaging.crop", "from medsegdiff_cli import artifacts"),
        ("imaging.crop", "def f():\n    import medsegdiff_cli.cli.app"),
        ("imaging.crop", "from ..methods import base"),
        ("imaging.crop", "from .. import methods"),
        ("imaging.crop", "if TYPE_CHECKING:\n    from medsegdiff_cli.training.loop import train"),
        ("losses", "from medsegdiff_cli.networks import layers"),
        ("artifacts.plan", "from medsegdiff_cli.imaging.crop import crop"),
        ("training.loop", "from medsegdiff_cli.prediction.model import load"),
        ("workflows.train", "from medsegdiff_cli import cli"),
        ("workflows.train", "import importlib\nimportlib.import_module('medsegdiff_cli.cli.app')"),
        ("workflows.train", "from importlib import import_module as m\nfrom medsegdiff_cli.cli import app"),
        ("workflows.convert", "from medsegdiff_cli.dataset_conversion import folder"),
        ("workflows.convert", "import dataset_conversion.folder"),
        ("workflows.recipes", "import medsegdiff_cli.plans"),
        ("dataset_conversion.folder", "from medsegdiff_cli.planning import planner"),
        ("dataset_conversion.folder", "from ..training import loop"),
        ("dataset_conversion.folder", "from dataset_conversion import contract"),
        ("atomic", "from medsegdiff_cli.artifacts import plan"),
        ("cli.app", "from medsegdiff_cli import __main__"),
    ],
)
def test_a_planted_import_upwards_is_found(module: str, source: str) -> None:
    assert len(import_violations(source, f"{PACKAGE}.{module}", known=KNOWN)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("imaging.crop", "from medsegdiff_cli.errors import InputDataError"),
        ("imaging.crop", "from . import image\nfrom .image import Image\nimport numpy"),
        ("training.loop", "from medsegdiff_cli import __version__\nfrom medsegdiff_cli.inference import windows"),
        ("dataset_conversion.folder", "from .contract import X\nfrom medsegdiff_cli.imaging import reading"),
        ("workflows.convert", "import_module(f'medsegdiff_cli.dataset_conversion.{name}')"),
        ("__main__", "from medsegdiff_cli.cli.app import app"),
    ],
)
def test_an_import_downwards_is_let_through(module: str, source: str) -> None:
    assert import_violations(source, f"{PACKAGE}.{module}", known=KNOWN) == []


def test_no_product_file_holds_anything_forbidden() -> None:
    found = {str(path.relative_to(ROOT)): forbidden_things(path.read_text(encoding="utf-8")) for path in PRODUCT}
    assert {name: things for name, things in found.items() if things} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "x = torch.load(path)",
        "from torch import load",
        "archive.extractall(folder)",
        "yaml.load(text, Loader)",
        "eval(text)",
        "exec(text)",
        "run(words, shell=True)",
        "np.load(path, allow_pickle=flag)",
        "raise NotImplementedError",
        "path.read_text()",
        "try:\n    f()\nexcept:\n    pass",
        "x = 1  # TO" + "DO later",
    ],
)
def test_a_planted_forbidden_thing_is_found(source: str) -> None:
    assert len(forbidden_things(source)) == 1


def test_what_only_looks_forbidden_is_let_through() -> None:
    assert forbidden_things("model.eval()\nyaml.safe_load(text)\nnp.load(p, allow_pickle=False)\nre.compile('x')") == []


def test_every_public_name_is_documented() -> None:
    found = {str(path.relative_to(ROOT)): undocumented(ast.parse(path.read_text(encoding="utf-8"))) for path in PRODUCT}
    assert {name: names for name, names in found.items() if names} == {}


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in EVERYTHING}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_a_page() -> None:
    """Docstrings do not count, nor do the commands of `cli`: an option takes two lines and hides no logic."""
    too_long = {}
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and path.parent.name != "cli":
                lines = (node.end_lineno or 0) - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
                if lines > MAX_FUNCTION_LINES:
                    too_long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert too_long == {}


def test_every_file_is_named_after_what_is_in_it() -> None:
    assert [path for path in EVERYTHING if path.stem in VAGUE_NAMES] == []


def test_test_files_need_no_package_to_be_told_apart() -> None:
    names = Counter(path.name for path in python_files("tests") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_no_file_speaks_of_one_machine() -> None:
    """Home folders, local package indexes and registry hosts belong to whoever runs msd."""
    pattern = re.compile(r"(?<![\w.~$)}>])/(home|root|work|opt|Users)/\w|pypi\.|pythonhosted|file://")
    texts = [p for p in ROOT.iterdir() if p.is_file() and p.name not in {".git", ".coverage"}]
    texts += [
        p for folder in (PACKAGE, *BESIDE, "tests", "docs", ".ci") for p in (ROOT / folder).rglob("*") if p.is_file()
    ]
    found = []
    for path in texts:
        if "__pycache__" in path.parts or path == Path(__file__).resolve() or path.suffix in {".png", ".part"}:
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(lines, 1) if pattern.search(line)]
    assert found == []
