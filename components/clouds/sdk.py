"""Imports of a provider's SDK that take no longer than what is used of it."""

import importlib.util
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_IMPORTING = threading.Lock()


@contextmanager
def without_the_rest(*packages: str) -> Iterator[None]:
    """Let single modules of `packages` be imported: a package itself imports every resource that the cloud has.

    An empty package stands in its place meanwhile. A later import of the package gets the real one, with
    the modules that are loaded already. Packages in packages come after those that they are in.

    Raises:
        ModuleNotFoundError: the SDK is not installed.
    """
    with _IMPORTING, ExitStack() as empty:
        for package in packages:
            empty.enter_context(_empty(package))
        yield


@contextmanager
def _empty(package: str) -> Iterator[None]:
    if package in sys.modules:
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
