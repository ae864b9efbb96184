"""Frozen typed configs: presets in Python, overrides by flag, JSON to read back."""

import dataclasses
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

import pydantic
import tyro

from voxscale.errors import ConfigError

T = TypeVar("T")
Hash = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{12}$")]
"""What `config_hash` returns."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Make a class a config: a frozen, keyword-only dataclass that refuses unknown keys."""
    made = dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(cls)
    made.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return made


def require(ok: bool, name: str, condition: str, value: object, choices: Sequence[object] = ()) -> None:
    """Check one config value.

    Args:
        ok: Whether the value is allowed.
        name: Dotted name of the value.
        condition: What the value must be, to follow "must be".
        value: The value given.
        choices: Allowed values, if they can be listed.

    Raises:
        ConfigError: If `ok` is false.
    """
    if not ok:
        tail = f"; choose from {', '.join(map(str, choices))}" if choices else ""
        raise ConfigError(f"{name} must be {condition}, not {value!r}{tail}")


def to_dict(value: object) -> dict[str, Any]:
    """Turn a config into plain JSON values (tuples become lists, paths strings)."""
    return cast(dict[str, Any], _adapter(type(value)).dump_python(value, mode="json"))


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    """Made once, as that takes some hundred times as long as a use of it."""
    return pydantic.TypeAdapter(kind)


def from_dict(kind: type[T], values: object, where: str = "config") -> T:
    """Read a config back from plain values.

    Args:
        kind: The config class (a union of config classes works too).
        values: What `json.loads` returned.
        where: Name that starts every dotted key in an error.

    Raises:
        ConfigError: Naming the dotted key, the problem and the value found.
    """
    try:
        return _adapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join([where, *map(str, first["loc"])])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{key} is not valid: {first['msg']}, not {first['input']!r}{more}") from None


def config_hash(value: object) -> str:
    """Hash a config (or any JSON value) to 12 hexadecimal digits."""
    plain = to_dict(value) if dataclasses.is_dataclass(value) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def load_preset(spec: str) -> object:
    """Build the config of a preset such as `configs/pretrain.py:demo`.

    Raises:
        ConfigError: If the file or the function is not there; lists what is.
    """
    file, _, name = spec.partition(":")
    path = Path(file)
    require(path.suffix == ".py" and path.is_file(), "preset", "FILE.py:FUNCTION with a file that exists", spec)
    module_name = f"voxscale_preset_{path.stem}"
    found = importlib.util.spec_from_file_location(module_name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module
    found.loader.exec_module(module)
    functions: dict[str, Callable[[], object]] = {
        key: value
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module_name and not key.startswith("_")
    }
    require(name in functions, "preset", f"a function of {path.name}", name, sorted(functions))
    return functions[name]()


def parse(kind: type[T], preset: str | None, args: Sequence[str], prog: str) -> T:
    """Build a config from a preset and command-line overrides.

    Args:
        kind: The config class that the stage takes.
        preset: `FILE.py:FUNCTION`, or None to start from the defaults.
        args: Flags such as `--optim.lr 3e-4`.
        prog: Program name for the help text.

    Raises:
        ConfigError: If the preset makes another kind of config.
        SystemExit: With status 2 and a hint, on an unknown flag (from tyro).
    """
    default = None if preset is None else load_preset(preset)
    if default is not None and not isinstance(default, kind):
        raise ConfigError(f"preset must be one that makes a {kind.__name__}, not a {type(default).__name__}")
    if default is None:
        return tyro.cli(kind, args=list(args), prog=prog)
    # A union of configs keeps the preset's choice and shows its fields as flags.
    return tyro.cli(kind, default=default, args=list(args), prog=prog, config=(tyro.conf.AvoidSubcommands,))


def to_flags(value: object, prefix: str = "--") -> list[str]:
    """The command-line flags that `parse` would turn into this config, nested names joined by dots."""
    flags: list[str] = []
    for field in dataclasses.fields(cast(Any, value)):
        part = getattr(value, field.name)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(part):
            flags += to_flags(part, f"{name}.")
        elif isinstance(part, bool):
            flags.append(name if part else f"{prefix}no-{field.name.replace('_', '-')}")
        elif isinstance(part, tuple):
            flags += [name, *map(str, cast(tuple[object, ...], part))]
        else:
            flags += [name, str(part)]
    return flags


def save_json(value: object, path: Path) -> None:
    """Write a config as indented JSON (see `voxscale.files.write_text` for how)."""
    from voxscale.files import write_text  # files depends on errors only; kept late to keep config importable alone

    write_text(path, json.dumps(to_dict(value), indent=1, sort_keys=True) + "\n")


def load_json(kind: type[T], path: Path) -> T:
    """Read a config saved by `save_json`; errors name the file and the dotted key."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        # What the system says of a file holds its whole path, which may name a patient.
        told = error.strerror if isinstance(error, OSError) else "not valid JSON"
        raise ConfigError(f"{path.name} must be a readable JSON file, but: {told}") from None
    return from_dict(kind, values, path.stem)
