"""From what TOML and command lines give to checked, frozen dataclasses; knows none of the settings themselves."""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from typing import Any, Literal


class ConfigError(ValueError):
    """A setting that cannot be; the message names it, its value, the rule and the fix."""


def require(condition: bool, setting: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{setting} = {value!r}: {rule}")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """'; did you mean ...?' with the known names most like `name`, or what there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are: {', '.join(known)}"


def apply_override(raw: dict[str, Any], text: str) -> None:
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot):
        raise ConfigError(f"--set {text}: write it as section.key=value, for example train.batch_size=64")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()  # a bare word is a string
    raw.setdefault(section, {})[key] = parsed


def make_section(cls: type, name: str, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            matches = nearest(key, hints)
            raise ConfigError(f"unknown config key {name}.{key}{matches}")
    return cls(**{key: _convert(f"{name}.{key}", value, hints[key]) for key, value in values.items()})


def _convert(setting: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`; only conversions that lose nothing."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        choices = typing.get_args(kind)
        require(
            value in choices, setting, value, f"it must be one of {', '.join(choices)}{_did_you_mean(value, choices)}"
        )
        return value
    if origin is tuple:
        item = typing.get_args(kind)[0]
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(setting, v, item) for v in values)
    if kind is bool:
        require(isinstance(value, bool), setting, value, "it must be true or false")
    elif kind is int:
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
        require(whole, setting, value, "it must be a whole number")
        return int(value)
    elif kind is float:
        require(isinstance(value, int | float) and not isinstance(value, bool), setting, value, "it must be a number")
        return float(value)
    else:
        assert kind is str or isinstance(kind, types.UnionType), kind
        require(isinstance(value, str), setting, value, "it must be text")
    return value


def _did_you_mean(value: Any, choices: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(value), choices, n=1)
    return f"; did you mean {close[0]}?" if close else ""
