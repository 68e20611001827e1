"""`make bench`: what the README promises, measured on this machine in rehearsals of its own."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from components.settings import parse
from rehearsal.bench import against, alerts, backups, recovery, release, runs
from rehearsal.bench.clock import run, seconds
from rehearsal.bench.figures import Figure, page, table
from rehearsal.workspace import PROJECT_FOLDER, Workspace
from uds.stack import Stack

PAGE = PROJECT_FOLDER / "docs" / "benchmarks.md"


def measure(stack: str, collection: Path | None, out: Console) -> None:
    """Measure everything, print it, and write it into the documents; with dev-sec's collection, that too."""
    if collection:
        against.check(collection)
    groups: dict[str, list[Figure]] = {}

    def add(title: str, figures: list[Figure]) -> None:
        groups[title] = figures
        out.print(table(title, figures))

    with _rehearsal(stack, backups=False) as drive:
        # Once before: images, tools and caches are there afterwards, as for everyone but the very first time.
        drive("up")
        drive("down")
        _prepare(stack, backups=False)
        took = Figure("`make up`, from nothing to ready", seconds(lambda: drive("up")), "s", "45 s")
        add("Two servers", [took, *runs.nothing_to_do(Workspace(stack))])
        image = parse(Stack.open(stack, rehearsal=True).config()).image
    groups[against.TITLE] = []
    if collection:
        up, nothing, *_ = (figure.value for figure in groups["Two servers"])
        add(against.TITLE, against.compare(collection, image, up, nothing, out.print))
    with _rehearsal(stack, backups=True) as drive:
        workspace = Workspace(stack)
        took = Figure("`make up`, from nothing to ready", seconds(lambda: drive("up")), "s", "75 s")
        opened = Stack.open(stack, rehearsal=True)
        ran = [*runs.nothing_to_do(workspace), *runs.previews(workspace)]
        add("Three servers", [took, *ran, *release.switch(opened)])
        add("Backups", [*backups.stream(opened), *backups.restore(opened)])
        add("Alerts", alerts.latency(opened, lambda: drive("up")))
        add("Recovery", recovery.database_lost(opened, drive))
    with _rehearsal(stack, backups=True) as drive:
        drive("preview")
        grown = runs.growth(Workspace(stack))
    add("Growth", [figure for figures in grown.values() for figure in figures])
    PAGE.write_text(page(groups, {count: figures[0].value for count, figures in grown.items()}))
    out.print(f"Written into {PAGE.relative_to(PROJECT_FOLDER)}.")


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
