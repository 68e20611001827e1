"""`make bench`: what the README promises, measured on this machine in rehearsals of its own."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from rehearsal.bench import alerts, backups, recovery, release, runs
from rehearsal.bench.clock import run, seconds
from rehearsal.bench.figures import Figure, Groups, page, table
from rehearsal.workspace import PROJECT_FOLDER, Workspace
from uds.stack import Stack

PAGE = PROJECT_FOLDER / "docs" / "benchmarks.md"


def measure(stack: str, out: Console) -> None:
    """Measure everything, print it, and write it into the documents."""
    groups: dict[str, list[Figure]] = {}
    with _rehearsal(stack, backups=False) as drive:
        # Once before: images, tools and caches are there afterwards, as for everyone but the very first time.
        drive("up")
        drive("down")
        _prepare(stack, backups=False)
        groups["Two servers"] = [Figure("`make up`, from nothing to ready", seconds(lambda: drive("up")), "s", "45 s")]
        groups["Two servers"] += runs.nothing_to_do(Workspace(stack))
    with _rehearsal(stack, backups=True) as drive:
        workspace, opened = Workspace(stack), Stack.open(stack, rehearsal=True)
        groups["Three servers"] = [
            Figure("`make up`, from nothing to ready", seconds(lambda: drive("up")), "s", "75 s"),
            *runs.nothing_to_do(workspace),
            *runs.previews(workspace),
            *release.switch(opened),
        ]
        groups["Backups"] = [*backups.stream(opened), *backups.restore(opened)]
        groups["Alerts"] = alerts.latency(opened, lambda: drive("up"))
        groups["Recovery"] = recovery.database_lost(opened, drive)
    with _rehearsal(stack, backups=True) as drive:
        drive("preview")
        grown = runs.growth(Workspace(stack))
    groups["Growth"] = [figure for figures in grown.values() for figure in figures]
    _tell(groups, {count: figures[0].value for count, figures in grown.items()}, out)


@contextmanager
def _rehearsal(stack: str, *, backups: bool) -> Iterator[Callable[[str], None]]:
    """A rehearsal apart from the user's own, and what drives it; gone afterwards."""

    def drive(verb: str) -> None:
        run([sys.executable, "-m", "rehearsal", verb, stack], PROJECT_FOLDER, os.environ)

    with tempfile.TemporaryDirectory() as name:
        # Read by `Workspace`, here and in the driver.
        os.environ["UDS_REHEARSALS"] = name
        _prepare(stack, backups=backups)
        try:
            yield drive
        finally:
            drive("down")


def _prepare(stack: str, *, backups: bool) -> None:
    Workspace(stack).prepare()
    Workspace(stack).set_section("backup", {"server": backups})


def _tell(groups: Groups, growth: dict[int, float], out: Console) -> None:
    out.print(table(groups))
    PAGE.write_text(page(groups, growth))
    out.print(f"Written into {PAGE.relative_to(PROJECT_FOLDER)}.")
