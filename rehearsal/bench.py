"""`make bench`: how long the stack takes, measured on this machine in a rehearsal of its own."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rehearsal.workspace import PROJECT_FOLDER, Workspace

RUNS = 5

_EMPTY_PROGRAM = "name: empty\nruntime:\n  name: python\n  options:\n    virtualenv: {virtualenv}\n"


def measure(stack: str, out: Console) -> None:
    """Time the first `up`, and `up` with nothing to do against an empty program's with the same Pulumi and host."""
    with tempfile.TemporaryDirectory() as name:
        # Read by `Workspace`, here and in the driver: nothing of the user's own rehearsal is touched.
        os.environ["UDS_REHEARSALS"] = name
        environment = os.environ
        driver = [sys.executable, "-m", "rehearsal"]
        try:
            # Once before: images, tools and caches are there afterwards, as for everyone but the very first time.
            _run([*driver, "up", stack], PROJECT_FOLDER, environment)
            _run([*driver, "down", stack], PROJECT_FOLDER, environment)
            first = _seconds(lambda: _run([*driver, "up", stack], PROJECT_FOLDER, environment))
            ours, empty = _nothing_to_do(Workspace(stack))
        finally:
            _run([*driver, "down", stack], PROJECT_FOLDER, environment)
    table = Table("what", "seconds")
    table.add_row(f"make up STACK={stack}, from nothing to ready", f"{first:.1f}")
    table.add_row(f"pulumi up, nothing to do (median of {RUNS})", f"{ours:.2f}")
    table.add_row(f"pulumi up of an empty program (median of {RUNS})", f"{empty:.2f}")
    table.add_row("ratio", f"{ours / empty:.2f}")
    out.print(table)


def _nothing_to_do(workspace: Workspace) -> tuple[float, float]:
    environment = workspace.environment()
    empty = workspace.folder / "empty"
    empty.mkdir()
    (empty / "Pulumi.yaml").write_text(_EMPTY_PROGRAM.format(virtualenv=PROJECT_FOLDER / ".venv"))
    (empty / "__main__.py").write_text("")
    _run(["pulumi", "stack", "init", "empty"], empty, environment)
    up = ["pulumi", "up", "--yes", "--skip-preview", "--stack"]
    nothing_to_do = [*up, workspace.stack, "--expect-no-changes"]
    _run([*up, "empty"], empty, environment)
    seconds: tuple[list[float], list[float]] = ([], [])
    # In turn, so that a busy moment of the machine meets both.
    for _ in range(RUNS):
        seconds[0].append(_seconds(lambda: _run(nothing_to_do, workspace.folder, environment)))
        seconds[1].append(_seconds(lambda: _run([*up, "empty"], empty, environment)))
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _seconds(work: Callable[[], None]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
