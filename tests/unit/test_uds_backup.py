"""The operator's side of backups: what a folder of them holds, what opens them, and how copies are compared."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pyrage
import pytest

from uds.backup import command, on_server, restore
from uds.backup.catalogue import Backup, Listing, age_text, chosen, parse, size_text
from uds.backup.compare import compare
from uds.backup.fetch import fetch
from uds.backup.identity import Identities
from uds.backup.servers import Download
from uds.stack import OperatorError, Stack

ID, OLDER = "20260302T000100Z", "20260301T000100Z"


def manifest(one: str, *names: str, size: int = 10) -> str:
    files = [{"name": f"{one}{name}", "size": size, "sha256": "0" * 64} for name in names]
    return json.dumps({"id": one, "files": files})


def listing(*files: str, manifests: dict[str, str] | None = None) -> Listing:
    described = {f"{one}.manifest.json": text for one, text in (manifests or {}).items()}
    return Listing(dict.fromkeys([*files, *described], 10), described)


# What there is


def test_backups_are_listed_newest_first_with_what_is_in_them() -> None:
    names = ("_app_data.sql.zst.age", ".files.tar.zst.age", ".accounts.sql.zst.age")
    found = parse(
        listing(
            *(f"{one}{name}" for one in (OLDER, ID) for name in names),
            "something-else",
            manifests={one: manifest(one, *names) for one in (OLDER, ID)},
        )
    )
    assert [backup.id for backup in found] == [ID, OLDER]
    newest = found[0]
    assert (list(newest.databases), newest.size, newest.problems) == (["app_data"], 30, ())
    assert newest.archive
    assert newest.accounts
    assert newest.begun == datetime(2026, 3, 2, 0, 1, tzinfo=UTC)
    assert chosen(found, None) is newest
    assert chosen(found, OLDER) is found[1]


def test_backups_are_listed_when_the_database_server_is_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(_servers: object) -> list[Backup]:
        raise OperatorError("db-1: No route to host")

    name = "_a.sql.zst.age"
    kept = parse(listing(f"{ID}{name}", manifests={ID: manifest(ID, name)}))
    monkeypatch.setattr(Stack, "open", lambda *_, **__: None)
    monkeypatch.setattr(command, "_opened", lambda *_: nullcontext((None, None)))
    monkeypatch.setattr(command, "stored", lambda _: kept)
    monkeypatch.setattr(command, "waiting", gone)
    command.list_backups("linode")
    said = capsys.readouterr()
    assert ID in said.out
    assert "What waits on db-1 is not known: db-1: No route to host" in said.err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "its manifest is missing"),
        ("{", "its manifest can't be read"),
        ('{"files": [{"name": "x"}]}', "its manifest can't be read"),
        (manifest(ID, "_b.sql.zst.age"), f"{ID}_b.sql.zst.age is missing"),
        (manifest(ID, "_a.sql.zst.age", size=11), f"{ID}_a.sql.zst.age has 10 bytes instead of 11"),
        (manifest(ID, "_../../etc/x"), "its manifest has a strange name in it"),
    ],
)
def test_a_backup_that_is_not_whole_is_told_and_not_taken(text: str | None, problem: str) -> None:
    older = manifest(OLDER, "_a.sql.zst.age")
    manifests = {OLDER: older} | ({} if text is None else {ID: text})
    found = parse(listing(f"{ID}_a.sql.zst.age", f"{OLDER}_a.sql.zst.age", manifests=manifests))
    assert problem in found[0].problems[0]
    with pytest.raises(OperatorError, match=f"The newest complete one: {OLDER}"):
        chosen(found, None)
    with pytest.raises(OperatorError, match="isn't complete"):
        chosen(found, ID)
    assert chosen(found, OLDER).id == OLDER


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(OperatorError, match="no backups yet"):
        chosen([], None)
    with pytest.raises(OperatorError, match=f"no backup 2020.*There are: {ID}"):
        chosen([Backup(ID, (), ())], "20200101T000000Z")


def test_ages_and_sizes_are_for_people() -> None:
    assert [age_text(timedelta(minutes=m)) for m in (-3, 5, 65, 1500)] == ["0 min", "5 min", "1 h 5 min", "1 d 1 h"]
    assert [size_text(size) for size in (9, 2048, 3 << 30, 5 << 40)] == ["9 B", "2.0 KiB", "3.0 GiB", "5.0 TiB"]


# Comparing


def test_structure_is_compared_strictly_and_rows_are_told() -> None:
    copy = {"structure": {"table a": "x\n  one\n", "view v": "v"}, "counts": {"a": 3, "gone": 1}}
    live = {"structure": {"table a": "x\n  two\n", "trigger t": "t"}, "counts": {"a": 5}}
    found = compare(copy, live)
    assert found.structure == (
        "trigger t is missing in the backup",
        "view v is in the backup only",
        "table a differs: backup one, live two",
    )
    assert found.counts == {"a": (3, 5)}
    assert list(restore.other_counts(found)) == ["table a: 3 rows in the backup, 5 live"]
    assert compare(copy, copy).structure == ()


# Opening


def identity_file(folder: Path, *identities: pyrage.x25519.Identity, encrypted: bool = True) -> Path:
    text = "".join(f"# public key: {one.to_public()}\n{one}\n" for one in identities).encode()
    file = folder / "identity.age"
    file.write_bytes(pyrage.passphrase.encrypt(text, "secret") if encrypted else text)
    return file


def test_an_identity_opens_what_is_for_it(tmp_path: Path) -> None:
    mine, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    identities = Identities.load(identity_file(tmp_path, other, mine), lambda: "secret")
    target = io.BytesIO()
    identities.decrypt(io.BytesIO(pyrage.encrypt(b"text" * 99999, [mine.to_public()])), target, "x")
    assert target.getvalue() == b"text" * 99999


def test_an_identity_without_a_passphrase_needs_none(tmp_path: Path) -> None:
    def never() -> str:
        raise AssertionError("nobody is asked")

    Identities.load(identity_file(tmp_path, pyrage.x25519.Identity.generate(), encrypted=False), never)


def test_what_can_not_be_opened_says_why(tmp_path: Path) -> None:
    mine, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    with pytest.raises(OperatorError, match="missing"):
        Identities.load(tmp_path / "nothing", lambda: "secret")
    file = identity_file(tmp_path, mine)
    with pytest.raises(OperatorError, match="passphrase does not open"):
        Identities.load(file, lambda: "wrong")
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(OperatorError, match="no age identity"):
        Identities.load(tmp_path / "junk", lambda: "secret")
    identities = Identities.load(file, lambda: "secret")
    whole = pyrage.encrypt(bytes(300_000), [mine.to_public()])
    flipped = bytearray(whole)
    flipped[200_000] ^= 1
    for text, words in {
        pyrage.encrypt(b"x", [other.to_public()]): "not encrypted for the identity",
        whole[:150_000]: "damaged or cut off",
        whole[:-1]: "damaged or cut off",
        bytes(flipped): "damaged or cut off",
        whole[:50]: "damaged",
        b"": "damaged",
        b"junk" * 99: "damaged, or no encrypted file",
    }.items():
        with pytest.raises(OperatorError, match=words):
            identities.decrypt(io.BytesIO(text), io.BytesIO(), "the file")


def test_a_busy_machine_opens_an_identity_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = ["Excessive work parameter for passphrase.\nDecryption would take around 32 seconds."] * 3

    def decrypt(_text: bytes, _passphrase: str) -> bytes:
        if refusals:
            raise pyrage.DecryptError(refusals.pop())
        return f"{pyrage.x25519.Identity.generate()}\n".encode()

    file = tmp_path / "identity.age"
    file.write_bytes(b"age-encryption.org/v1\n-> scrypt")
    monkeypatch.setattr(pyrage.passphrase, "decrypt", decrypt)
    Identities.load(file, lambda: "secret")


def test_a_target_that_breaks_is_no_damage() -> None:
    class Broken(io.BytesIO):
        def write(self, *_: object) -> int:
            raise BrokenPipeError

    mine = pyrage.x25519.Identity.generate()
    identities = Identities([mine], Path("identity"))
    with pytest.raises(BrokenPipeError):
        identities.decrypt(io.BytesIO(pyrage.encrypt(b"x", [mine.to_public()])), Broken(), "x")


# Loading


DUMP = b"ALTER DATABASE CHARACTER SET utf8mb4;\n%s\n-- Dump completed on 2026-03-02  0:01:00\n"


@pytest.mark.parametrize("size", [0, 1, 60, 300, 5000])
def test_a_dump_goes_through_as_it_is(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_server, "_BLOCK", 301)
    dump = DUMP.replace(b"%s", b"x" * size)
    assert b"".join(on_server._whole(io.BytesIO(dump), "app")) == dump


@pytest.mark.parametrize("text", [b"", DUMP[:-60], DUMP + b"-- more\n" * 999])
def test_a_dump_without_its_last_line_is_refused(text: bytes) -> None:
    with pytest.raises(on_server.RefusedError, match="last line is missing"):
        list(on_server._whole(io.BytesIO(text), "app"))


@pytest.mark.parametrize("words", [b"USE `app`;", b"CREATE DATABASE /*!32312 IF NOT EXISTS*/ `app`;"])
def test_a_dump_that_chooses_a_database_is_refused(words: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (30, 301, 5000):
        monkeypatch.setattr(on_server, "_BLOCK", size)
        blocks = on_server._whole(io.BytesIO(DUMP.replace(b"%s", b"x" * 280 + b"\n" + words + b"y" * 9999)), "app")
        with pytest.raises(on_server.RefusedError, match="chooses a database"):
            list(blocks)


TRIGGER = b"""DELIMITER ;;
/*!50003 CREATE*/ /*!50017 DEFINER=`root`@`localhost`*/ /*!50003 %s
BEGIN
  INSERT INTO app.log SELECT * FROM app.things;
END */;;
"""


@pytest.mark.parametrize(
    "head",
    [
        b"trigger app.t before insert on app.things for each row",
        b"TRIGGER `app`.`t` AFTER UPDATE ON `app`.`things` FOR EACH ROW",
        b"TRIGGER t\n  AFTER DELETE\n ON app . things FOR EACH ROW",
    ],
)
def test_a_trigger_loses_the_name_of_its_database_but_not_in_its_body(head: bytes) -> None:
    text = TRIGGER.replace(b"%s", head)
    for found in (
        on_server.unqualified(text, "app"),
        b"".join(on_server._whole(io.BytesIO(DUMP.replace(b"%s", b"x" * (1 << 20) + text)), "app")),
    ):
        assert b"INSERT INTO app.log SELECT * FROM app.things;" in found
        assert b"app" not in found.partition(b"/*!50003 CREATE")[2].partition(b"BEGIN")[0]
    other = text.replace(b"app", b"other")
    assert on_server.unqualified(other, "app") == other


def test_values_that_look_like_a_trigger_stay() -> None:
    row = b"INSERT INTO `a` VALUES ('\\n/*!50003 CREATE*/ /*!50003 TRIGGER app.t BEFORE INSERT ON app.a');\n"
    assert on_server.unqualified(b"CREATE TABLE `a`;\n" + row, "app") == b"CREATE TABLE `a`;\n" + row


def test_names_are_quoted() -> None:
    assert on_server.name("a`; DROP") == "`a``; DROP`"


def test_a_name_that_no_server_takes_is_refused() -> None:
    assert restore.name("app_restored", Backup(ID, (), ())) == f"app_restored_{ID}"
    with pytest.raises(OperatorError, match="choose one with --as"):
        restore.name("a" * 60, Backup(ID, (), ()))


# A backup server in memory


@dataclass
class Memory:
    """Servers, and a place that has these files."""

    content: dict[str, bytes]
    breaks_after: int | None = None
    offsets: list[int] = field(default_factory=list)
    name: str = "the backup server"
    asked: list[str] = field(default_factory=list)
    live: dict[str, Any] = field(default_factory=lambda: {"structure": {"table a": "x"}, "counts": {"a": 1}})
    copy: dict[str, Any] = field(default_factory=lambda: {"structure": {"table a": "x"}, "counts": {"a": 1}})
    loaded: dict[str, bytes] = field(default_factory=dict)

    def manifest(self, one: str = ID) -> None:
        files = [
            {"name": name, "size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
            for name, text in self.content.items()
        ]
        self.content[f"{one}.manifest.json"] = json.dumps({"files": files}).encode()

    def listing(self) -> Listing:
        manifests = {name: text.decode() for name, text in self.content.items() if name.endswith(".manifest.json")}
        return Listing({name: len(text) for name, text in self.content.items()}, manifests)

    @contextmanager
    def file(self, name: str, offset: int, seen: Callable[[int], None]) -> Iterator[Download]:
        self.offsets.append(offset)
        text = self.content[name][offset:]
        if self.breaks_after is not None:
            yield Download(io.BytesIO(text[: self.breaks_after]), seen)
            raise OperatorError("the connection ended")
        yield Download(io.BytesIO(text), seen)

    def ask(
        self, server: str, action: str, feed: Callable[[IO[bytes]], None] | None = None, **request: str
    ) -> dict[str, Any]:
        self.asked.append(f"{server} {action} {request.get('database', '')}".strip())
        match action:
            case "load" if feed:
                target = io.BytesIO()
                feed(target)
                self.loaded[request["database"]] = target.getvalue()
            case "drop":
                self.loaded.pop(request["database"], None)
            case "describe":
                return self.copy if request["database"] in self.loaded else self.live
        return {}


def quiet(*_: object) -> Callable[[int], None]:
    return lambda _count: None


@pytest.fixture
def key() -> pyrage.x25519.Identity:
    return pyrage.x25519.Identity.generate()


@pytest.fixture
def servers(key: pyrage.x25519.Identity) -> Memory:
    memory = Memory({f"{ID}_app.sql.zst.age": pyrage.encrypt(bytes(100_000), [key.to_public()])})
    memory.manifest()
    return memory


def restorer(servers: Memory, key: pyrage.x25519.Identity) -> restore.Restorer:
    return restore.Restorer(servers, servers, Identities([key], Path("identity")), quiet)  # type: ignore[arg-type]


def stored(servers: Memory) -> Backup:
    return restore.stored(servers)[0]


def fetched(servers: Memory, folder: Path) -> None:
    fetch(servers, stored(servers), folder, quiet)


def test_fetching_goes_on_where_it_was_cut_off(servers: Memory, tmp_path: Path) -> None:
    servers.breaks_after = 70_000
    with pytest.raises(OperatorError, match="the connection ended"):
        fetched(servers, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [f"{ID}_app.sql.zst.age.part"]
    servers.breaks_after = None
    fetched(servers, tmp_path)
    assert servers.offsets == [0, 70_000]
    assert (tmp_path / f"{ID}_app.sql.zst.age").read_bytes() == servers.content[f"{ID}_app.sql.zst.age"]
    fetched(servers, tmp_path)
    assert len(servers.offsets) == 2
    assert (tmp_path / f"{ID}.manifest.json").read_bytes() == servers.content[f"{ID}.manifest.json"]


def test_fetching_never_overwrites_and_never_keeps_something_else(servers: Memory, tmp_path: Path) -> None:
    (tmp_path / f"{ID}_app.sql.zst.age").write_text("mine")
    with pytest.raises(OperatorError, match="something else"):
        fetched(servers, tmp_path)
    assert (tmp_path / f"{ID}_app.sql.zst.age").read_text() == "mine"
    damaged = bytearray(servers.content[f"{ID}_app.sql.zst.age"])
    damaged[-1] ^= 1
    servers.content[f"{ID}_app.sql.zst.age"] = bytes(damaged)
    with pytest.raises(OperatorError, match="SHA-256 differs"):
        fetched(servers, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_a_restored_database_is_accepted_when_all_of_it_is_right(servers: Memory, key: pyrage.x25519.Identity) -> None:
    restorer(servers, key).into_new(stored(servers), "app", "copy")
    assert servers.loaded == {"copy": bytes(100_000)}
    assert servers.asked[-2:] == ["db-1 load copy", "db-1 accept copy"]


@pytest.mark.parametrize("position", [0, 300, 50_000, -1])
def test_a_file_that_was_changed_is_never_accepted(servers: Memory, key: pyrage.x25519.Identity, position: int) -> None:
    backup = stored(servers)
    damaged = bytearray(servers.content[f"{ID}_app.sql.zst.age"])
    damaged[position] ^= 1
    servers.content[f"{ID}_app.sql.zst.age"] = bytes(damaged)
    with pytest.raises(OperatorError, match="damaged"):
        restorer(servers, key).into_new(backup, "app", "copy")
    assert servers.loaded == {}
    assert "db-1 accept copy" not in servers.asked


def test_a_file_that_somebody_put_there_is_never_accepted(servers: Memory, key: pyrage.x25519.Identity) -> None:
    # Everybody has the public key.
    backup = stored(servers)
    servers.content[f"{ID}_app.sql.zst.age"] = pyrage.encrypt(bytes(100_000), [key.to_public()])
    with pytest.raises(OperatorError, match="SHA-256 differs"):
        restorer(servers, key).into_new(backup, "app", "copy")
    assert servers.loaded == {}


def drilled(servers: Memory, key: pyrage.x25519.Identity, hours: float, *wanted: str) -> restore.Drill:
    now = stored(servers).begun + timedelta(hours=hours)
    return restore.drill(restorer(servers, key), wanted, now)


def test_a_drill_that_passes_leaves_nothing(servers: Memory, key: pyrage.x25519.Identity) -> None:
    servers.live["counts"] = {"a": 2}
    found = drilled(servers, key, 25.9, "app")
    assert found.problems == []
    assert found.comparisons["app"].counts == {"a": (1, 2)}
    assert servers.loaded == {}
    assert not any("accept" in line for line in servers.asked)


def test_a_drill_tells_what_is_wrong(servers: Memory, key: pyrage.x25519.Identity) -> None:
    assert "1 d 2 h old" in drilled(servers, key, 26.1, "app").problems[0]
    assert "which clock is wrong" in drilled(servers, key, -1, "app").problems[0]
    assert drilled(servers, key, 1, "app", "shop").problems == ["the newest backup has no shop in it"]
    servers.live["structure"] = {"table a": "y"}
    assert drilled(servers, key, 1, "app").problems == ["app: table a differs: backup x, live y"]
    assert servers.loaded == {}
