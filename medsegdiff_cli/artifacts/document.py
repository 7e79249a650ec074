"""Documents on disk: JSON and YAML read with errors that name the file, the key and the nearest known key."""

import os
import stat
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from medsegdiff_cli.artifacts.plain_data import (
    LARGEST_JSON_BYTES,
    LARGEST_YAML_BYTES,
    NotPlainData,
    parse_json,
    parse_yaml,
)
from medsegdiff_cli.errors import InputDataError, MsdError, UsageError, did_you_mean, reading_error

Document = TypeVar("Document", bound=BaseModel)


class StrictModel(BaseModel):
    """Base of our documents: unknown keys are errors, values don't change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def read_json(path: Path, error: type[MsdError] = InputDataError) -> Any:
    """Return the content of a JSON file.

    Raises:
        MsdError: `error`, when the file is missing, not JSON or beyond the limits of `plain_data`.
    """
    return parse(_content_of(Path(path), LARGEST_JSON_BYTES, error), "JSON", str(path), error)


def read_yaml(path: Path, error: type[MsdError] = UsageError) -> Any:
    """Return the content of a YAML file (plain data only).

    Raises:
        MsdError: `error`, when the file is missing, not YAML or beyond the limits of `plain_data`.
    """
    return parse(_content_of(Path(path), LARGEST_YAML_BYTES, error), "YAML", str(path), error)


def parse(content: bytes, form: Literal["JSON", "YAML"], where: str, error: type[MsdError]) -> Any:
    """Return the content of a document that was read from `where`.

    Raises:
        MsdError: `error`, when it is not what `form` says or beyond the limits of `plain_data`.
    """
    try:
        return parse_json(content) if form == "JSON" else parse_yaml(content)
    except NotPlainData as problem:
        raise error(f"not valid {form} ({problem})", where=where, fix="mend or recreate the file") from None


def _content_of(path: Path, largest_bytes: int, error: type[MsdError]) -> bytes:
    """Return a file's bytes, one more than the limit at most: the parser then says that there are too many."""
    try:
        with path.open("rb") as stream:
            known = os.fstat(stream.fileno())
            # Python sets aside what is asked for. A pipe does not know its size.
            most = min(largest_bytes, known.st_size) if stat.S_ISREG(known.st_mode) else largest_bytes
            return stream.read(most + 1)
    except FileNotFoundError:
        raise error(f"{path.name} is missing", where=str(path.parent)) from None
    except OSError as problem:
        raise reading_error(problem, str(path), error) from None


def validate(model: type[Document], content: Any, where: str, error: type[MsdError] = UsageError) -> Document:
    """Return `content` as a `model`.

    Raises:
        MsdError: `error`, naming every wrong key at once, unknown ones with the nearest known key.
        UsageError: a newer msd wrote it, with keys that this one may not know.
    """
    refuse_newer(content, "schema_version", _default_of(model, "schema_version"), where)
    try:
        return model.model_validate(content)
    except ValidationError as problem:
        lines = [_explain(model, item) for item in problem.errors()]
        raise error("; ".join(lines), where=where, fix="mend the named keys") from None


def refuse_newer(content: Any, key: str, known: Any, where: str) -> None:
    """Refuse a document whose format version is newer than the `known` one, before its other keys are looked at.

    Raises:
        UsageError: it is.
    """
    version = content.get(key) if isinstance(content, dict) else None
    if isinstance(version, int) and isinstance(known, int) and version > known:
        raise UsageError(f"written by a newer msd ({key} {version}; known: {known})", where=where, fix="upgrade msd")


def _default_of(model: type[BaseModel], key: str) -> Any:
    field = model.model_fields.get(key)
    return None if field is None else field.default


def _explain(model: type[BaseModel], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "(whole document)"
    if item["type"] == "extra_forbidden":
        return f"unknown key '{key}': {did_you_mean(str(item['loc'][-1]), _known_keys(model, item['loc'][:-1]))}"
    given = "" if item["type"] == "missing" else f" (given: {item.get('input')!r:.80})"
    return f"{key}: {item['msg'].lower()}{given}"


def _known_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Return the keys that are legal at `path` inside `model`, looking through containers and unions."""
    models = [model]
    for part in path:
        inner = [field for m in models if (field := m.model_fields.get(str(part)))]
        if inner:
            models = [m for field in inner for m in _models_in(field.annotation)]
    return [name for m in models for name in m.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]
