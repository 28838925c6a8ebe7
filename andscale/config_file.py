"""A run's config: TOML and ``section.key=value`` in, one line of what is wrong out."""

import copy
import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from andscale.config import RunConfig
from andscale.errors import UsageError
from andscale.store.files import read_record_bytes

_PACKAGED = Path(__file__).resolve().parent / "configs"
"""``configs/`` of the repository: by a link in a checkout, as files in a wheel."""


def packaged_configs() -> dict[str, Path]:
    """The configs that come with the package, by name: ``fashion_mnist_demo`` and the rows of the paper."""
    return {path.stem: path for path in sorted(_PACKAGED.glob("*.toml"))}


def find_config(given: Path) -> Path:
    """The file that ``--config`` means: a path, or the name of a config that comes with the package.

    Args:
        given: a file; where there is none, ``NAME``, ``NAME.toml`` or ``configs/NAME.toml``.

    Raises:
        UsageError: no such file, and no such name; the names are listed.
    """
    if given.exists() and not given.is_dir():
        return given
    known = packaged_configs()
    if given.parent in (Path(), Path("configs")) and given.name.removesuffix(".toml") in known:
        return known[given.name.removesuffix(".toml")]
    raise UsageError(f"no config file {given}, nor does the package have one of that name: {', '.join(known)}")


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a TOML file into a RunConfig, ``section.key=value`` overrides on top.

    Args:
        path: the file, or the name of a config that comes with the package, see ``find_config``.
        overrides: settings that go before those of the file.

    Raises:
        UsageError: no such file, not TOML, an unknown key (the valid ones are listed), a value out of range.
    """
    path = find_config(path)
    try:
        values = tomllib.loads(read_record_bytes(path).decode())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError, numbers of endless digits
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    return build_config(apply_overrides(values, overrides or []), str(path))


def build_config(values: dict[str, Any], where: str) -> RunConfig:
    """Validate plain values; ``where`` names their origin in errors."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from None


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """``values`` with each ``section.key=value`` set; a value is read as TOML, or else as a string.

    Raises:
        UsageError: an override without ``=`` or with an empty name.
    """
    result = copy.deepcopy(values)
    for override in overrides:
        name, equals, text = override.partition("=")
        *sections, key = name.strip().split(".")
        if not equals or not key or not all(sections):
            raise UsageError(f"--set {override!r} is not of the form section.key=value")
        target = result
        for section in sections:
            if target.get(section) is None:  # a table that a recorded config leaves out
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                raise UsageError(f"--set {override!r}: {section!r} is not a section")
        target[key] = _parse_value(text.strip())
    return result


def migrate(values: dict[str, Any]) -> dict[str, Any]:
    """A recorded config as today's sections have it: partition, account and QoS once stood in ``[resources]``."""
    result = copy.deepcopy(values)
    resources = result.get("resources", {})
    moved = {name: resources.pop(name) for name in ("partition", "account", "qos") if name in resources}
    if moved:
        result["slurm"] = moved | result.get("slurm", {})
    return result


def config_differences(old: RunConfig, new: RunConfig) -> list[str]:
    """``section.key: old -> new`` for every setting that decides the results and differs."""
    before, after = flatten(old.scientific_record()), flatten(new.scientific_record())
    return [
        f"{key}: {_show(before.get(key))} -> {_show(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _parse_value(text: str) -> Any:
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def flatten(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as ``section.key`` -> value."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _show(value: Any) -> str:
    return json.dumps(value)


def _explain(error: Any) -> str:
    """One pydantic error as 'section.key: what is wrong'."""
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        *sections, _ = error["loc"]
        section: type[BaseModel] = RunConfig
        for name in sections:
            section = section.model_fields[str(name)].annotation  # type: ignore[assignment]
        return f"unknown key {location}; valid here: {', '.join(sorted(section.model_fields))}"
    if error["type"] == "missing":
        return f"{location} is missing"
    message: str = error["msg"].removeprefix("Value error, ")
    if not location:
        return message
    return f"{location} = {_show(error['input']) if _is_plain(error['input']) else '...'}: {message}"


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, type(None)))
