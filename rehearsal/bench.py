"""`make bench`: how long the stack takes, measured on this machine in a rehearsal of its own."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from components.settings import parse
from rehearsal.visitor import Visitor
from rehearsal.workspace import POLICIES, PROJECT_FOLDER, Workspace
from uds.stack import OperatorError, Stack

RUNS = 7
SWITCHES = 3


def measure(stack: str, out: Console) -> None:
    """Time the first `up`, runs with nothing to do, what the policies cost, and how long a release switch is felt."""
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
            alone, judged = _previews(Workspace(stack))
            away = _release_switch(Stack.open(stack, rehearsal=True), Path(name))
        finally:
            _run([*driver, "down", stack], PROJECT_FOLDER, environment)
    table = Table("what", "seconds")
    table.add_row(f"make up STACK={stack}, from nothing to ready", f"{first:.1f}")
    table.add_row(f"pulumi up, nothing to do (median of {RUNS})", f"{ours:.2f}")
    table.add_row(f"pulumi up of an empty program, same configuration (median of {RUNS})", f"{empty:.2f}")
    table.add_row("ratio", f"{ours / empty:.2f}")
    table.add_row(f"pulumi preview (median of {RUNS})", f"{alone:.2f}")
    table.add_row(f"pulumi preview with the policies (median of {RUNS})", f"{judged:.2f}")
    table.add_row("ratio", f"{judged / alone:.2f}")
    if away is not None:
        table.add_row(f"release switch: nobody answers on 443 (longest of {SWITCHES})", f"{away:.2f}")
    out.print(table)


def _nothing_to_do(workspace: Workspace) -> tuple[float, float]:
    """Seconds of a run that changes nothing: of the stack, and of an empty program with the same configuration."""
    folder = workspace.folder
    environment = workspace.environment()
    empty = folder / "empty"
    (empty / "state").mkdir(parents=True)
    (empty / "program").mkdir()
    (empty / "program" / "__main__.py").touch()
    project = yaml.safe_load((folder / "Pulumi.yaml").read_text())
    (empty / "Pulumi.yaml").write_text(yaml.safe_dump(project | {"main": "program"}))
    shutil.copy(workspace.stack_file, empty)
    elsewhere = environment | {"PULUMI_BACKEND_URL": f"file://{empty / 'state'}"}
    _run(["pulumi", "stack", "init", workspace.stack], empty, elsewhere)
    up = ["pulumi", "up", "--yes", "--skip-preview", "--stack", workspace.stack]
    _run(up, empty, elsewhere)
    ours, theirs = [], []
    # In turn, so that a busy moment of the machine meets both.
    for _ in range(RUNS):
        ours.append(_seconds(lambda: _run([*up, "--expect-no-changes"], folder, environment)))
        theirs.append(_seconds(lambda: _run([*up, "--expect-no-changes"], empty, elsewhere)))
    return statistics.median(ours), statistics.median(theirs)


def _previews(workspace: Workspace) -> tuple[float, float]:
    """Seconds of a preview of the whole stack: alone, and with the policies."""
    preview = ["pulumi", "preview", "--stack", workspace.stack]
    alone: list[float] = []
    judged: list[float] = []
    # In turn, as above.
    for _ in range(RUNS):
        for seconds, arguments in ((alone, []), (judged, ["--policy-pack", str(POLICIES)])):
            command = [*preview, *arguments]
            seconds.append(_seconds(lambda: _run(command, workspace.folder, workspace.environment())))  # noqa: B023 - called at once
    return statistics.median(alone), statistics.median(judged)


def _release_switch(stack: Stack, temporary: Path) -> float | None:
    """Seconds in which a visitor is not answered while a new release takes over, if the stack delivers one."""
    application = parse(stack.config()).application
    if application.release is None or application.certificate is None:
        return None
    source, folder = PROJECT_FOLDER / application.release, temporary / "release"
    if source.is_dir():
        shutil.copytree(source, folder)
    else:
        shutil.unpack_archive(source, folder, "gztar")
    Workspace(stack.name).set_section("application", {"release": str(folder)})
    address = stack.outputs()["servers"]["app-1"]["publicIp"]
    up = ["pulumi", "up", "--yes", "--skip-preview", "--stack", stack.name]
    away = []
    for number in range(SWITCHES):
        (folder / "bench").write_text(str(number))
        with Visitor(address, application.certificate, application.health_path) as visitor:
            _run(up, stack.folder, stack.environment)
        if not visitor.answers:
            raise OperatorError(f"{stack.name}: nobody answers on https://{address}{application.health_path}")
        away.append(visitor.away)
    return max(away)


def _seconds(work: Callable[[], None]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
