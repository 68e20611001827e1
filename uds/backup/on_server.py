"""What `uds backup` does on a server: a program that is sent there, runs as root, and leaves nothing behind.

It is asked by one line of JSON on standard input, which the content of a backup may follow, and answers by one line
of JSON. The content goes to the database's own client through pipes: no file but the database's own has any of it.

A database that isn't whole yet has a mark in `STATE`, beside the plan of a replacement that isn't finished, so that
whatever is killed, the next run knows what is a half of ours and what is somebody's data.
"""
# ruff: noqa: S608 - names and values in statements go through name() and quoted()

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from components.mysql.reconcile import Client, SqlError, quoted

STATE = Path("/var/lib/uds/restore")

_BLOCK = 1 << 20
_DUMP_ENDS = b"\n-- Dump completed"
_OVERLAP = 4096
_CHOOSES = (b"\nUSE `", b"\nCREATE DATABASE ")
# Somebody who has a transaction open keeps tables from being moved.
_LOCK_WAIT = "SET SESSION lock_wait_timeout = 60"

Answer = dict[str, Any]


class RefusedError(Exception):
    """Something that the operator has to know. Nothing was changed, or it was taken back."""


def name(identifier: str) -> str:
    """An identifier in SQL."""
    return "`" + identifier.replace("`", "``") + "`"


def list_folder(request: Mapping[str, Any], _: IO[bytes]) -> Answer:
    """The files of a folder of backups: sizes in bytes, and the text of each manifest."""
    folder = Path(request["folder"])
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return {
        "files": {path.name: path.stat().st_size for path in files},
        "manifests": {path.name: path.read_text() for path in files if path.name.endswith(".manifest.json")},
    }


def load(request: Mapping[str, Any], stream: IO[bytes]) -> Answer:
    """Load a compressed dump of the database `source` into the new database `database`, which stays marked as a half.

    Raises:
        RefusedError: the database exists, there is no room for it, or the dump isn't whole or can't be loaded.
    """
    client = Client()
    database, source = request["database"], request["source"]
    if database in databases(client):
        if not _mark(database).exists():
            raise RefusedError(f"There is a database {database} already: name another with --as, or drop it first.")
        client.run([f"DROP DATABASE {name(database)}"])
    _check_room(client, source, request["size"])
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    _mark(database).touch()
    try:
        client.run([f"CREATE DATABASE {name(database)}"])
        _into_client(client, database, stream, source)
    except (RefusedError, SqlError):
        drop({"database": database}, stream)
        raise
    return {}


def accounts(_: Mapping[str, Any], stream: IO[bytes]) -> Answer:
    """Run a compressed file of statements that make accounts and their rights.

    Raises:
        RefusedError: they can't be run.
    """
    _into_client(Client(), "mysql", stream, "mysql")
    return {}


def extract(request: Mapping[str, Any], stream: IO[bytes]) -> Answer:
    """Unpack a compressed archive of files into a new folder.

    Raises:
        RefusedError: the folder exists, or the archive isn't whole.
    """
    folder = Path(request["folder"])
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise RefusedError(f"{folder} exists already: name a folder that doesn't.") from None
    try:
        with _decompressed(stream) as archive:
            _run_with(["tar", "-x", "-p", "-C", str(folder)], _blocks(archive))
    except RefusedError:
        shutil.rmtree(folder)
        raise
    return {}


def describe(request: Mapping[str, Any], _: IO[bytes]) -> Answer:
    """Everything that a database consists of, as the server words it, and the number of rows of each table.

    Raises:
        RefusedError: there is no such database.
    """
    client, database = Client(), request["database"]
    if database not in databases(client):
        raise RefusedError(f"There is no database {database}.")
    tables = _names(client, database)["TABLE"]
    queries = [f"SELECT COUNT(*) FROM {name(table)}" for table in tables]
    counts = [int(rows[0][0]) for rows in client.ask(f"USE {name(database)}", *queries)[1:]]
    return {"structure": structure(client, database), "counts": dict(zip(tables, counts, strict=True))}


def accept(request: Mapping[str, Any], _: IO[bytes]) -> Answer:
    """The database is whole: from now on it is nobody's half."""
    _mark(request["database"]).unlink()
    return {}


def drop(request: Mapping[str, Any], _: IO[bytes]) -> Answer:
    """Remove a half."""
    if _mark(request["database"]).exists():
        Client().run([f"DROP DATABASE IF EXISTS {name(request['database'])}"])
        _mark(request["database"]).unlink()
    return {}


def state(request: Mapping[str, Any], _: IO[bytes]) -> Answer:
    """How far a replacement of `database` by `new` has come: planned, or at least loaded.

    Raises:
        RefusedError: it can't be begun, since the database `before` is there.
    """
    plan = _plan(request["database"])
    new, before = request["new"], request["before"]
    found = databases(Client())
    if not plan.exists() and before in found:
        raise RefusedError(f"There is a database {before} already, from an earlier replacement: drop it first.")
    return {
        "exists": request["database"] in found,
        "planned": json.loads(plan.read_text())["new"] if plan.exists() else None,
        "loaded": new in found and not _mark(new).exists(),
    }


def replace(request: Mapping[str, Any], _: IO[bytes]) -> Answer:
    """Put the tables and everything else of `new` in the place of `database`, whose own go to the database `before`.

    Tables are moved, by RENAME TABLE; what can't be moved (views, triggers, routines, events) is made again from its
    definition. Only root writes meanwhile. Whatever was done is in the plan or can be seen in the databases, so it may
    be killed anywhere and run again: each table is in one of the databases at any moment.

    Raises:
        RefusedError: what has to be there isn't, or the other way round.
        SqlError: the server refused a step; run it again when the cause is gone.
    """
    client = Client()
    database, new, before = request["database"], request["new"], request["before"]
    file = _plan(database)
    if not file.exists():
        if not state(request, _)["loaded"]:
            raise RefusedError(f"There is no complete database {new}.")
        _write(file, {"new": new, "before": before, "read_only": client.ask("SELECT @@GLOBAL.read_only")[0][0][0]})
    plan = json.loads(file.read_text())
    if plan["new"] != new:
        raise RefusedError(f"A replacement by {plan['new']} isn't finished: run that one again first.")
    client.run([_LOCK_WAIT, "SET GLOBAL read_only = 1"])
    _end_sessions(client, database)
    if "moves" not in plan:
        plan |= _planned(client, database, new, before)
        _write(file, plan)
    for place in plan["objects"]:
        _drop_objects(client, place)
    _drop_objects(client, new)
    for place in plan["objects"]:
        client.run([f"CREATE DATABASE IF NOT EXISTS {name(place)}"])
        charset, collation = plan["structures"][place]["database"].split()
        client.run([f"ALTER DATABASE {name(place)} CHARACTER SET {charset} COLLATE {collation}"])
    places = {place: set(_names(client, place)["TABLE"]) for place in (database, new, before)}
    moves = [
        f"{name(source)}.{name(table)} TO {name(target)}.{name(table)}"
        for table, source, target in plan["moves"]
        # What is at its target was moved before; a new table may have the name of an old one.
        if table in places[source] and table not in (places[target] if target == before else set())
    ]
    if moves:
        client.run([_LOCK_WAIT, "SET SESSION foreign_key_checks = 0", f"RENAME TABLE {', '.join(moves)}"])
    for place, text in plan["objects"].items():
        _run_with(_client_command(client, place), iter([text.encode(errors="surrogateescape")]))
    for place, wanted in plan["structures"].items():
        if structure(client, place) != wanted:
            raise RefusedError(
                f"{place} isn't what it should be. Nothing is lost: all tables are in {', '.join(places)}."
            )
    if _names(client, new)["TABLE"]:
        raise RefusedError(f"{new} still has tables, which it shouldn't: nothing was dropped.")
    client.run([f"DROP DATABASE IF EXISTS {name(new)}", f"SET GLOBAL read_only = {plan['read_only']}"])
    file.unlink()
    return {"before": before if before in plan["objects"] else None}


def databases(client: Client) -> set[str]:
    """The names of all databases."""
    return {row[0] for row in client.ask("SHOW DATABASES")[0]}


def structure(client: Client, database: str) -> dict[str, str]:
    """Everything in a database but its rows: `table things` -> its definition in the server's words.

    The database's own name is in none of them, unless somebody wrote it into a body.
    """
    (rows,) = client.ask(
        "SELECT default_character_set_name, default_collation_name FROM information_schema.schemata "
        f"WHERE schema_name = {quoted(database)}"
    )
    found = {"database": " ".join(rows[0])}
    objects = [(kind, item) for kind, names in _names(client, database).items() for item in names]
    shown = client.ask(f"USE {name(database)}", *(f"SHOW CREATE {kind} {name(item)}" for kind, item in objects))
    for (kind, item), rows in zip(objects, shown[1:], strict=True):
        # After these comes when a trigger was made.
        texts = rows[0][1:6]
        if kind == "TABLE":
            # How far it has counted is no structure.
            texts[0] = re.sub(r" AUTO_INCREMENT=\d+", "", texts[0])
        elif kind == "TRIGGER":
            texts[1] = unqualified(texts[1].encode(), database).decode()
        found[f"{kind.lower()} {item}"] = "\n".join(texts)
    return found


def _names(client: Client, database: str) -> dict[str, list[str]]:
    """The names of all that is in a database, by kind, as SHOW CREATE calls it."""
    where = f"WHERE %s_schema = {quoted(database)}"
    tables = "SELECT IF(table_type = 'VIEW', 'VIEW', 'TABLE'), table_name FROM information_schema.tables "
    found: dict[str, list[str]] = {"TABLE": [], "VIEW": []}
    for rows in client.ask(
        tables + where % "table",
        f"SELECT routine_type, routine_name FROM information_schema.routines {where % 'routine'}",
        f"SELECT 'TRIGGER', trigger_name FROM information_schema.triggers {where % 'trigger'}",
        f"SELECT 'EVENT', event_name FROM information_schema.events {where % 'event'}",
    ):
        for kind, item in sorted(rows):
            found.setdefault(kind, []).append(item)
    return found


def _planned(client: Client, database: str, new: str, before: str) -> dict[str, Any]:
    """What goes where: the moves of tables, and the definitions and the structure that each place has at the end."""
    wanted = {database: new} | ({before: database} if database in databases(client) else {})
    foreign = client.ask(
        "SELECT constraint_schema, table_name FROM information_schema.referential_constraints WHERE "
        f"unique_constraint_schema = {quoted(database)} AND constraint_schema <> {quoted(database)}"
    )[0]
    if foreign:
        raise RefusedError(f"Tables of other databases refer to {database} by foreign keys: {foreign}.")
    return {
        "moves": [
            (table, source, target)
            for target, source in reversed(wanted.items())
            for table in _names(client, source)["TABLE"]
        ],
        "objects": {target: _definitions(client, source) for target, source in wanted.items()},
        "structures": {target: structure(client, source) for target, source in wanted.items()},
    }


def _definitions(client: Client, database: str) -> str:
    """SQL that makes a database's views, triggers, routines and events."""
    program = ["mariadb-dump"] if client.engine == "mariadb" else ["mysqldump"]
    program += ["--no-defaults", "--user=root", "--protocol=socket", "--no-data", "--skip-comments"]
    if client.engine == "mysql":
        # Of the server, not of a database.
        program.append("--set-gtid-purged=OFF")
    views = _names(client, database)["VIEW"]
    texts = []
    if views:
        texts.append(_output([*program, "--skip-triggers", database, *views]))
    texts.append(_output([*program, "--no-create-info", "--triggers", "--routines", "--events", database]))
    return unqualified(b"".join(texts), database).decode(errors="surrogateescape")


def _drop_objects(client: Client, database: str) -> None:
    if database in databases(client):
        client.run(
            [
                f"DROP {kind} IF EXISTS {name(database)}.{name(item)}"
                for kind, names in _names(client, database).items()
                if kind != "TABLE"
                for item in names
            ]
        )


def _end_sessions(client: Client, database: str) -> None:
    """The application connects again. What it had begun could not be written any more."""
    for (number,) in client.ask(
        f"SELECT id FROM information_schema.processlist WHERE db = {quoted(database)} AND user <> 'root'"
    )[0]:
        with contextlib.suppress(SqlError):  # it has ended itself
            client.run([f"KILL {number}"])


def _check_room(client: Client, source: str, size: int) -> None:
    """A disk that fills up stops the live database too."""
    ((folder, live),) = client.ask(
        "SELECT @@datadir, (SELECT COALESCE(SUM(data_length + index_length), 0) FROM information_schema.tables "
        f"WHERE table_schema = {quoted(source)})"
    )[0]
    free = shutil.disk_usage(folder).free
    # As much as the live one, or what a dump of this size usually becomes.
    needed = max(int(live) * 5 // 4, size * 5)
    if free < needed:
        raise RefusedError(
            f"There is not enough room: {folder} has {free >> 20} MiB free, and this needs about {needed >> 20} MiB."
        )


def _whole(dump: IO[bytes], source: str) -> Iterator[bytes]:
    """A dump of the database `source` in blocks, with nothing in it that needs a database of this name.

    Raises:
        RefusedError: its end is missing, or it chooses a database by itself, which would be the live one.
    """
    # What is looked for may lie across two blocks; in a value, a line's end is written as \n.
    kept = b""
    for block in _blocks(dump):
        kept = unqualified(kept + block, source)
        if any(word in kept for word in _CHOOSES):
            raise RefusedError("The dump chooses a database by itself: load it by hand, on a server of its own.")
        yield kept[:-_OVERLAP]
        kept = kept[-_OVERLAP:]
    if _DUMP_ENDS not in kept:
        raise RefusedError("The dump isn't whole: its last line is missing.")
    yield kept


def unqualified(text: bytes, database: str) -> bytes:
    """Definitions of triggers without the name of their database before their own and their table's.

    Somebody may have written it there, and then they can be made in no other database. In their bodies it stays.
    """
    if b"CREATE" not in text:
        return text
    own = rb"(?:`%(name)b`|%(name)b)\s*\.\s*" % {b"name": re.escape(database.encode())}
    # At the beginning of a text of its own, or behind what a dump writes before it.
    head = rb"((?:\A|\n/\*!50003 )CREATE\b[^\n]{0,300}?\bTRIGGER\s+)(?:%b)?" % own
    event = rb"(`[^`]+`|[^\s`.]+)(\s+(?:BEFORE|AFTER)\s+[A-Z]+\s+ON\s+)(?:%b)?" % own
    return re.sub(head + event, rb"\1\2\3", text, flags=re.IGNORECASE)


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: stream.read(_BLOCK), b"")


def _into_client(client: Client, database: str, stream: IO[bytes], source: str) -> None:
    with _decompressed(stream) as dump:
        _run_with(_client_command(client, database), _whole(dump, source))


def _client_command(client: Client, database: str) -> list[str]:
    # In binary mode the client knows no commands of its own, such as `\!`, which runs a program.
    options = ["--no-defaults", "--protocol=socket", "--user=root", "--binary-mode", "--max-allowed-packet=1G"]
    return [client.engine, *options, "--default-character-set=utf8mb4", database]


@contextlib.contextmanager
def _decompressed(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """What zstd makes of a stream.

    Raises:
        RefusedError: the stream isn't whole.
    """
    with tempfile.TemporaryFile() as errors:
        program = subprocess.Popen(
            ["zstd", "-d", "-c", "-q"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        if program.stdin is None or program.stdout is None:  # they are pipes, as asked for
            raise RefusedError("zstd could not be started.")
        feeder = threading.Thread(target=_feed, args=(stream, program.stdin), daemon=True)
        feeder.start()
        try:
            yield program.stdout
            if program.stdout.read(1) or program.wait():
                errors.seek(0)
                raise RefusedError(
                    f"The compressed stream isn't whole: {errors.read(300).decode(errors='replace').strip()}"
                )
        finally:
            program.kill()
            program.wait()


def _feed(source: IO[bytes], target: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError), target:
        shutil.copyfileobj(source, target, _BLOCK)


def _run_with(command: Sequence[str], blocks: Iterator[bytes]) -> None:
    """Run a program with these blocks as its input.

    Raises:
        RefusedError: it failed; with its words.
    """
    with tempfile.TemporaryFile() as errors:
        program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
        if program.stdin is None:  # it is a pipe, as asked for
            raise RefusedError(f"{command[0]} could not be started.")
        try:
            with contextlib.suppress(BrokenPipeError), program.stdin:
                for block in blocks:
                    program.stdin.write(block)
        except BaseException:
            program.kill()
            raise
        finally:
            status = program.wait()
        if status:
            errors.seek(0)
            raise RefusedError(f"{command[0]}: {errors.read(500).decode(errors='replace').strip()}")


def _output(command: Sequence[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise RefusedError(f"{command[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _mark(database: str) -> Path:
    return STATE / f"{database}.half"


def _plan(database: str) -> Path:
    return STATE / f"{database}.replace"


def _write(file: Path, value: object) -> None:
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = file.with_name(file.name + ".new")
    with new.open("w", encoding="utf-8") as handle:
        json.dump(value, handle)
        handle.flush()
        os.fsync(handle.fileno())
    new.rename(file)


_ACTIONS = (list_folder, load, accounts, extract, describe, accept, drop, state, replace)


def main() -> NoReturn:
    """Do what the first line of standard input asks for."""
    os.umask(0o077)
    request = json.loads(sys.stdin.buffer.readline())
    action = next(one for one in _ACTIONS if one.__name__ == request["action"])
    try:
        answer = action(request, sys.stdin.buffer)
    except (RefusedError, SqlError) as error:
        answer = {"error": str(error)}
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(answer), flush=True)
    # Not by the usual way, which would wait for a thread that still waits for input.
    os._exit(0)
