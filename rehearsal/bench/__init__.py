"""`make bench`: what the README promises, measured on this machine in a rehearsal of its own."""

import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rehearsal.bench import alerts, backups, release, runs
from rehearsal.bench.clock import run, seconds
from rehearsal.workspace import PROJECT_FOLDER, Workspace
from uds.stack import Stack


def measure(stack: str, out: Console) -> None:
    """Time the first `up`, runs with nothing to do, the policies, a release switch, alerts, backups and restores."""
    with tempfile.TemporaryDirectory() as name:
        # Read by `Workspace`, here and in the driver: nothing of the user's own rehearsal is touched.
        os.environ["UDS_REHEARSALS"] = name

        def drive(verb: str) -> None:
            run([sys.executable, "-m", "rehearsal", verb, stack], PROJECT_FOLDER, os.environ)

        try:
            # Once before: images, tools and caches are there afterwards, as for everyone but the very first time.
            drive("up")
            drive("down")
            first = seconds(lambda: drive("up"))
            ours, empty = runs.nothing_to_do(Workspace(stack))
            alone, judged = runs.previews(Workspace(stack))
            opened = Stack.open(stack, rehearsal=True)
            away = release.switch(opened, Path(name))
            tables = [backups.stream(opened), backups.restore(opened)]
            alert = alerts.latency(opened, Path(name), lambda: drive("up"))
        finally:
            drive("down")
    table = Table("what", "seconds")
    table.add_row(f"make up STACK={stack}, from nothing to ready", f"{first:.1f}")
    table.add_row(f"pulumi up, nothing to do (median of {runs.RUNS})", f"{ours:.2f}")
    table.add_row(f"pulumi up of an empty program, same configuration (median of {runs.RUNS})", f"{empty:.2f}")
    table.add_row("ratio", f"{ours / empty:.2f}")
    table.add_row(f"pulumi preview (median of {runs.RUNS})", f"{alone:.2f}")
    table.add_row(f"pulumi preview with the policies (median of {runs.RUNS})", f"{judged:.2f}")
    table.add_row("ratio", f"{judged / alone:.2f}")
    if away is not None:
        table.add_row(f"release switch: nobody answers on 443 (longest of {release.SWITCHES})", f"{away:.2f}")
    table.add_row(f"login to alert, from the start of the connection (median of {alerts.LOGINS})", f"{alert:.2f}")
    for one in (table, *filter(None, tables)):
        out.print(one)
