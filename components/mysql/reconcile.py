"""Brings a database server's accounts, rights and running settings to the desired ones: MariaDB and MySQL.

Runs as root on the server, beside what it is to bring about, and talks to the server over its socket. Prints a line for
each change, and no secret. It uses nothing but Python's standard library, which cloud-init needs anyway.
"""

import hashlib
import json
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# Tells the script that started this that only a new start of the server can set what the settings file says.
NEEDS_RESTART = 3


class Account(NamedTuple):
    """Who may log in, and from where. A role has no host."""

    user: str
    host: str

    def __str__(self) -> str:
        """Without anything that a terminal would take for a command."""
        return f"{self.user}@{self.host}".encode("unicode_escape").decode()

    @property
    def sql(self) -> str:
        """As SQL names it."""
        return f"{quoted(self.user)}@{quoted(self.host)}"


ROOT = Account("root", "localhost")

# The accounts that stay although the stack doesn't name them: engine -> account -> whether it must be locked.
# An account that another capability makes gets a line here.
KEPT: dict[str, dict[Account, bool]] = {
    "mariadb": {ROOT: False, Account("mariadb.sys", "localhost"): True},
    "mysql": {
        ROOT: False,
        # Ubuntu's own scripts; its random password is in /etc/mysql/debian.cnf, which only root can read.
        Account("debian-sys-maint", "localhost"): False,
        Account("mysql.infoschema", "localhost"): True,
        Account("mysql.session", "localhost"): True,
        Account("mysql.sys", "localhost"): True,
    },
}

# MariaDB's rights of everybody.
PUBLIC = Account("PUBLIC", "")


@dataclass(frozen=True)
class Wanted:
    """An account of the stack. `rights` are those on the stack's database; there are no others."""

    password: str
    rights: frozenset[str]


@dataclass(frozen=True)
class Found:
    """An account of the server: all that decides who may log in by it, as one text, and its rights (SHOW GRANTS)."""

    login: str
    locked: bool
    socket_only: bool
    role: bool = False
    grants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Memory:
    """What an account was when this program last wrote it: digests of its password and of `Found.login`."""

    password: str
    login: str


@dataclass(frozen=True)
class Desired:
    """What the stack wants."""

    database: str
    accounts: Mapping[Account, Wanted]


@dataclass(frozen=True)
class Actual:
    """What the server has."""

    engine: str
    accounts: Mapping[Account, Found]
    databases: frozenset[str]
    test_is_empty: bool = True
    anonymous_rights: bool = False


@dataclass(frozen=True)
class Change:
    """One step: a line for people, and what to do. If it has a secret in it, a complaint about it isn't shown whole."""

    say: str
    statements: tuple[str, ...]
    secret: bool = False


def quoted(text: str) -> str:
    """A string in SQL. Sessions here run without NO_BACKSLASH_ESCAPES."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def on_database(name: str) -> str:
    """All of a database, as GRANT takes it and SHOW GRANTS prints it: there, a bare `_` would be any character."""
    return "`" + name.replace("_", r"\_") + "`.*"


def digest(text: str) -> str:
    """Recognises a text again without keeping it."""
    return hashlib.sha256(text.encode()).hexdigest()


# What plan() understands of SHOW GRANTS: plain rights on everything, a database, a table or a routine.
_NAME = r"(?:\*|`[^`]+`)"
_GRANT = re.compile(rf"GRANT ([A-Z_ ,]+) ON ((?:[A-Z ]+ )?{_NAME}\.{_NAME}) TO (?:`[^`]*`@`[^`]*`|PUBLIC)(.*)")


def parse_grants(lines: Sequence[str]) -> dict[str, set[str]] | None:
    """The rights by what they are on; None if there are others: roles, columns, proxies, exceptions."""
    held: dict[str, set[str]] = {}
    for line in lines:
        match = _GRANT.fullmatch(line)
        if match is None:
            return None
        rights, place, rest = match.groups()
        found = {right.strip() for right in rights.split(",")} - {"USAGE"}
        if rest.endswith("GRANT OPTION"):
            found.add("GRANT OPTION")
        if found:
            held.setdefault(place, set()).update(found)
    return held


def plan(actual: Actual, desired: Desired, memory: Mapping[Account, Memory]) -> list[Change]:
    """What has to be done; nothing if everything is as desired."""
    changes = [*_root(actual), *_kept(actual), *_strangers(actual, desired)]
    if desired.database not in actual.databases:
        statement = f"CREATE DATABASE `{desired.database}` CHARACTER SET utf8mb4"
        changes.append(Change(f"database {desired.database}: made", (statement,)))
    # One with something in it stays: nobody but root has rights on it.
    if "test" in actual.databases and actual.test_is_empty and desired.database != "test":
        changes.append(Change("database test: removed, it was empty", ("DROP DATABASE test",)))
    for account, wanted in desired.accounts.items():
        changes += _account(actual, account, wanted, on_database(desired.database), memory.get(account))
    return changes


def _root(actual: Actual) -> Iterator[Change]:
    root = actual.accounts.get(ROOT)
    if root is not None and not root.socket_only:
        how = "VIA unix_socket" if actual.engine == "mariadb" else "WITH auth_socket"
        yield Change("root: logs in by the socket only", (f"ALTER USER {ROOT.sql} IDENTIFIED {how}",))


def _kept(actual: Actual) -> Iterator[Change]:
    for account, must_be_locked in KEPT[actual.engine].items():
        found = actual.accounts.get(account)
        if found is not None and must_be_locked and not found.locked:
            yield Change(f"account {account}: locked", (f"ALTER USER {account.sql} ACCOUNT LOCK",))


def _strangers(actual: Actual, desired: Desired) -> Iterator[Change]:
    for account, found in actual.accounts.items():
        if account in desired.accounts or account in KEPT[actual.engine]:
            continue
        if found.role and account == PUBLIC:
            # Can't be removed.
            if parse_grants(found.grants) != {}:
                yield Change("rights of PUBLIC: taken away", ("REVOKE ALL PRIVILEGES, GRANT OPTION FROM PUBLIC",))
        elif found.role:
            yield Change(f"role {account.user}: removed", (f"DROP ROLE {quoted(account.user)}",))
        else:
            yield Change(f"account {account}: removed", (f"DROP USER {account.sql}",))
    # Left without an account, rights of the user '' would be everybody's.
    if actual.anonymous_rights:
        statements = ("DELETE FROM mysql.db WHERE User = ''", "FLUSH PRIVILEGES")
        yield Change("rights without an account: removed", statements)


def _account(
    actual: Actual, account: Account, wanted: Wanted, place: str, remembered: Memory | None
) -> Iterator[Change]:
    found = actual.accounts.get(account)
    password = _identified(actual.engine, wanted.password)
    make = (
        f"CREATE USER {account.sql} {password} REQUIRE SSL PASSWORD EXPIRE NEVER",
        f"GRANT {', '.join(sorted(wanted.rights))} ON {place} TO {account.sql}",
    )
    if found is None:
        yield Change(f"account {account}: made", make, secret=True)
        return
    held = parse_grants(found.grants)
    if held is None or remembered is None or remembered.login != digest(found.login):
        # Whatever was done to it: a password, no TLS, a second way in. Nothing of it is left.
        yield Change(f"account {account}: made anew", (f"DROP USER {account.sql}", *make), secret=True)
        return
    if remembered.password != digest(wanted.password):
        yield Change(f"account {account}: new password", (f"ALTER USER {account.sql} {password}",), secret=True)
    yield from _rights(account, held, {place: wanted.rights})


def _rights(account: Account, held: Mapping[str, set[str]], wanted: Mapping[str, frozenset[str]]) -> Iterator[Change]:
    statements = []
    said = []
    for place, rights in sorted(held.items()):
        extra = sorted(rights - wanted.get(place, frozenset()))
        statements += [f"REVOKE {right} ON {place} FROM {account.sql}" for right in extra]
        said += [f"no {', '.join(extra)} on {place}"] if extra else []
    for place, due in wanted.items():
        missing = ", ".join(sorted(due - held.get(place, set())))
        if missing:
            statements.append(f"GRANT {missing} ON {place} TO {account.sql}")
            said.append(f"{missing} on {place}")
    if statements:
        yield Change(f"rights of {account}: {'; '.join(said)}", tuple(statements))


def _identified(engine: str, password: str) -> str:
    if engine == "mysql":
        return f"IDENTIFIED WITH caching_sha2_password BY {quoted(password)}"
    # Every driver can do it; docs/decisions/0009 says why that is good enough.
    return f"IDENTIFIED VIA mysql_native_password USING PASSWORD({quoted(password)})"


def configured(text: str) -> dict[str, str]:
    """The values in a settings file of the server."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def differing(settings: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """The settings that the running server has other values of. Some options are no variables."""
    return {
        name: value
        for name, value in settings.items()
        if name in variables and _canonical(name, value) != _canonical(name, variables[name])
    }


def _canonical(name: str, value: str) -> object:
    # The server sorts modes in its own way, and ends folders with a slash.
    return frozenset(value.split(",")) if name == "sql_mode" else value.rstrip("/")


def strangers(sessions: Sequence[Sequence[str]], accounts: set[Account]) -> list[tuple[str, Account]]:
    """The open sessions (of SHOW PROCESSLIST) of accounts that are not, or no more, among `accounts`."""
    found = []
    for number, user, source, *_ in sessions:
        account = Account(user, source.rpartition(":")[0] or source)
        # The server's own; and those that are just logging in.
        if user not in ("system user", "event_scheduler", "unauthenticated user") and account not in accounts:
            found.append((number, account))
    return found


class SqlError(Exception):
    """The server refused a statement. `text` is the client's complaint, which may repeat a part of the statement."""

    def __init__(self, text: str) -> None:
        """Keep what the client printed."""
        super().__init__(text)
        self.text = text

    @property
    def code(self) -> str:
        """ERROR, number and state."""
        found = re.search(r"ERROR \d+( \(\w+\))?", self.text)
        return found.group() if found else "the client failed"


class Client:
    """The engine's own client, as root over the socket; statements go in by standard input."""

    def __init__(self) -> None:
        """Find out which engine it is."""
        self.engine = "mariadb" if shutil.which("mariadb") else "mysql"

    def run(self, statements: Sequence[str]) -> list[str]:
        """Run them, up to the first that fails, and return all lines of output.

        Raises:
            SqlError: one failed.
        """
        done = subprocess.run(
            [self.engine, "--no-defaults", "--protocol=socket", "--user=root", "--batch", "--skip-column-names"],
            input="".join(f"{statement};\n" for statement in ("SET SESSION sql_mode = ''", *statements)),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SqlError(done.stderr.strip())
        return done.stdout.splitlines()

    def ask(self, *queries: str) -> list[list[list[str]]]:
        """The rows of each query."""
        mark = secrets.token_hex(8)
        lines = self.run([part for query in queries for part in (query, f"SELECT '{mark}'")])
        results: list[list[list[str]]] = [[]]
        for line in lines:
            if line == mark:
                results.append([])
            else:
                results[-1].append([unescaped(field) for field in line.split("\t")])
        return results[:-1]


_ESCAPES = {"n": "\n", "t": "\t", "0": "\0"}


def unescaped(field: str) -> str:
    """A field of the client's batch output as it is in the server."""
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), field)


# One JSON text that says all about an account's way in.
_ACCOUNTS = {
    "mariadb": "SELECT User, Host, Priv FROM mysql.global_priv",
    "mysql": (
        "SELECT User, Host, JSON_OBJECT('plugin', plugin, 'authentication_string', HEX(authentication_string), "
        "'account_locked', account_locked, 'ssl_type', ssl_type, "
        "'ssl', HEX(CONCAT(ssl_cipher, x509_issuer, x509_subject)), "
        "'limits', CONCAT_WS(' ', max_questions, max_updates, max_connections, max_user_connections), "
        "'password_expired', password_expired, 'password_lifetime', password_lifetime, 'attributes', User_attributes) "
        "FROM mysql.user"
    ),
}


def found_account(text: str) -> Found:
    """An account from its JSON text."""
    login: dict[str, Any] = json.loads(text)
    # Rights, and the version that wrote them.
    for other in ("access", "version_id"):
        login.pop(other, None)
    socket = login.get("plugin") in ("unix_socket", "auth_socket")
    # Another way in beside it ({} is the one above), or another account of the system that may use it.
    other_way = any(login.get("auth_or") or ()) or login.get("authentication_string") or login.get("attributes")
    return Found(
        login=json.dumps(login, sort_keys=True),
        locked=login.get("account_locked") in (True, "Y"),
        socket_only=socket and not other_way,
        role=login.get("is_role") is True,
    )


def read(client: Client, desired: Desired) -> Actual:
    """Ask the server for all that plan() looks at."""
    # Accounts that somebody wrote into the tables become what they seem to be.
    _, rows, databases, tables, anonymous = client.ask(
        "FLUSH PRIVILEGES",
        _ACCOUNTS[client.engine],
        "SELECT schema_name FROM information_schema.schemata",
        "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'test'",
        "SELECT COUNT(*) FROM mysql.db WHERE User = ''",
    )
    accounts = {Account(user, host): found_account(text) for user, host, text in rows}
    named = [account for account in accounts if account in desired.accounts or account == PUBLIC]
    answers = client.ask(*(f"SHOW GRANTS FOR {'PUBLIC' if one == PUBLIC else one.sql}" for one in named))
    for account, grants in zip(named, answers, strict=True):
        found = accounts[account]
        lines = tuple(line for (line,) in grants)
        accounts[account] = Found(found.login, found.locked, found.socket_only, found.role, lines)
    return Actual(
        engine=client.engine,
        accounts=accounts,
        databases=frozenset(name for (name,) in databases),
        test_is_empty=tables == [["0"]],
        anonymous_rights=anonymous != [["0"]],
    )


def set_running(client: Client, settings: Mapping[str, str]) -> bool:
    """Set what the running server has otherwise; False if something takes a start."""
    (rows,) = client.ask("SHOW GLOBAL VARIABLES")
    complete = True
    for name, value in differing(settings, {row[0]: row[1] for row in rows}).items():
        # MySQL would take these, and go on with what it loaded.
        if not name.startswith(("ssl_", "tls_")) and _set(client, name, value):
            print(f"setting {name}: put back")
        else:
            complete = False
            print(f"setting {name}: takes a start")
    return complete


def _set(client: Client, name: str, value: str) -> bool:
    try:
        client.run([f"SET GLOBAL {name} = {value if value.isdigit() else quoted(value)}"])
    except SqlError:
        return False
    return True


def execute(client: Client, changes: Sequence[Change]) -> None:
    """Make the changes, and say which.

    Raises:
        SystemExit: one failed.
    """
    for change in changes:
        try:
            client.run(change.statements)
        except SqlError as error:
            sys.exit(f"failed: {change.say}: {error.code if change.secret else error.text}")
        print(change.say, flush=True)


def end_sessions(client: Client, accounts: set[Account]) -> None:
    """End the sessions of accounts that are gone: they would live on as they were."""
    (sessions,) = client.ask("SHOW FULL PROCESSLIST")
    for number, account in strangers(sessions, accounts):
        try:
            client.run([f"KILL {number}"])
        except SqlError:
            # It ended by itself.
            continue
        print(f"session of {account}: ended")


def load_desired(text: str) -> Desired:
    """What the stack handed over."""
    data = json.loads(text)
    accounts = {
        Account(item["user"], item["host"]): Wanted(item["password"], frozenset(item["rights"]))
        for item in data["accounts"]
    }
    return Desired(data["database"], accounts)


def load_memory(file: Path) -> dict[Account, Memory]:
    """What was written last; nothing at the first time."""
    if not file.exists():
        return {}
    return {Account(*name.split("@", 1)): Memory(**item) for name, item in json.loads(file.read_text()).items()}


def save_memory(file: Path, actual: Actual, desired: Desired) -> None:
    """Remember the accounts as they are."""
    text = json.dumps(
        {
            f"{account.user}@{account.host}": {
                "password": digest(wanted.password),
                "login": digest(actual.accounts[account].login),
            }
            for account, wanted in desired.accounts.items()
        }
    )
    new = file.with_name(file.name + ".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.rename(file)


def main(desired_file: str, settings_file: str, memory_file: str) -> int:
    """Bring it about, and check that it came about."""
    desired = load_desired(Path(desired_file).read_text())
    memory = load_memory(Path(memory_file))
    client = Client()
    if not set_running(client, configured(Path(settings_file).read_text())):
        return NEEDS_RESTART
    actual = read(client, desired)
    if changes := plan(actual, desired, memory):
        execute(client, changes)
        actual = read(client, desired)
        save_memory(Path(memory_file), actual, desired)
        if left := plan(actual, desired, load_memory(Path(memory_file))):
            sys.exit("did not come about: " + "; ".join(change.say for change in left))
    end_sessions(client, {*desired.accounts, *KEPT[client.engine]})
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except SqlError as complaint:
        sys.exit(f"the database server refuses: {complaint.text}")
