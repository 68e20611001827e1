"""The database server's side: the stream, the spool, and handing over; with stand-ins for age, zstd and ssh."""

import base64
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from hypothesis import given
from hypothesis import strategies as st

from components.backup import sender, sender_files, store_files, watch
from components.backup.sender import BackupError, BackupServer, Bucket, Entry, Source, Spool, UnreachableError, encrypt
from components.backup.store import STAMP
from tests.unit.support import configuration, settings

RUN = "20261130T000100Z"
END = b"-- Dump completed on some day\n"
HEADER = b"age-encryption.org/v1\n"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a program in front of all others."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sender, "RESERVE", 0.0)

    def write(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    write("zstd", "exec cat")
    write("age", "printf 'age-encryption.org/v1\\n'; exec cat")
    return write


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    (tmp_path / "spool").mkdir()
    return Spool(tmp_path / "spool")


def dump(script: str, name: str = f"{RUN}_production.sql.zst.age", begin: bytes = b"") -> Source:
    return Source("production", name, ["sh", "-c", script], lambda end: end.endswith(END), begin)


def good(name: str = f"{RUN}_production.sql.zst.age") -> Source:
    return dump(f"printf '%s\\n' '{END.decode().strip()}'", name)


# The stream


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 65536, 3_000_001])
@pytest.mark.usefixtures("program")
def test_what_a_program_prints_is_all_there_whatever_its_size(tmp_path: Path, size: int) -> None:
    source = dump(f"head -c {size} /dev/zero; printf '%s' '{END.decode()}'", begin=b"first\n")
    entry = encrypt(source, tmp_path / "out.part")
    content = (tmp_path / "out.part").read_bytes()
    assert content == HEADER + b"first\n" + bytes(size) + END
    assert entry == Entry("out", len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    ("name", "script", "said"),
    [
        ("age", "echo no recipients >&2; exit 1", "age failed with 1: no recipients"),
        ("age", "head -c 10 >/dev/null; exit 3", "age failed with 3"),
        ("zstd", "echo broken >&2; exit 2", "zstd failed with 2: broken"),
        ("zstd", "kill -KILL $$", "zstd failed with -9: it does not say why"),
        ("dumper", "head -c 3000000 /dev/zero; echo 'Lost connection' >&2; exit 3", "dumper failed with 3: Lost conn"),
        ("dumper", "head -c 3000000 /dev/zero", "it ends too early, though every program says that all went well"),
        ("dumper", "true", "it ends too early"),
    ],
)
def test_every_program_of_the_stream_must_succeed(
    program: Callable[[str, str], None], tmp_path: Path, name: str, script: str, said: str
) -> None:
    program("dumper", f"head -c 3000000 /dev/zero; printf '%s' '{END.decode()}'")
    program(name, script)
    source = Source("production", "x", ["dumper"], lambda end: end.endswith(END))
    with pytest.raises(BackupError, match=said):
        encrypt(source, tmp_path / "out.part")


def test_a_full_disk_ends_every_program(
    program: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("dumper", "exec cat /dev/zero")
    monkeypatch.setattr(sender, "RESERVE", 2.0)
    with pytest.raises(BackupError, match=r"is full: 200% of it stay free for the database"):
        encrypt(Source("production", "x", ["dumper"], lambda _: True), tmp_path / "out.part")


@pytest.mark.usefixtures("program")
def test_a_harmless_status_and_its_warning_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Source("files", "x", ["sh", "-c", "echo changed >&2; exit 1"], lambda _: True, allowed=frozenset({0, 1}))
    encrypt(source, tmp_path / "out.part")
    assert "files: sh: changed" in capsys.readouterr().err


@given(st.binary(max_size=50))
def test_a_dump_ends_with_its_mark(text: bytes) -> None:
    assert sender._ends_as_a_dump(text + b"\n-- Dump completed on 2026-11-30  0:01:00\n")
    assert not sender._ends_as_a_dump(text + b"\n-- Dump compl")


# The spool


def names(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "spool").iterdir()}


def parts(*sources: Source) -> list[tuple[str, Callable[[], Source]]]:
    def prepared(source: Source) -> Callable[[], Source]:
        return lambda: source

    return [(source.name, prepared(source)) for source in sources]


@pytest.mark.usefixtures("program")
def test_a_backup_is_complete_with_its_manifest(spool: Spool, tmp_path: Path) -> None:
    spool.make(RUN, parts(good(), good(f"{RUN}.accounts.sql.zst.age")))
    manifest = json.loads((tmp_path / "spool" / f"{RUN}.manifest.json").read_text())
    assert manifest["id"] == RUN
    for file in manifest["files"]:
        content = (tmp_path / "spool" / file["name"]).read_bytes()
        assert (file["size"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    before = names(tmp_path)
    spool.clean()
    assert names(tmp_path) == before


@pytest.mark.usefixtures("program")
def test_all_that_cant_be_saved_is_named_and_nothing_stays(spool: Spool, tmp_path: Path) -> None:
    def missing() -> Source:
        raise BackupError("there is no such database")

    with pytest.raises(BackupError) as raised:
        spool.make(RUN, [*parts(good()), ("second", missing), ("files", partial(dump, "exit 2", "x"))])
    assert str(raised.value) == "second: there is no such database\nfiles: sh failed with 2: it does not say why"
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("program")
def test_what_a_kill_left_is_removed_and_what_waits_stays(spool: Spool, tmp_path: Path) -> None:
    spool.make(RUN, parts(good()))
    waits = names(tmp_path)
    for name in ("20261201T000100Z_production.sql.zst.age", "20261201T000100Z.manifest.json.part", "x.part"):
        (tmp_path / "spool" / name).write_text("half")
    spool.clean()
    assert names(tmp_path) == waits


def test_only_one_at_a_time(spool: Spool) -> None:
    with spool.locked(), pytest.raises(BackupError, match="another backup is running"), spool.locked():
        pass
    with spool.locked():
        pass


# Handing over


def server(program: Callable[[str, str], None], script: str) -> BackupServer:
    program("ssh", script)
    return BackupServer("10.20.0.6")


TAKES = (
    'read -r line; cat >/dev/null; name=${line#*\\"name\\": \\"}; echo "stored ${name%%\\"*}"; echo "$line" >> "$LOG"'
)


def test_files_go_before_their_manifest_and_leave_the_spool(
    program: Callable[[str, str], None], spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    for run in (RUN, "20261129T000100Z"):
        spool.make(run, parts(good(f"{run}_production.sql.zst.age")))
    assert list(spool.bring([server(program, TAKES)])) == []
    assert names(tmp_path) == set()
    sent = [json.loads(line)["name"] for line in (tmp_path / "log").read_text().splitlines()]
    # Oldest first.
    assert sent == [
        "20261129T000100Z_production.sql.zst.age",
        "20261129T000100Z.manifest.json",
        f"{RUN}_production.sql.zst.age",
        f"{RUN}.manifest.json",
    ]


def test_what_is_refused_stays_and_does_not_hold_up_the_others(
    program: Callable[[str, str], None], spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    for run in (RUN, "20261129T000100Z"):
        spool.make(run, parts(good(f"{run}_production.sql.zst.age")))
    # Before all of it is read, as the real one does.
    refuses = 'read -r line; case $line in *20261129*) echo "refused: too much"; exit 1 ;; esac; echo "$line" | {'
    refuses += f"{TAKES}}}"
    (said,) = spool.bring([server(program, refuses)])
    assert "does not take 20261129T000100Z_production.sql.zst.age: too much" in said
    assert {name[:16] for name in names(tmp_path)} == {"20261129T000100Z"}


@pytest.mark.parametrize("script", ["echo 'No route to host' >&2; exit 255", "echo 'stored another'; exit 0"])
def test_a_server_that_does_not_answer_as_it_should_is_not_reached(
    program: Callable[[str, str], None], spool: Spool, script: str
) -> None:
    spool.make(RUN, parts(good()))
    place = server(program, script)
    (said,) = spool.bring([place])
    assert re.search(r"10\.20\.0\.6\) can't be reached: (No route to host|stored another)", said)
    assert "; 1 encrypted backups wait in " in said
    assert spool.waiting(place) == 1


def test_a_run_that_was_cut_goes_on_where_it_was(
    program: Callable[[str, str], None], spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    spool.make(RUN, parts(good(), good(f"{RUN}.accounts.sql.zst.age")))
    (tmp_path / "spool" / f"{RUN}_production.sql.zst.age").unlink()
    assert list(spool.bring([server(program, TAKES)])) == []
    assert names(tmp_path) == set()


@dataclass
class Somewhere:
    """A place that takes everything, unless it is told not to."""

    key: str
    fails: BackupError | None = None
    got: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"at {self.key}"

    def push(self, path: Path, entry: Entry) -> None:
        if self.fails and (not isinstance(self.fails, UnreachableError) or self.got):
            raise self.fails
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256
        self.got.append(entry.name)


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("fails", [UnreachableError("down"), BackupError("no")])
@pytest.mark.parametrize("first", [True, False])
def test_what_one_place_misses_waits_for_it_and_no_other_gets_it_twice(
    spool: Spool, tmp_path: Path, fails: BackupError, first: bool
) -> None:
    sent = [f"{RUN}_production.sql.zst.age", f"{RUN}.accounts.sql.zst.age", f"{RUN}.manifest.json"]
    spool.make(RUN, parts(good(), good(sent[1])))
    well, ill = Somewhere("well"), Somewhere("ill", fails)
    both = [ill, well] if first else [well, ill]
    (said,) = spool.bring(both)
    assert str(fails) in said
    assert well.got == sent
    # A kill, and what the next run does first.
    assert set(sent) <= names(tmp_path)
    before = names(tmp_path)
    spool.clean()
    assert names(tmp_path) == before
    assert (spool.waiting(well), spool.waiting(ill)) == (0, 1)
    ill.fails = None
    assert list(spool.bring(both)) == []
    assert (well.got, ill.got) == (sent, sent)
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("program")
def test_what_waits_for_a_place_that_is_none_any_more_goes(spool: Spool, tmp_path: Path) -> None:
    spool.make(RUN, parts(good()))
    stays, goes = Somewhere("stays"), Somewhere("goes", BackupError("no"))
    list(spool.bring([stays, goes]))
    assert list(spool.bring([stays])) == []
    assert names(tmp_path) == set()
    assert len(stays.got) == 2


@dataclass
class Client:
    """What boto3 makes of a bucket."""

    raises: Exception | None = None
    put: list[dict[str, object]] = field(default_factory=list)
    uploaded: list[tuple[object, ...]] = field(default_factory=list)

    def put_object(self, **request: object) -> None:
        if self.raises:
            raise self.raises
        self.put.append(request)

    def upload_file(self, *arguments: object, **options: object) -> None:
        self.uploaded.append((*arguments, options["ExtraArgs"]))


def bucket(client: Client) -> Bucket:
    made = Bucket("backups-of-test", "eu-central-1")
    made.__dict__["_client"] = client
    return made


def test_a_bucket_gets_a_checksum_that_it_can_verify(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    client, digest = Client(), hashlib.sha256(b"x")
    bucket(client).push(tmp_path / "file", Entry("file", 1, digest.hexdigest()))
    (request,) = client.put
    assert base64.b64decode(str(request["ChecksumSHA256"])) == digest.digest()
    assert (request["Bucket"], request["Key"]) == ("backups-of-test", "file")
    # A file that could not go at once goes in parts, each of them checked.
    bucket(client).push(tmp_path / "file", Entry("large", 5 << 30, digest.hexdigest()))
    assert client.uploaded == [
        (str(tmp_path / "file"), "backups-of-test", "large", {"ChecksumAlgorithm": "SHA256"}),
    ]


def test_a_bucket_that_refuses_and_one_that_is_out_of_reach_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    entry = Entry("file", 1, "00" * 32)
    denied = ClientError({"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}, "PutObject")
    with pytest.raises(BackupError, match=r"bucket backups-of-test does not take file: .*AccessDenied") as raised:
        bucket(Client(denied)).push(tmp_path / "file", entry)
    assert not isinstance(raised.value, UnreachableError)
    for broken in (EndpointConnectionError(endpoint_url="https://s3"), NoCredentialsError()):
        with pytest.raises(UnreachableError, match="bucket backups-of-test can't be reached: "):
            bucket(Client(broken)).push(tmp_path / "file", entry)


def test_places_are_those_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "ETC", tmp_path)
    (tmp_path / "bucket.json").write_text("null")
    assert sender.places({"address": "10.20.0.6"}) == [BackupServer("10.20.0.6")]
    (tmp_path / "bucket.json").write_text('{"name": "b", "region": "eu-central-1"}')
    assert sender.places({"address": None}) == [Bucket("b", "eu-central-1")]
    assert len(sender.places({"address": "10.20.0.6"})) == 2


def test_a_key_is_pinned_and_nothing_is_asked() -> None:
    command = BackupServer("10.20.0.6")._command()
    for option in ("StrictHostKeyChecking=yes", "BatchMode=yes", "IdentitiesOnly=yes", "GlobalKnownHostsFile=none"):
        assert option in command
    assert command[-1] == "backup-push@10.20.0.6"


# The servers' files


def test_the_servers_get_what_they_need_and_no_more() -> None:
    made = settings({"backup.databases": ["second"], "backup.paths": ["/srv"]})
    files = {file.path: file for file in sender_files(made, "10.20.0.6")}
    assert json.loads(files["/etc/uds/backup/config.json"].content) == {
        "address": "10.20.0.6",
        "databases": ["production", "second"],
        "paths": ["/srv"],
    }
    assert files["/etc/uds/backup/recipients"].content == configuration()["backup"]["recipients"][0] + "\n"
    assert files["/etc/uds/backup/key"].mode == 0o600
    assert "MemoryMax=256M" in files["/etc/systemd/system/uds-backup.service"].content
    keeps = {file.path: file for file in store_files(made, "10.20.0.5")}
    line = keeps["/etc/ssh/authorized_keys.d/backup-push"].content
    assert line.startswith('restrict,from="10.20.0.5",command="/usr/local/sbin/uds-backup-receive" ssh-ed25519 ')
    assert "PRIVATE KEY" not in "".join(file.content for file in keeps.values())
    assert "Match User backup-push Address 10.20.0.5\n" in keeps["/etc/ssh/sshd_config.d/01-backup.conf"].content


def test_without_a_backup_server_there_is_no_key_of_it() -> None:
    made = settings({"cloud": "aws", "region": "eu-central-1", "backup.server": False, "backup.bucket": True})
    files = {file.path: file for file in sender_files(made, None)}
    assert json.loads(files["/etc/uds/backup/config.json"].content)["address"] is None
    assert files["/etc/uds/backup/key"].content == ""


def test_the_programs_on_the_servers_need_nothing_that_is_not_pythons_own() -> None:
    made = settings()
    for file in [*sender_files(made, "10.20.0.6"), *store_files(made, "10.20.0.5")]:
        if file.content.startswith("#!/usr/bin/python3"):
            imported = {
                line.split()[1].split(".")[0]
                for line in file.content.splitlines()
                if line.startswith(("import ", "from "))
            }
            assert imported <= sys.stdlib_module_names


def test_the_age_of_the_newest_backup_is_watched() -> None:
    assert str(STAMP) in watch()
    assert "26 hours" in watch()


# MySQL's accounts, which its own dump leaves out


def test_mysqls_accounts_are_statements_and_all_come_before_any_right(
    program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    program(
        "mysql",
        """
        asked=$(cat)
        case $asked in
        *'FROM mysql.user'*) printf 'app\\t10.20.0.11\\no%sbrien\\t%%\\n' "'" ;;
        *)
            echo "CREATE USER \\`app\\`@\\`10.20.0.11\\` IDENTIFIED WITH 'x' AS 0xFF"
            echo 'GRANT CREATE USER ON *.* TO `app`'
            ;;
        esac
        echo "$asked" > "$LOG"
        """,
    )
    log = Path(os.environ["PATH"].partition(os.pathsep)[0]) / "log"
    monkeypatch.setenv("LOG", str(log))
    accounts = sender.Engine().accounts(RUN)
    assert accounts.begin.decode().splitlines() == [
        "CREATE USER IF NOT EXISTS `app`@`10.20.0.11` IDENTIFIED WITH 'x' AS 0xFF;",
        "GRANT CREATE USER ON *.* TO `app`;",
        "-- Dump completed",
    ]
    assert accounts.ends(accounts.begin)
    asked = log.read_text()
    assert asked.index("SHOW CREATE USER 'o\\'brien'@'%'") < asked.index("SHOW GRANTS FOR 'app'@'10.20.0.11'")
