"""Backups come back: by `uds backup`, and by the standard tools alone on a fresh machine; what goes wrong is told."""
# ruff: noqa: S608 - statements of the tests' own

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyrage
import pytest
import yaml

from components.settings import PROJECT
from rehearsal.image import ensure as ensure_image
from rehearsal.workspace import Workspace
from tests.rehearsal.conftest import ROOT, Rehearsal, new_rehearsal
from tests.rehearsal.support import until
from uds.backup import restore
from uds.backup.catalogue import Backup
from uds.backup.identity import Identities
from uds.backup.places import BackupServer
from uds.backup.servers import _MODULES, Servers
from uds.stack import OperatorError

DATABASE = "production"
APP = "10.20.0.11"
EVERYTHING = Path(__file__).with_name("everything.sql").read_text()
# In a value, so that it is in the dump and nowhere else.
MARK = "Zoë 🦊"
STORE, SPOOL = "/var/backups/uds", "/var/spool/uds-backup"
# What a restore leaves for the next one; there is no such folder before the first.
LIST_STATE = "[ ! -e /var/lib/uds/restore ] || ls -A /var/lib/uds/restore"

REPORTER = f"reporter@'{APP}'"
GRANTS = (
    f"CREATE USER {REPORTER} IDENTIFIED BY 'Wq3-zpFf9dLx_81kTtY0' REQUIRE SSL",
    f"GRANT SELECT (name), UPDATE (born) ON {DATABASE}.people TO {REPORTER}",
    f"GRANT SELECT, INSERT ON {DATABASE}.log TO {REPORTER}",
    f"GRANT EXECUTE ON PROCEDURE {DATABASE}.tidy TO {REPORTER}",
)


@dataclass
class Stand:
    """A stack with a backup server, whose database has one of everything and was backed up."""

    engine: str
    rehearsal: Rehearsal
    id: str = ""
    dump: str = ""

    def shell(self, script: str, server: str = "db-1") -> str:
        return self.rehearsal.sudo(server, f"set -e -o pipefail\n{script}").stdout

    def sql(self, *statements: str) -> str:
        lines = ";\n".join(statements)
        return self.shell(f"{self.engine} --batch --skip-column-names <<'END'\n{lines};\nEND")

    def databases(self) -> set[str]:
        return set(self.sql("SHOW DATABASES").split())

    def content(self, database: str) -> str:
        """All of a database by the engine's own dump, and a checksum of each table."""
        return self.shell(content(self.engine, database))

    def uds(self, verb: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.rehearsal.uds("backup", verb, "local", *arguments, check=check)

    def refused(self, verb: str, *arguments: str) -> str:
        """What a command says that must fail, in one line."""
        done = self.uds(verb, *arguments, check=False)
        assert done.returncode == 1, done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    def back_up(self) -> str:
        """`uds backup now`; the name of what it made."""
        found = re.search(r"\d{8}T\d{6}Z", self.uds("now").stdout)
        assert found
        return found[0]


def content(engine: str, database: str) -> str:
    dump = "mariadb-dump --no-defaults" if engine == "mariadb" else "mysqldump --no-defaults --set-gtid-purged=OFF"
    options = "--single-transaction --skip-comments --routines --events --triggers --hex-blob"
    tables = f"SELECT table_name FROM information_schema.tables WHERE table_schema = '{database}' ORDER BY 1"
    return (
        f"{dump} {options} {database}\n"
        f'{engine} -NBre "{tables}" | while read -r t; do t=${{t//\\`/\\`\\`}}\n'
        f'{engine} -NBe "CHECKSUM TABLE \\`$t\\`" {database} | cut -f2; done'
    )


def stands(engine: str, image: str, folder: Path) -> Iterator[Stand]:
    with pytest.MonkeyPatch.context() as patch:
        for rehearsal in new_rehearsal(folder, patch, backups=True):
            stack_file = Workspace("local").stack_file
            config = yaml.safe_load(stack_file.read_text())
            config["config"][f"{PROJECT}:image"] = image
            stack_file.write_text(yaml.safe_dump(config))
            rehearsal.configure("backup", {"paths": ["/etc/apt"]})
            rehearsal.make("up")
            rehearsal.stays_connected = True
            found = Stand(engine, rehearsal)
            client = f"{engine} --default-character-set=utf8mb4 {DATABASE}"
            found.shell(f"{client} <<'END_OF_ALL'\n{EVERYTHING}\nEND_OF_ALL")
            found.sql(*GRANTS)
            found.dump = found.content(DATABASE)
            assert MARK in found.dump
            found.id = found.back_up()
            yield found


@pytest.fixture(scope="module")
def fresh_machine() -> Iterator["FreshMachine"]:
    """Begun before the stack, since its packages take a while; nothing of this project is on it."""
    with FreshMachine() as machine:
        yield machine


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory, fresh_machine: "FreshMachine") -> Iterator[Stand]:  # noqa: ARG001
    yield from stands("mariadb", "debian13", tmp_path_factory.mktemp("restore"))


@pytest.fixture(scope="module")
def servers(stand: Stand) -> Iterator[Servers]:
    with Servers.of(stand.rehearsal.stack()) as found:
        yield found


@pytest.fixture(scope="module")
def restorer(stand: Stand, servers: Servers) -> restore.Restorer:
    """What the commands use, without the time that they take to start."""
    stack = stand.rehearsal.stack()
    identities = Identities.load(stack.keys / "backup-identity.age", Workspace("local").passphrase_file.read_text)
    return restore.Restorer(
        servers, BackupServer(servers, "backup-1"), identities, lambda _name, _size: lambda _count: None
    )


def stored(servers: Servers, one: str) -> Backup:
    return next(backup for backup in restore.stored(BackupServer(servers, "backup-1")) if backup.id == one)


class Watcher(AbstractContextManager["Watcher"]):
    """Looks at arguments and environments of all processes, here and on the machines, for what must not be there."""

    def __init__(self, *secrets: str) -> None:
        self._secrets = [text.encode() for text in secrets]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.seen: set[str] = set()
        self.found: set[str] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        text = (process / name).read_bytes()
                    except OSError:
                        continue
                    if name == "cmdline":
                        self.seen.add(text.replace(b"\0", b" ").decode(errors="replace"))
                    if any(secret in text for secret in self._secrets):
                        self.found.add(f"{name}: {text[:200]!r}")


class FreshMachine(AbstractContextManager["FreshMachine"]):
    """A machine of the stock image with the standard tools and a database server, for `docs/operations.md`."""

    name = f"uds-restore-{os.getpid()}"

    def __enter__(self) -> Self:
        run = ["run", "--detach", "--rm", "--network=host", f"--name={self.name}"]
        limits = ["--ulimit=nofile=20000:20000", "--ulimit=nproc=10000:10000"]
        reference = ensure_image("debian13", lambda _: None)
        subprocess.run(["podman", *run, *limits, reference, "sleep", "infinity"], check=True, capture_output=True)
        install = "apt-get update -q && apt-get install -y -q --no-install-recommends mariadb-server age zstd"
        self._installing = subprocess.Popen(
            ["podman", "exec", "--env=DEBIAN_FRONTEND=noninteractive", self.name, "sh", "-c", install],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["podman", "rm", "--force", "--time=0", self.name], check=True, capture_output=True)

    def start(self) -> None:
        assert self._installing.wait(300) == 0
        self.shell("install -d -o mysql /run/mysqld; mariadbd-safe --skip-networking >/dev/null 2>&1 &")
        until(lambda: self._run("mariadb -e 'SELECT 1'").returncode == 0)

    def shell(self, script: str) -> str:
        done = self._run(script)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def typed(self, script: str, passphrase: str) -> None:
        """Run what a person types at a terminal, who knows the passphrase."""
        program = f"""
import os, pty, sys
child, terminal = pty.fork()
if child == 0:
    os.execvp("bash", ["bash", "-c", {script!r}])
shown = b""
while True:
    try:
        block = os.read(terminal, 4096)
    except OSError:
        break
    shown += block
    if b"passphrase" in block:
        os.write(terminal, {passphrase!r}.encode() + b"\\n")
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
        done = self._run("python3 -", program)
        assert done.returncode == 0, done.stdout + done.stderr

    def copy(self, folder: Path) -> None:
        subprocess.run(["podman", "cp", f"{folder}/.", f"{self.name}:/root"], check=True, capture_output=True)

    def _run(self, script: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = ["podman", "exec", "--interactive", "--workdir=/root", self.name, "bash", "-c", script]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


# Restoring


def test_a_backup_comes_back_identical_beside_the_live_database(stand: Stand) -> None:
    stack = stand.rehearsal.stack()
    passphrase = Workspace("local").passphrase_file.read_text()
    identity = pyrage.passphrase.decrypt((stack.keys / "backup-identity.age").read_bytes(), passphrase).decode()
    key = re.findall("AGE-SECRET-KEY-.*", identity)[0]
    copy = f"{DATABASE}_restored_{stand.id}"
    with Watcher(passphrase, key, stack.section("deploy")["sudoPassword"], MARK) as watcher:
        assert copy in stand.uds("restore").stdout
    assert stand.content(copy) == stand.dump
    assert stand.content(DATABASE) == stand.dump
    assert stand.shell(LIST_STATE) == ""
    assert f"There is a database {copy} already" in stand.refused("restore", stand.id)
    # It did look while that ran, on the machines too.
    for words in ("-m uds backup restore local", "python3 -I -X utf8 -c"):
        assert any(words in command for command in watcher.seen)
    assert watcher.found == set()
    logs = "journalctl --sync; { journalctl -q; cat /var/log/sudo.log; } | "
    for server in ("app-1", "db-1", "backup-1"):
        assert stand.shell(f"{logs} grep -cE 'AGE-SECRET|{MARK[:3]}' || true", server) == "0\n"
    stand.sql(f"DROP DATABASE {copy}")


def test_the_list_shows_what_is_there_and_what_waits(stand: Stand) -> None:
    stand.shell(f"echo '{{\"files\": []}}' > {SPOOL}/20990101T000000Z.manifest.json")
    rows = [line.split("│")[1:-1] for line in stand.uds("list").stdout.splitlines() if line.startswith("│")]
    stand.shell(f"rm {SPOOL}/20990101T000000Z.manifest.json")
    found = [[cell.strip() for cell in row] for row in rows]
    assert [row[0] for row in found[:2]][-1] == stand.id or found[0][0] == stand.id
    newest = next(row for row in found if row[0] == stand.id)
    assert (newest[1], newest[4]) == (DATABASE, "yes")
    assert next(row for row in found if row[0] == "20990101T000000Z")[4] == "waits on db-1"


def test_the_standard_tools_alone_restore_on_a_fresh_machine(
    stand: Stand, fresh_machine: FreshMachine, tmp_path: Path
) -> None:
    stand.uds("fetch", stand.id, "--to", str(tmp_path))
    manifest = json.loads((tmp_path / f"{stand.id}.manifest.json").read_text())
    for file in manifest["files"]:
        assert hashlib.sha256((tmp_path / file["name"]).read_bytes()).hexdigest() == file["sha256"]
    (tmp_path / "backup-identity.age").write_bytes(
        (stand.rehearsal.workspace / "keys" / "backup-identity.age").read_bytes()
    )
    fresh_machine.start()
    fresh_machine.copy(tmp_path)
    text = (ROOT / "docs" / "operations.md").read_text().partition("### By hand")[2]
    commands = text.partition("```sh\n")[2].partition("```")[0]
    assert "age -d" in commands
    passphrase = Workspace("local").passphrase_file.read_text()
    fresh_machine.typed(f"id={stand.id} database={DATABASE}\n{commands}", passphrase)
    assert fresh_machine.shell(f"set -e\n{content('mariadb', DATABASE)}") == stand.dump
    grants = f'mariadb -NBe "SHOW GRANTS FOR {REPORTER}"'
    assert fresh_machine.shell(grants) == stand.shell(grants)
    digests = "cd {} && find etc/apt -type f -exec sha256sum {{}} + | sort"
    assert fresh_machine.shell(digests.format("files")) == stand.shell(digests.format("/"))


def test_saved_files_come_back_on_the_server_and_here(stand: Stand, tmp_path: Path) -> None:
    wanted = stand.shell("cd /etc/apt && find . -type f -exec sha256sum {} + | sort -k 2")
    stand.uds("restore", "--files", "db-1:/root/restored/files")
    assert stand.shell("cd /root/restored/files/etc/apt && find . -type f -exec sha256sum {} + | sort -k 2") == wanted
    assert "exists already" in stand.refused("restore", "--files", "db-1:/root/restored/files")
    here = tmp_path / "files"
    stand.uds("restore", "--files", str(here))
    for line in wanted.splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((here / "etc/apt" / name).read_bytes()).hexdigest() == digest
    assert "exists already" in stand.refused("restore", "--files", str(here))


# What goes wrong


@dataclass(frozen=True)
class Fault:
    """What is done to the newest backup's files on the backup server, and what is said of it."""

    damage: str
    said: str


FAULTS = {
    "truncated": Fault("truncate -s -1000 $file", "bytes instead of"),
    "cut off in a manifest that agrees": Fault(
        'truncate -s -1000 $file; sed -i "s/$size/$(stat -c %s $file)/" $manifest', "damaged or cut off"
    ),
    "one bit flipped": Fault(
        'byte=$(od -An -tu1 -j 2000 -N 1 $file); printf "\\\\x$(printf %x $((byte ^ 1)))" |'
        " dd of=$file bs=1 seek=2000 conv=notrunc status=none",
        "damaged or cut off",
    ),
    "another one's header": Fault("sed -i '1,3s/-> X25519 ..../-> X25519 AAAA/' $file", "was not encrypted for"),
    "a file is missing": Fault("rm $file", "is missing"),
    "the manifest is missing": Fault("rm $manifest", "its manifest is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_backup_is_told_and_nothing_is_left_of_it(
    stand: Stand, servers: Servers, restorer: restore.Restorer, fault: str
) -> None:
    names = (
        f"cd {STORE}; file={stand.id}_{DATABASE}.sql.zst.age manifest={stand.id}.manifest.json\n"
        'chmod u+w $file $manifest; size=$(stat -c %s "$file")\n'
    )
    stand.shell(f"cp -a {STORE} /root/kept\n{names}{FAULTS[fault].damage}", "backup-1")
    before = stand.databases()
    try:
        with pytest.raises(OperatorError, match=FAULTS[fault].said):
            restorer.into_new(stored(servers, stand.id).checked(), DATABASE, "damaged")
    finally:
        stand.shell(f"rm -r {STORE}; mv /root/kept {STORE}", "backup-1")
    assert stand.databases() == before
    assert stand.shell(LIST_STATE) == ""


def test_another_identity_opens_nothing_and_a_revoked_one_nothing_new(
    stand: Stand, servers: Servers, restorer: restore.Restorer, tmp_path: Path
) -> None:
    new = pyrage.x25519.Identity.generate()
    file = tmp_path / "identity"
    file.write_text(f"{new}\n")
    assert "was not encrypted for the identity" in stand.refused("restore", "--as", "other", "--identity", str(file))
    recipients = "/etc/uds/backup/recipients"
    # What `pulumi up` writes when backup.recipients has another key.
    stand.shell(f"cp -a {recipients} /root/recipients; echo {new.to_public()} > {recipients}")
    try:
        newer = stored(servers, stand.back_up())
    finally:
        stand.shell(f"mv /root/recipients {recipients}")
    try:
        with pytest.raises(OperatorError, match="was not encrypted for the identity"):
            restorer.into_new(newer, DATABASE, "other")
        rotated = restore.Restorer(servers, restorer.place, Identities.load(file, str), restorer.progress)
        for backup, opener in ((newer, rotated), (stored(servers, stand.id), restorer)):
            opener.into_new(backup, DATABASE, "other")
            assert stand.content("other") == stand.dump
            stand.sql("DROP DATABASE other")
    finally:
        stand.shell(f"rm -f {STORE}/{newer.id}*", "backup-1")
    assert "other" not in stand.databases()


# In the place of the live database

# Runs a replacement again and again on the server, each time killed one change later, until it is not killed any more.
KILLED = """
import contextlib, io, json, os, sys, types
for name, text in json.loads({modules!r}):
    sys.modules[name] = module = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
client = sys.modules["components.mysql.reconcile"].Client

def counted(call, left):
    def run(*arguments):
        # Questions change nothing.
        first = "".join(arguments[-1][:1]) if isinstance(arguments[-1], list) else ""
        if not first.startswith(("SELECT", "SHOW", "USE")):
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
        return call(*arguments)
    return run

calls, status = 0, 9
while status == 9:
    child = os.fork()
    if child == 0:
        left = [calls]
        client.run = counted(client.run, left)
        module._run_with, module._write = counted(module._run_with, left), counted(module._write, left)
        module.replace({request!r}, io.BytesIO())
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls += 1
    rows = client().ask("SELECT table_schema FROM information_schema.tables WHERE table_name = 'people'")[0]
    held = 0
    for (schema,) in rows:
        held += int(client().ask(f"SELECT COUNT(*) FROM `{{schema}}`.people WHERE mail = 'late@example.org'")[0][0][0])
    assert held == 1, f"after {{calls}} calls the live rows are gone"
assert status == 0, status
print("whole after", calls)
"""


@pytest.mark.nightly("a dozen restores; at every change, one that is killed is below")
def test_a_replacement_that_is_killed_anywhere_loses_nothing_and_goes_on(
    stand: Stand, servers: Servers, restorer: restore.Restorer
) -> None:
    backup = stored(servers, stand.id)
    stand.sql(
        f"INSERT INTO {DATABASE}.people (name, mail) VALUES ('late', 'late@example.org')",
        f"DROP VIEW {DATABASE}.adult_files",
        f"CREATE VIEW {DATABASE}.newer AS SELECT id FROM {DATABASE}.people",
        f"CREATE TABLE {DATABASE}.later (id INT PRIMARY KEY, person INT UNSIGNED REFERENCES people (id))",
        f"CREATE TRIGGER {DATABASE}.later_log AFTER INSERT ON {DATABASE}.log FOR EACH ROW SET @x = NEW.at",
    )
    live = stand.content(DATABASE)
    new, before = f"{DATABASE}_replacing_{stand.id}", f"{DATABASE}_before_{stand.id}"
    restorer.into_new(backup, DATABASE, new)
    modules = json.dumps([(name, path.read_text()) for name, path in _MODULES.items()])
    request = {"database": DATABASE, "new": new, "before": before}
    program = KILLED.format(modules=modules, request=request)
    stand.shell(f"cat > /root/killed.py <<'END_OF_PROGRAM'\n{program}\nEND_OF_PROGRAM")
    background = "systemd-run -q --collect --unit=uds-test-killed"
    stand.shell(f"{background} sh -c 'exec python3 /root/killed.py > /root/killed.out 2>&1'")
    until(lambda: stand.shell("systemctl is-active -q uds-test-killed || cat /root/killed.out") != "", 600)
    said = stand.shell("cat /root/killed.out; rm /root/killed.*")
    assert said.startswith("whole after "), said
    # There is more than one place to be killed at.
    assert int(said.split()[-1]) > 10
    assert stand.content(DATABASE) == stand.dump
    assert normal(stand.content(before)) == normal(live)
    assert new not in stand.databases()
    assert stand.sql("SELECT @@GLOBAL.read_only") in ("0\n", "OFF\n")
    assert stand.shell(LIST_STATE) == ""
    assert f"There is a database {before} already" in stand.refused("restore", stand.id, "--replace")
    stand.sql(f"DROP DATABASE {before}")


def normal(dump: str) -> str:
    """A trigger's own text may name the database that it was made in."""
    return dump.replace(f"`{DATABASE}`.", "").replace(f"{DATABASE}.", "")


def test_a_replacement_whose_operator_is_gone_leaves_the_live_database_and_runs_again(stand: Stand) -> None:
    stand.sql(f"INSERT INTO {DATABASE}.log VALUES (1, 'since the backup')")
    live = stand.content(DATABASE)
    # Whoever wants to write waits, until the lock's owner is gone.
    hold = f"(echo 'FLUSH TABLES WITH READ LOCK;'; sleep 300) | {stand.engine} --unbuffered"
    lock = f'systemd-run -q --collect --unit=uds-test-lock sh -c "{hold}"'
    waiting = "SELECT COUNT(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for%lock%'"
    stand.shell(lock)
    command = [sys.executable, "-m", "uds", "backup", "restore", "local", stand.id, "--replace"]
    try:
        with subprocess.Popen(
            command, cwd=ROOT, env=stand.rehearsal.environment, start_new_session=True, stdout=subprocess.DEVNULL
        ) as process:
            until(lambda: process.poll() is not None or stand.sql(waiting).strip() != "0")
            assert process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
    finally:
        stand.shell("systemctl stop uds-test-lock")
    # Its other half on the server comes to its end; what nobody has called whole is a half, for the next run to remove.
    until(lambda: stand.shell("pgrep -f 'python3 -I -X utf8 -c' || true") == "")
    new = f"{DATABASE}_replacing_{stand.id}"
    assert stand.shell(LIST_STATE).split() == [f"{new}.half"]
    assert stand.content(DATABASE) == live
    said = stand.uds("restore", stand.id, "--replace").stdout
    assert "table log: 1 rows in the backup, 2 live" in said
    assert stand.content(DATABASE) == stand.dump
    assert stand.content(f"{DATABASE}_before_{stand.id}") == live
    stand.sql(f"DROP DATABASE {DATABASE}_before_{stand.id}")


# The drill


def test_a_drill_passes_and_tells_of_rows_that_came_since(stand: Stand) -> None:
    before = stand.databases()
    stand.sql(f"INSERT INTO {DATABASE}.log VALUES (2, 'since the backup')")
    said = stand.uds("drill").stdout
    assert f"{DATABASE}: restored from {stand.id}" in said
    assert "table log: 1 rows in the backup, 2 live" in said
    stand.sql(f"DELETE FROM {DATABASE}.log WHERE at = 2")
    assert stand.databases() == before


def test_a_drill_fails_on_what_the_backup_lacks(stand: Stand) -> None:
    stand.sql(
        f"ALTER TABLE {DATABASE}.people ADD COLUMN since INT",
        f"CREATE PROCEDURE {DATABASE}.another() SELECT 1",
        f"DROP EVENT {DATABASE}.nightly",
    )
    try:
        said = stand.refused("drill")
    finally:
        stand.sql(
            f"ALTER TABLE {DATABASE}.people DROP COLUMN since",
            f"DROP PROCEDURE {DATABASE}.another",
            f"CREATE EVENT {DATABASE}.nightly ON SCHEDULE EVERY 1 DAY STARTS '2026-01-01 03:00:00' DO CALL tidy(30)",
        )
    for words in (
        "table people differs",
        "`since` int",
        "procedure another is missing",
        "event nightly is in the backup only",
    ):
        assert words in said
    assert not any(name.startswith("uds_drill") for name in stand.databases())


def test_a_drill_fails_when_the_newest_backup_is_too_old_or_not_whole(stand: Stand) -> None:
    old = "20200101T000100Z"
    stand.shell(
        f"mkdir /root/away; mv {STORE}/* /root/away; cd /root/away\n"
        f"for f in {stand.id}*; do sed 's/{stand.id}/{old}/g' $f > {STORE}/${{f/{stand.id}/{old}}}; done",
        "backup-1",
    )
    try:
        said = stand.refused("drill")
        stand.shell(f"rm {STORE}/{old}_{DATABASE}*", "backup-1")
        missing = stand.refused("drill")
    finally:
        stand.shell(f"rm {STORE}/*; mv /root/away/* {STORE}; rmdir /root/away", "backup-1")
    assert re.search(r"the newest backup is \d+ d \d+ h old", said)
    assert f"{DATABASE}: restored from {old}" in said
    assert f"{old} isn't complete: {old}_{DATABASE}.sql.zst.age is missing" in missing


# The other engine


@pytest.mark.nightly("three more servers")
def test_the_other_engine_comes_back_identical_too(tmp_path: Path) -> None:
    for stand in stands("mysql", "ubuntu24.04", tmp_path / "mysql"):
        stand.uds("restore", "--as", "copy")
        assert stand.content("copy") == stand.dump
        stand.sql(f"DELETE FROM {DATABASE}.people", f"DROP PROCEDURE {DATABASE}.tidy")
        live = stand.content(DATABASE)
        assert "procedure tidy is in the backup only" in stand.uds("restore", "--replace").stdout
        assert stand.content(DATABASE) == stand.dump
        assert stand.content(f"{DATABASE}_before_{stand.id}") == live
        assert "is built as the live databases are" in stand.uds("drill").stdout
        # Everything that the drill and the exchange made is gone again.
        assert {name for name in stand.databases() if stand.id in name or "drill" in name} == {
            f"{DATABASE}_before_{stand.id}"
        }
