"""Imports of a provider's SDK that take no longer than what is used of it."""

import importlib.util
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

_IMPORTING = threading.Lock()


@contextmanager
def without_the_rest(*packages: str) -> Iterator[None]:
    """Let single modules of `packages` be imported: a package itself imports every resource that the cloud has.

    Empty packages stand in their places meanwhile (name an outer one before what is inside it). A later import of a
    package gets the real one, with the modules that are loaded already.

    Raises:
        ModuleNotFoundError: the SDK is not installed.
    """
    with _IMPORTING:
        empty = []
        try:
            for package in packages:
                if package not in sys.modules:
                    sys.modules[package] = _empty(package)
                    empty.append(package)
            yield
        finally:
            for package in empty:
                del sys.modules[package]


def _empty(package: str) -> types.ModuleType:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(package)
    module = types.ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations)
    return module
