"""Imports of a provider's SDK that take no longer than what is used of it."""

import importlib.util
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

_IMPORTING = threading.Lock()


@contextmanager
def without_the_rest(package: str) -> Iterator[None]:
    """Let single modules of `package` be imported: the package itself imports every resource that the cloud has.

    An empty package stands in its place meanwhile. A later import of the package gets the real one, with
    the modules that are loaded already.

    Raises:
        ModuleNotFoundError: the SDK is not installed.
    """
    with _IMPORTING:
        loaded = sys.modules.get(package)
        if loaded is not None:
            yield
            return
        spec = importlib.util.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(package)
        empty = types.ModuleType(package)
        empty.__path__ = list(spec.submodule_search_locations)
        sys.modules[package] = empty
        try:
            yield
        finally:
            del sys.modules[package]
