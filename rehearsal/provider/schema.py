"""Checks a resource's inputs against the SDK's own argument class: what exists, what is required, of which type."""

import importlib
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence

from pulumi import _types
from pulumi.runtime.rpc import UNKNOWN

from components.clouds.sdk import without_the_rest
from rehearsal.provider.values import Plain

Problem = tuple[str, str]
"""Where (a property path) and what is wrong; never the value, which may be secret."""

_NAMES: dict[object, str] = {bool: "a boolean", int: "a whole number", float: "a number", str: "a string"}


class _Later(types.ModuleType):
    """Stands in for a module that nobody needs now, and hands out what is in it when somebody does."""

    def __getattr__(self, name: str) -> object:
        """An attribute of the real one."""
        return getattr(importlib.import_module(self.__name__), name)


def args_class(module: str, name: str) -> type:
    """Import one resource's argument class without all the others of its SDK (1 s)."""
    names = module.split(".")
    packages = [".".join(names[:end]) for end in range(1, len(names))]
    with without_the_rest(*packages):
        # The modules of resources import it, and arguments need nothing of it.
        unused = [outputs for package in packages if (outputs := f"{package}.outputs") not in sys.modules]
        sys.modules.update({outputs: _Later(outputs) for outputs in unused})
        try:
            found: type = getattr(importlib.import_module(module), name)
        finally:
            # A later import is to get the real one.
            for outputs in unused:
                del sys.modules[outputs]
    return found


def problems(cls: type, inputs: Mapping[str, Plain], path: str = "") -> Iterator[Problem]:
    """What is unknown, missing or mistyped in the inputs, nested ones too."""
    known = _types.input_type_types(cls)
    names = _types.input_type_py_to_pulumi_names(cls)
    for parameter in inspect.signature(cls).parameters.values():
        name = names.get(parameter.name, parameter.name)
        if parameter.default is inspect.Parameter.empty and inputs.get(name) is None:
            yield path + name, "is required"
    for name, value in inputs.items():
        # The engine's and the SDK's own, e.g. `__defaults`.
        if name.startswith("__"):
            continue
        if name not in known:
            yield path + name, "is not a property of this resource"
        else:
            yield from _mismatch(known[name], value, path + name)


def _mismatch(expected: object, value: Plain, path: str) -> Iterator[Problem]:
    if value is None or value == UNKNOWN:
        return
    kinds = list(_kinds(expected))
    for kind in kinds:
        origin = typing.get_origin(kind)
        if isinstance(kind, type) and _types.is_input_type(kind) and isinstance(value, dict):
            yield from problems(kind, value, f"{path}.")
            return
        if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
            for key, item in value.items():
                yield from _mismatch(typing.get_args(kind)[1], item, f"{path}.{key}")
            return
        if isinstance(origin, type) and issubclass(origin, Sequence) and isinstance(value, list):
            for index, item in enumerate(value):
                yield from _mismatch(typing.get_args(kind)[0], item, f"{path}[{index}]")
            return
        if _is_scalar(kind, value):
            return
    yield path, f"must be {' or '.join(sorted({_name(kind) for kind in kinds}))}"


def _is_scalar(kind: object, value: Plain) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind in {str, bool} and isinstance(value, typing.cast("type", kind))


def _kinds(expected: object) -> Iterator[object]:
    """The types that a value may have when it arrives: without Optional, Awaitable and Output."""
    origin = typing.get_origin(expected)
    if origin in {typing.Union, types.UnionType}:
        for part in typing.get_args(expected):
            name = getattr(typing.get_origin(part), "__name__", "")
            if part is not type(None) and name not in {"Awaitable", "Output"}:
                yield from _kinds(part)
    else:
        yield expected


def _name(kind: object) -> str:
    if kind in _NAMES:
        return _NAMES[kind]
    origin = typing.get_origin(kind)
    return "a list" if isinstance(origin, type) and issubclass(origin, Sequence) else "an object"
