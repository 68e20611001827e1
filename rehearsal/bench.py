"""`make bench`: how long the stack takes, measured on this machine in a rehearsal of its own."""

import json
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
from rehearsal.backup_stream import FILL, ROW_BYTES
from rehearsal.visitor import Visitor
from rehearsal.workspace import PROJECT_FOLDER, Workspace
from uds import ssh
from uds.backup.identity import Identities
from uds.backup.restore import Restorer
from uds.backup.run import now
from uds.backup.servers import DATABASE, Servers
from uds.stack import OperatorError, Stack

RUNS = 7
SWITCHES = 3
STREAM_BYTES = 10**9
STREAM_RUNS = 3
RESTORE_BYTES = 3 * 10**8


def measure(stack: str, out: Console) -> None:
    """Time the first `up`, a run with nothing to do, how long a release switch is felt, backups."""
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
            opened = Stack.open(stack, rehearsal=True)
            away = _release_switch(opened, Path(name))
            backup = _backup_stream(opened)
            restored = _restore(opened)
        finally:
            _run([*driver, "down", stack], PROJECT_FOLDER, environment)
    table = Table("what", "seconds")
    table.add_row(f"make up STACK={stack}, from nothing to ready", f"{first:.1f}")
    table.add_row(f"pulumi up, nothing to do (median of {RUNS})", f"{ours:.2f}")
    table.add_row(f"pulumi up of an empty program, same configuration (median of {RUNS})", f"{empty:.2f}")
    table.add_row("ratio", f"{ours / empty:.2f}")
    if away is not None:
        table.add_row(f"release switch: nobody answers on 443 (longest of {SWITCHES})", f"{away:.2f}")
    out.print(table)
    for one in (backup, restored):
        if one is not None:
            out.print(one)


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


def _backup_stream(stack: Stack) -> Table | None:
    """The backup's stream against the dump alone and the guide's own pipeline, in turn, if the stack makes backups."""
    settings = parse(stack.config())
    if not settings.backup.server:
        return None
    program = Path(__file__).with_name("backup_stream.py").read_text()
    password = settings.deploy.sudo_password.get_secret_value()
    with ssh.connected(stack, "db-1") as command:
        done = subprocess.run(
            [*command, f"sudo -k -S -p '' -- python3 - {STREAM_BYTES} {STREAM_RUNS}"],
            input=f"{password}\n{program}",
            text=True,
            capture_output=True,
            check=True,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = found["seconds"]
    table = Table(f"backup of {found['bytes'] / 1e9:.2f} GB", "median of seconds", "ours is")
    for way, what in (
        ("dump", "the dump alone, to /dev/null"),
        ("ours", "dumped, compressed, encrypted"),
        ("guide", "the guide's own pipeline"),
    ):
        # Of each turn by itself: a busy moment of the machine meets all three.
        ratio = statistics.median(other / own for other, own in zip(seconds[way], seconds["ours"], strict=True))
        table.add_row(what, f"{statistics.median(seconds[way]):.1f}", f"{ratio:.2f} times as fast")
    table.add_row("most memory of the stream", f"{found['memory'] / 2**20:.0f} MiB", "")
    return table


def _restore(stack: Stack) -> Table | None:
    """A restore from the backup server against loading the same dump that lies ready, in turn, if there are backups."""
    settings = parse(stack.config())
    if not settings.backup.server:
        return None
    database, plain = settings.database.name, "/var/tmp/bench.sql"  # noqa: S108 - on the server, in a folder of its own

    def root(script: str) -> None:
        status, text = servers.run(DATABASE, "sh", "-e", "-c", script)
        if status:
            raise OperatorError(text)

    fill = FILL.replace("CREATE DATABASE bench;\nUSE bench;", "").replace("ROWS", str(RESTORE_BYTES // ROW_BYTES))
    theirs, ours = [], []
    with Servers.of(stack) as servers:
        identities = Identities.load(
            stack.keys / "backup-identity.age", Workspace(stack.name).passphrase_file.read_text
        )
        restorer = Restorer(servers, identities, lambda _name, _size: lambda _count: None)
        root(f"mariadb {database} <<'END'\n{fill}\nEND\nmariadb-dump --hex-blob {database} > {plain}")
        backup = now(servers)
        for _ in range(STREAM_RUNS):
            root("mariadb -e 'CREATE DATABASE plain'")
            theirs.append(_seconds(lambda: root(f"mariadb plain < {plain}")))
            ours.append(_seconds(lambda: restorer.into_new(backup, database, "ours")))
            root("mariadb -e 'DROP DATABASE plain; DROP DATABASE ours'")
        root(f"rm {plain}; mariadb -e 'DROP TABLE users' {database}")
    table = Table(f"restore of {RESTORE_BYTES / 1e9:.1f} GB", "median of seconds")
    table.add_row("mariadb < dump, on the server", f"{statistics.median(theirs):.1f}")
    table.add_row("fetched, decrypted, loaded, checked", f"{statistics.median(ours):.1f}")
    ratio = statistics.median(one / own for one, own in zip(theirs, ours, strict=True))
    table.add_row("ours is", f"{ratio:.2f} times as fast")
    return table


def _seconds(work: Callable[[], None]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
