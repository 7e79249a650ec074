"""Documents on disk: JSON and YAML read with errors that name the file, the key and the nearest known key."""

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from medsegdiff_cli.errors import InputDataError, MsdError, UsageError, did_you_mean

Document = TypeVar("Document", bound=BaseModel)


class StrictModel(BaseModel):
    """Base of our documents: unknown keys are errors, values don't change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def read_json(path: Path, error: type[MsdError] = InputDataError) -> Any:
    """Return the content of a JSON file.

    Raises:
        MsdError: `error`, when the file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise error(f"{path.name} is missing", where=str(path.parent)) from None
    except OSError as problem:
        raise error(f"cannot be read ({problem.strerror})", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise error(f"not valid JSON ({problem})", where=str(path), fix="mend or recreate the file") from None


def read_yaml(path: Path, error: type[MsdError] = UsageError) -> Any:
    """Return the content of a YAML file (plain data only).

    Raises:
        MsdError: `error`, when the file is missing or not YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path.name} is missing", where=str(path.parent)) from None
    except OSError as problem:
        raise error(f"cannot be read ({problem.strerror})", where=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as problem:
        raise error(f"not valid YAML ({problem})", where=str(path), fix="mend or recreate the file") from None


def validate(model: type[Document], content: Any, where: str, error: type[MsdError] = UsageError) -> Document:
    """Return `content` as a `model`.

    Raises:
        MsdError: `error`, naming every wrong key at once, unknown ones with the nearest known key.
    """
    try:
        return model.model_validate(content)
    except ValidationError as problem:
        lines = [_explain(model, item) for item in problem.errors()]
        raise error("; ".join(lines), where=where, fix="mend the named keys") from None


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
