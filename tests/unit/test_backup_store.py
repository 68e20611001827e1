"""What the backup server takes and keeps, whoever sends it."""

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.backup import store
from components.backup.store import DAY, KEEP_RUNS, KEEP_SECONDS, Disk, Held, RefusedError, Store, check, superfluous

AGE = b"age-encryption.org/v1\n"
RUN = "20261130T000100Z"
NAME = f"{RUN}_production.sql.zst.age"
MANIFEST = f"{RUN}.manifest.json"
BIG = Disk(10**12, 10**12)
NOW = 2_000_000_000.0


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    # The test machine's own disk may be nearly full.
    monkeypatch.setattr(Store, "_disk", lambda _: BIG)
    (tmp_path / "store").mkdir()
    return Store(tmp_path / "store", tmp_path / "stamp")


def send(kept: Store, *pieces: bytes) -> str:
    """The answer to a connection on which this comes in."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(0.5)

        def feed() -> None:
            for piece in pieces:
                ours.sendall(piece)
            ours.shutdown(socket.SHUT_WR)

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            return f"stored {kept.take(theirs)}"
        except RefusedError as error:
            return f"refused: {error}"
        finally:
            feeder.join()


def header(name: object, content: bytes, **other: object) -> bytes:
    said = {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **other}
    return json.dumps(said).encode() + b"\n"


def put(kept: Store, name: str, content: bytes) -> str:
    return send(kept, header(name, content), content)


def manifest(*files: tuple[str, bytes]) -> bytes:
    return json.dumps({"files": [{"name": name, "size": len(content)} for name, content in files]}).encode()


def files(kept: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in kept._folder.iterdir()}


# What is taken


def test_a_backup_arrives_file_by_file_and_is_complete_with_its_manifest(kept: Store) -> None:
    content = AGE + os.urandom(3_000_000)
    assert put(kept, NAME, content) == f"stored {NAME}"
    assert not kept._stamp.exists()
    whole = manifest((NAME, content))
    assert put(kept, MANIFEST, whole) == f"stored {MANIFEST}"
    assert files(kept) == {NAME: content, MANIFEST: whole}
    assert kept._stamp.exists()
    assert {path.stat().st_mode & 0o777 for path in kept._folder.iterdir()} == {0o400}


def test_when_it_arrived_is_this_servers_own_time(kept: Store) -> None:
    before = time.time()
    assert put(kept, "20991231T000100Z.accounts.sql.zst.age", AGE).startswith("stored")
    (held,) = kept.held()
    assert before - 1 <= held.arrived <= time.time() + 1


def test_a_header_may_come_in_pieces_and_together_with_the_file(kept: Store) -> None:
    content = AGE + b"x" * 10
    whole = header(NAME, content) + content
    assert send(kept, *(whole[at : at + 1] for at in range(len(whole)))) == f"stored {NAME}"


def test_the_same_file_again_is_no_fault_since_an_answer_gets_lost(kept: Store) -> None:
    assert put(kept, NAME, AGE) == put(kept, NAME, AGE) == f"stored {NAME}"
    assert put(kept, MANIFEST, manifest((NAME, AGE))) == f"stored {MANIFEST}"
    assert put(kept, NAME, AGE) == f"stored {NAME}"


# What is refused


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        f"../{NAME}",
        f"/var/backups/uds/{NAME}",
        f"{NAME}\n",
        f"{NAME}.part",
        f"{RUN}_../x.sql.zst.age",
        f"{RUN}_production.sql",
        f"{RUN}.manifest.json\0",
        f"{RUN}_-x.sql.zst.age",
        f"{RUN}_{'x' * 65}.sql.zst.age",
        "2026-11-30_production.sql.zst.age",
        ".",
        "",
        7,
    ],
)
def test_other_names_are_refused(kept: Store, name: object) -> None:
    content = AGE
    assert "no name of a backup's file" in send(kept, header(name, content), content)
    assert files(kept) == {}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "first line is missing"),
        (b"{}\n", "must be JSON"),
        (b"[]\n", "must be JSON"),
        (b"null\n", "must be JSON"),
        (b"put x\n", "must be JSON"),
        (b"\xff\n", "must be JSON"),
        (b"x" * 10_000, "too long"),
        (header(NAME, AGE, size=True), "size must be"),
        (header(NAME, AGE, size=-1), "size must be"),
        (header(NAME, AGE, size="1"), "size must be"),
        (header(NAME, b""), "size must be"),
        (header(NAME, AGE, sha256="0" * 63), "sha256 must be"),
        (header(NAME, AGE, sha256=None), "sha256 must be"),
        (header(MANIFEST, AGE, size=2 << 20), "a manifest has at most"),
    ],
)
def test_a_first_line_that_says_something_else_is_refused(kept: Store, line: bytes, said: str) -> None:
    assert said in send(kept, line)
    assert files(kept) == {}


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (AGE[:-1], "1 of 22 bytes are missing"),
        (b"", "22 of 22 bytes are missing"),
        (AGE + b"x", "larger than was said"),
        (AGE[:-1] + b"x", "another checksum"),
    ],
)
def test_what_does_not_arrive_as_announced_never_counts(kept: Store, sent: bytes, said: str) -> None:
    assert said in send(kept, header(NAME, AGE), sent)
    assert files(kept) == {}


def test_what_is_not_encrypted_is_refused(kept: Store) -> None:
    assert "not encrypted" in put(kept, NAME, b"-- MariaDB dump of everything\n")
    assert files(kept) == {}


def test_a_silent_connection_ends(kept: Store) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(0.1)
        ours.sendall(header(NAME, AGE) + AGE[:5])
        with pytest.raises(RefusedError, match="nothing came"):
            kept.take(theirs)
    assert files(kept) == {}


def test_nothing_that_is_there_is_written_over(kept: Store) -> None:
    put(kept, NAME, AGE + b"good")
    assert "with another content" in put(kept, NAME, AGE + b"evil")
    assert files(kept) == {NAME: AGE + b"good"}


def test_a_complete_backup_takes_no_more_files(kept: Store) -> None:
    put(kept, NAME, AGE)
    put(kept, MANIFEST, manifest((NAME, AGE)))
    assert "it takes no more files" in put(kept, f"{RUN}_other.sql.zst.age", AGE)
    assert "another content" in put(kept, MANIFEST, manifest((NAME, AGE + b"x")))


@pytest.mark.parametrize(
    "content",
    [
        manifest(),
        manifest((NAME, AGE + b"x")),
        manifest((NAME, AGE), (f"{RUN}.accounts.sql.zst.age", AGE)),
        b"{}",
        b"[",
        b'{"files": [1]}',
    ],
)
def test_a_manifest_names_what_has_arrived(kept: Store, content: bytes) -> None:
    put(kept, NAME, AGE)
    assert "the manifest" in put(kept, MANIFEST, content)
    assert set(files(kept)) == {NAME}
    assert not kept._stamp.exists()


def test_what_a_kill_left_is_removed_by_the_next(kept: Store) -> None:
    (kept._folder / f"{NAME}.part").write_bytes(b"half")
    put(kept, NAME, AGE)
    assert set(files(kept)) == {NAME}


def test_two_at_once_wait_for_each_other(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE", 0.3)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(header(NAME, AGE))
        first = threading.Thread(target=kept.take, args=(theirs,))
        first.start()
        while not list(kept._folder.glob("*.part")):
            time.sleep(0.01)
        assert "another file is just arriving" in put(kept, f"{RUN}.accounts.sql.zst.age", AGE)
        ours.sendall(AGE)
        ours.shutdown(socket.SHUT_WR)
        first.join()
    assert put(kept, f"{RUN}.accounts.sql.zst.age", AGE).startswith("stored")


# Limits


def held(number: int, age: float, size: int = 1) -> list[Held]:
    run = f"202601{number // 24 + 1:02}T{number % 24:02}0000Z"
    return [
        Held(f"{run}_production.sql.zst.age", size, NOW - age),
        Held(f"{run}.manifest.json", 1, NOW - age),
    ]


def announced(size: int = 1, name: str = NAME) -> store.Announced:
    return store.Announced(name, size, "0" * 64)


def test_a_day_has_its_limits_of_backups_files_and_bytes() -> None:
    many = [file for number in range(store.RUNS_A_DAY) for file in held(number, DAY - 1)]
    with pytest.raises(RefusedError, match="at most 30 backups are taken in 24 hours"):
        check(announced(), many, BIG, NOW)
    check(announced(), [file for number in range(99) for file in held(number, DAY + 1)], BIG, NOW)
    # One that has begun goes on.
    begun = Held(f"{RUN}.accounts.sql.zst.age", 1, NOW)
    check(announced(), [*many[2:], begun], BIG, NOW)
    with pytest.raises(RefusedError, match="a backup has at most"):
        check(announced(), [Held(f"{RUN}_{n}.sql.zst.age", 1, NOW) for n in range(store.FILES_A_RUN)], BIG, NOW)
    with pytest.raises(RefusedError, match="at most 50% of the disk"):
        check(announced(size=10**11), held(1, 60, size=45 * 10**10), BIG, NOW)
    with pytest.raises(RefusedError, match="the disk is full"):
        check(announced(size=10**10), [], Disk(10**12, 5 * 10**10), NOW)


def test_a_clock_that_went_back_does_not_open_the_limits() -> None:
    future = [file for number in range(store.RUNS_A_DAY) for file in held(number, -DAY / 2)]
    with pytest.raises(RefusedError, match="at most 30"):
        check(announced(), future, BIG, NOW)


# What is kept

AGES = st.lists(st.tuples(st.floats(-2 * DAY, 40 * DAY), st.booleans()), max_size=40)


def runs(ages: Sequence[tuple[float, bool]]) -> list[Held]:
    """Backups of these ages, some of them never completed."""
    return [file for number, (age, whole) in enumerate(ages) for file in held(number, age)[: 2 if whole else 1]]


@given(AGES)
def test_kept_are_the_newest_seven_and_everything_under_seven_days(ages: list[tuple[float, bool]]) -> None:
    there = runs(ages)
    gone = superfluous(there, NOW)
    complete = sorted((file.arrived, file.run) for file in there if file.is_manifest)
    newest = {run for _, run in complete[-KEEP_RUNS:]}
    for file in there:
        young = NOW - file.arrived < KEEP_SECONDS
        assert (file.run in gone) == (not young and file.run not in newest)


@given(AGES, st.floats(0, 1000 * DAY))
def test_whatever_the_clock_says_the_newest_seven_stay(ages: list[tuple[float, bool]], jump: float) -> None:
    there = runs(ages)
    left = [file for file in there if file.is_manifest and file.run not in superfluous(there, NOW + jump)]
    assert len(left) >= min(KEEP_RUNS, sum(whole for _, whole in ages))


@given(AGES)
def test_names_decide_nothing(ages: list[tuple[float, bool]]) -> None:
    there = runs(ages)
    names = sorted({file.run for file in there})
    other = dict(zip(names, reversed(names), strict=True))
    turned = [Held(file.name.replace(file.run, other[file.run]), file.size, file.arrived) for file in there]
    # Two that arrived in the same moment are one as good as the other.
    if len({file.arrived for file in there if file.is_manifest}) == sum(file.is_manifest for file in there):
        assert {other[run] for run in superfluous(there, NOW)} == superfluous(turned, NOW)


def test_ten_nights(kept: Store) -> None:
    for night in range(10):
        for path in kept._folder.iterdir():
            then = path.stat().st_mtime - DAY
            os.utime(path, (then, then))
        run = f"202611{night + 1:02}T000100Z"
        put(kept, f"{run}_production.sql.zst.age", AGE)
        # One night, the connection broke before the end.
        if night != 4:
            put(kept, f"{run}.manifest.json", manifest((f"{run}_production.sql.zst.age", AGE)))
    found = {name[:8] for name in files(kept)}
    assert found == {f"202611{day:02}" for day in range(3, 11)}
