"""The database server: its files, and how accounts and rights become what the stack wants."""

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.mysql import MIGRATION_RIGHTS, PACKAGES, script_data, server_files
from components.mysql.reconcile import (
    KEPT,
    PUBLIC,
    ROOT,
    Account,
    Actual,
    Client,
    Desired,
    Found,
    Memory,
    SqlError,
    Wanted,
    configured,
    differing,
    digest,
    execute,
    found_account,
    on_database,
    parse_grants,
    plan,
    strangers,
    unescaped,
)
from tests.unit.support import configuration, settings

ENGINES = ("mariadb", "mysql")
APP = Account("application", "10.20.0.11")
PASSWORD = "S3cret'\\-password"
RIGHTS = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})
DESIRED = Desired("app_data", {APP: Wanted(PASSWORD, RIGHTS)})
LOGIN = '{"plugin": "some"}'
MEMORY = {APP: Memory(digest(PASSWORD), digest(LOGIN))}
GRANTS = {
    "mariadb": (
        "GRANT USAGE ON *.* TO `application`@`10.20.0.11` IDENTIFIED BY PASSWORD '*0E9DBFA7EA' REQUIRE SSL",
        r"GRANT SELECT, INSERT, UPDATE, DELETE ON `app\_data`.* TO `application`@`10.20.0.11`",
    ),
    "mysql": (
        "GRANT USAGE ON *.* TO `application`@`10.20.0.11`",
        r"GRANT SELECT, INSERT, UPDATE, DELETE ON `app\_data`.* TO `application`@`10.20.0.11`",
    ),
}


def good(engine: str) -> Actual:
    """A server on which there is nothing to do."""
    accounts = {
        account: Found("{}", locked=locked, socket_only=account == ROOT) for account, locked in KEPT[engine].items()
    }
    accounts[APP] = Found(LOGIN, locked=False, socket_only=False, grants=GRANTS[engine])
    return Actual(engine, accounts, frozenset({"mysql", "app_data"}))


def having(actual: Actual, account: Account, found: Found | None) -> Actual:
    """The same server with one account changed or removed."""
    others = {name: one for name, one in actual.accounts.items() if name != account}
    return replace(actual, accounts=others if found is None else others | {account: found})


def app(engine: str, **changes: object) -> Found:
    return replace(good(engine).accounts[APP], **changes)  # type: ignore[arg-type] # by name, as replace has it


def statements(actual: Actual, memory: dict[Account, Memory] | None = None) -> list[str]:
    changes = plan(actual, DESIRED, MEMORY if memory is None else memory)
    return [statement for change in changes for statement in change.statements]


# The plan


@pytest.mark.parametrize("engine", ENGINES)
def test_where_all_is_well_nothing_is_done(engine: str) -> None:
    assert plan(good(engine), DESIRED, MEMORY) == []


IDENTIFIED = {
    "mariadb": r"IDENTIFIED VIA mysql_native_password USING PASSWORD('S3cret\'\\-password')",
    "mysql": r"IDENTIFIED WITH caching_sha2_password BY 'S3cret\'\\-password'",
}
WHO = "'application'@'10.20.0.11'"


def made(engine: str) -> list[str]:
    return [
        f"CREATE USER {WHO} {IDENTIFIED[engine]} REQUIRE SSL PASSWORD EXPIRE NEVER",
        rf"GRANT DELETE, INSERT, SELECT, UPDATE ON `app\_data`.* TO {WHO}",
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_account_is_made(engine: str) -> None:
    assert statements(having(good(engine), APP, None)) == made(engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_database_is_made_before_the_rights_on_it(engine: str) -> None:
    bare = replace(having(good(engine), APP, None), databases=frozenset({"mysql"}))
    assert statements(bare) == ["CREATE DATABASE `app_data` CHARACTER SET utf8mb4", *made(engine)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_new_password_is_set_in_place(engine: str) -> None:
    memory = {APP: Memory(digest("the old one"), digest(LOGIN))}
    assert statements(good(engine), memory) == [f"ALTER USER {WHO} {IDENTIFIED[engine]}"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("memory", [{}, {APP: Memory(digest(PASSWORD), digest("was another"))}])
def test_an_account_that_is_not_as_it_was_written_is_made_anew(engine: str, memory: dict[Account, Memory]) -> None:
    assert statements(good(engine), memory) == [f"DROP USER {WHO}", *made(engine)]


EXOTIC = (
    "GRANT `boss` TO `application`@`10.20.0.11`",
    "GRANT `boss`@`%` TO `application`@`10.20.0.11`",
    "GRANT PROXY ON `root`@`localhost` TO `application`@`10.20.0.11`",
    "GRANT SELECT (`User`), INSERT (`Host`) ON `mysql`.`user` TO `application`@`10.20.0.11`",
    "REVOKE INSERT ON `mysql`.* FROM `application`@`10.20.0.11`",
    "SET DEFAULT ROLE `boss` FOR `application`@`10.20.0.11`",
    "GRANT SELECT ON `a``b`.* TO `application`@`10.20.0.11`",
)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("grant", EXOTIC)
def test_so_is_one_that_has_more_than_plain_rights(engine: str, grant: str) -> None:
    changed = having(good(engine), APP, app(engine, grants=(*GRANTS[engine], grant)))
    assert statements(changed) == [f"DROP USER {WHO}", *made(engine)]


@pytest.mark.parametrize(
    ("grants", "expected"),
    [
        ((), [r"GRANT DELETE, INSERT, SELECT, UPDATE ON `app\_data`.* TO "]),
        (
            (r"GRANT SELECT, CREATE ON `app\_data`.* TO `application`@`10.20.0.11` WITH GRANT OPTION",),
            [
                r"REVOKE CREATE ON `app\_data`.* FROM ",
                r"REVOKE GRANT OPTION ON `app\_data`.* FROM ",
                r"GRANT DELETE, INSERT, UPDATE ON `app\_data`.* TO ",
            ],
        ),
        (
            (
                "GRANT FILE, SHOW DATABASES, BACKUP_ADMIN ON *.* TO `application`@`10.20.0.11`",
                r"GRANT SELECT, INSERT, UPDATE, DELETE ON `app\_data`.* TO `application`@`10.20.0.11`",
                "GRANT ALL PRIVILEGES ON `other`.* TO `application`@`10.20.0.11`",
                "GRANT SELECT ON `mysql`.`user` TO `application`@`10.20.0.11`",
                "GRANT EXECUTE ON PROCEDURE `mysql`.`p` TO `application`@`10.20.0.11`",
            ),
            [
                "REVOKE BACKUP_ADMIN ON *.* FROM ",
                "REVOKE FILE ON *.* FROM ",
                "REVOKE SHOW DATABASES ON *.* FROM ",
                "REVOKE EXECUTE ON PROCEDURE `mysql`.`p` FROM ",
                "REVOKE SELECT ON `mysql`.`user` FROM ",
                "REVOKE ALL PRIVILEGES ON `other`.* FROM ",
            ],
        ),
        (
            # Not the same: here, _ is any character.
            ("GRANT SELECT, INSERT, UPDATE, DELETE ON `app_data`.* TO `application`@`10.20.0.11`",),
            [
                *(f"REVOKE {right} ON `app_data`.* FROM " for right in sorted(RIGHTS)),
                r"GRANT DELETE, INSERT, SELECT, UPDATE ON `app\_data`.* TO ",
            ],
        ),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_rights_are_brought_to_exactly_the_wanted_ones(
    engine: str, grants: tuple[str, ...], expected: Sequence[str]
) -> None:
    changed = having(good(engine), APP, app(engine, grants=grants))
    assert statements(changed) == [f"{statement}{WHO}" for statement in expected]


def test_grants_are_read_as_the_servers_print_them() -> None:
    assert parse_grants(GRANTS["mariadb"]) == {on_database("app_data"): set(RIGHTS)}
    assert parse_grants(GRANTS["mysql"]) == parse_grants(GRANTS["mariadb"])
    assert parse_grants(["GRANT SELECT ON *.* TO PUBLIC"]) == {"*.*": {"SELECT"}}
    line = "GRANT ALL PRIVILEGES ON *.* TO `a`@`%` IDENTIFIED BY PASSWORD '*AB' REQUIRE SSL WITH GRANT OPTION"
    assert parse_grants([line]) == {"*.*": {"ALL PRIVILEGES", "GRANT OPTION"}}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "account",
    [
        Account("", "%"),
        Account("", "localhost"),
        Account("root", "%"),
        Account("application", "10.20.0.12"),
        Account("application", "%"),
        Account("mysql", "localhost"),
        Account("it's \\", "%"),
    ],
)
def test_accounts_that_nobody_named_are_removed(engine: str, account: Account) -> None:
    changed = having(good(engine), account, Found("{}", locked=False, socket_only=True))
    assert statements(changed) == [f"DROP USER {account.sql}"]


def test_what_a_stranger_called_an_account_does_nothing_to_sql_or_to_a_terminal() -> None:
    account = Account("it's \\ \x1b[2J", "%")
    assert account.sql == r"'it\'s \\ " + "\x1b[2J'@'%'"
    assert str(account).isprintable()


def test_roles_and_everybodys_rights_go() -> None:
    role = Found("{}", locked=False, socket_only=False, role=True)
    assert statements(having(good("mariadb"), Account("boss", ""), role)) == ["DROP ROLE 'boss'"]
    granted = replace(role, grants=("GRANT SELECT ON *.* TO PUBLIC",))
    assert statements(having(good("mariadb"), PUBLIC, granted)) == ["REVOKE ALL PRIVILEGES, GRANT OPTION FROM PUBLIC"]
    assert statements(having(good("mariadb"), PUBLIC, role)) == []


@pytest.mark.parametrize(
    ("engine", "how"), [("mariadb", "VIA unix_socket"), ("mysql", "WITH auth_socket")], ids=ENGINES
)
def test_root_has_the_socket_only(engine: str, how: str) -> None:
    changed = having(good(engine), ROOT, Found("{}", locked=False, socket_only=False))
    assert statements(changed) == [f"ALTER USER 'root'@'localhost' IDENTIFIED {how}"]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_systems_own_accounts_stay_locked(engine: str) -> None:
    locked = [account for account, must_be_locked in KEPT[engine].items() if must_be_locked]
    for account in locked:
        changed = having(good(engine), account, Found("{}", locked=False, socket_only=False))
        assert statements(changed) == [f"ALTER USER {account.sql} ACCOUNT LOCK"]
    # What a version doesn't have isn't missed.
    assert statements(having(good(engine), locked[0], None)) == []


def test_one_engines_own_account_is_a_stranger_to_the_other() -> None:
    account = Account("debian-sys-maint", "localhost")
    assert statements(having(good("mariadb"), account, Found("{}", locked=False, socket_only=False))) == [
        f"DROP USER {account.sql}"
    ]


@pytest.mark.parametrize(
    ("databases", "empty", "desired", "dropped"),
    [
        ({"test"}, True, "app_data", True),
        # Data is never touched.
        ({"test"}, False, "app_data", False),
        ({"test"}, True, "test", False),
        ({"tests"}, True, "app_data", False),
    ],
)
def test_only_an_empty_test_database_goes(databases: set[str], empty: bool, desired: str, dropped: bool) -> None:
    actual = replace(good("mysql"), databases=frozenset({*databases, desired}), test_is_empty=empty)
    changes = plan(actual, replace(DESIRED, database=desired, accounts={}), {})
    assert ("DROP DATABASE test" in [one for change in changes for one in change.statements]) == dropped


def test_rights_that_anybody_would_have_go() -> None:
    assert statements(replace(good("mariadb"), anonymous_rights=True)) == [
        "DELETE FROM mysql.db WHERE User = ''",
        "FLUSH PRIVILEGES",
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_no_line_that_is_printed_has_a_secret_in_it_and_what_has_one_is_marked(engine: str) -> None:
    situations = [
        (having(good(engine), APP, None), MEMORY),
        (good(engine), {}),
        (good(engine), {APP: Memory("another", digest(LOGIN))}),
    ]
    for actual, memory in situations:
        [change] = plan(actual, DESIRED, memory)
        assert "S3cret" not in change.say
        assert "S3cret" in "".join(change.statements)
        assert change.secret


# What the server tells


WAYS_IN: list[tuple[dict[str, object], bool, bool]] = [
    ({"access": 1, "plugin": "unix_socket", "authentication_string": "", "auth_or": [{}]}, False, True),
    ({"plugin": "mysql_native_password", "authentication_string": "invalid"}, False, False),
    ({"plugin": "unix_socket", "auth_or": [{}, {"plugin": "mysql_native_password"}]}, False, False),
    ({"plugin": "unix_socket", "authentication_string": "nobody"}, False, False),
    ({"plugin": "mysql_native_password", "account_locked": True}, True, False),
    ({"plugin": "auth_socket", "authentication_string": "", "account_locked": "N", "attributes": None}, False, True),
    ({"plugin": "auth_socket", "attributes": {"Multi_factor_authentication": []}}, False, False),
    ({"plugin": "caching_sha2_password", "authentication_string": "24", "account_locked": "Y"}, True, False),
]


@pytest.mark.parametrize(("way", "locked", "socket_only"), WAYS_IN)
def test_a_way_in_is_understood(way: dict[str, object], locked: bool, socket_only: bool) -> None:
    found = found_account(json.dumps(way))
    assert (found.locked, found.socket_only) == (locked, socket_only)


def test_rights_and_versions_are_no_part_of_the_way_in() -> None:
    one = found_account('{"plugin":"a","access":1,"version_id":110809}')
    assert one.login == found_account('{"version_id":1011,"plugin":"a","access":7}').login
    assert one.login != found_account('{"plugin":"b"}').login


def test_a_field_of_the_clients_output_is_what_it_was() -> None:
    assert unescaped(r"a\\_b\tc\nd\0e\\\\n") == "a\\_b\tc\nd\0e\\\\n"


def test_settings_are_compared_with_what_runs() -> None:
    text = (
        "# c = d\n[mysqld]\nport = 3306\nskip_log_bin\nmysqlx = OFF\nsql_mode = A,B\nfolder = /x/\nlocal_infile = OFF\n"
    )
    found = configured(text)
    assert found == {"port": "3306", "mysqlx": "OFF", "sql_mode": "A,B", "folder": "/x/", "local_infile": "OFF"}
    running = {"port": "3306", "sql_mode": "B,A", "folder": "/x", "local_infile": "ON", "other": "1"}
    assert differing(found, running) == {"local_infile": "OFF"}


def test_sessions_of_nobody_that_is_known_are_found() -> None:
    sessions = [
        ["1", "application", "10.20.0.11:40000", "x"],
        ["2", "application", "10.20.0.12:40000", "x"],
        ["3", "evil", "10.20.0.11:40001", "x"],
        ["4", "root", "localhost", "x"],
        ["5", "evil", "localhost", "x"],
        ["6", "event_scheduler", "localhost", "x"],
        ["7", "unauthenticated user", "10.20.0.11:40002", "x"],
        ["8", "system user", "", "x"],
    ]
    assert strangers(sessions, {APP, ROOT}) == [
        ("2", Account("application", "10.20.0.12")),
        ("3", Account("evil", "10.20.0.11")),
        ("5", Account("evil", "localhost")),
    ]


# The client


class Recorder:
    """Stands for subprocess.run."""

    def __init__(self, returncode: int = 0, stderr: str = "") -> None:
        self.answer = subprocess.CompletedProcess([], returncode, "", stderr)
        self.argv: list[str] = []
        self.environment: dict[str, str] = {}
        self.stdin = ""

    def __call__(self, argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401 - subprocess.run's
        self.argv, self.stdin, self.environment = argv, options["input"], options["env"]
        return self.answer


def test_statements_reach_the_client_by_standard_input_only(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(subprocess, "run", recorder)
    execute(Client(), plan(having(good("mysql"), APP, None), DESIRED, MEMORY))
    assert "S3cret" in recorder.stdin
    assert recorder.stdin.startswith("SET SESSION sql_mode = '';\n")
    assert not any("S3cret" in text for text in [*recorder.argv, *recorder.environment.values()])
    # Neither root's own settings nor a saved login have a say.
    assert recorder.argv[1] == "--no-defaults"
    assert recorder.environment["HOME"] == "/nonexistent"


def test_a_complaint_shows_no_secret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    complaint = f"ERROR 1064 (42000) at line 2: You have an error near '{PASSWORD}' at line 1"
    monkeypatch.setattr(subprocess, "run", Recorder(1, complaint))
    with pytest.raises(SystemExit) as stopped:
        execute(Client(), plan(having(good("mysql"), APP, None), DESIRED, MEMORY))
    assert stopped.value.code == "failed: account application@10.20.0.11: made: ERROR 1064 (42000)"
    assert capsys.readouterr().out == ""
    with pytest.raises(SqlError, match="1064"):
        Client().run(["SELECT 1"])


# What the stack hands over


def test_the_package_is_the_engine_that_the_archive_has() -> None:
    assert PACKAGES == ("mysql-server|mariadb-server",)


def test_every_application_server_has_accounts_of_its_own() -> None:
    wanted = settings({"app.count": 2, "database.migrationUser": "migration", "database.migrationPassword": "m" * 20})
    desired = json.loads(script_data(wanted)["desired.json"])
    assert desired["database"] == "production"
    assert [(one["user"], one["host"], tuple(one["rights"])) for one in desired["accounts"]] == [
        ("application", "10.20.0.11", ("SELECT", "INSERT", "UPDATE", "DELETE")),
        ("application", "10.20.0.12", ("SELECT", "INSERT", "UPDATE", "DELETE")),
        ("migration", "10.20.0.11", MIGRATION_RIGHTS),
        ("migration", "10.20.0.12", MIGRATION_RIGHTS),
    ]
    assert {one["password"] for one in desired["accounts"]} == {configuration()["database"]["password"], "m" * 20}
    assert not {"GRANT OPTION", "FILE", "SUPER", "PROCESS", "CREATE ROUTINE", "EXECUTE", "EVENT"} & set(
        MIGRATION_RIGHTS
    )


def rendered(engine: str) -> dict[str, str]:
    [text] = [
        file.content
        for file in server_files(settings({"database.port": 3307}))
        if file.path == f"/etc/mysql/{engine}.conf.d/zz-hardening.cnf"
    ]
    return configured(text)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_settings_are_the_guides_and_better(engine: str) -> None:
    found = rendered(engine)
    expected = {
        "bind_address": "10.20.0.5",
        "port": "3307",
        "skip_name_resolve": "ON",
        "require_secure_transport": "ON",
        "tls_version": "TLSv1.2,TLSv1.3",
        "local_infile": "OFF",
        "secure_file_priv": "/var/lib/mysql-files/",
        "general_log": "OFF",
        "event_scheduler": "OFF",
    }
    assert expected.items() <= found.items()
    assert "STRICT_ALL_TABLES" in found["sql_mode"]
    assert all(re.fullmatch(r"ECDHE-(ECDSA|RSA)-AES\d+-GCM-SHA\d+", one) for one in found["ssl_cipher"].split(":"))
    # Options that only one engine has: to the other, they would be a reason not to start.
    assert ("mysqlx" in found, "persisted_globals_load" in found) == ((engine == "mysql"),) * 2
    assert ("symbolic_links" in found) == (engine == "mariadb")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_settings_file_is_read_after_all_others(engine: str) -> None:
    packaged = ["50-server.cnf", "60-galera.cnf", "mysql.cnf", "mysqld.cnf"]
    [name] = [
        Path(file.path).name for file in server_files(settings()) if Path(file.path).parent.name == f"{engine}.conf.d"
    ]
    assert sorted([*packaged, name])[-1] == name


def test_files_hold_no_secret_and_the_key_is_handed_over_apart() -> None:
    texts = "".join(file.content for file in server_files(settings()))
    data = script_data(settings())
    database = configuration()["database"]
    for secret in (database["password"], database["privateKey"].splitlines()[1]):
        assert secret not in texts
    assert database["privateKey"].strip() == data["server-key.pem"].strip()
    assert set(data) == {"ca.pem", "server-cert.pem", "server-key.pem", "desired.json", "reconcile.py"}


def test_what_runs_on_the_server_needs_nothing_but_python(tmp_path: Path) -> None:
    program = tmp_path / "reconcile.py"
    program.write_text(script_data(settings())["reconcile.py"])
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-B", "-S", str(program)], capture_output=True, text=True, check=False, cwd="/"
    )
    # It came as far as its arguments, of which there were none.
    assert "main() missing 3 required positional arguments" in done.stderr
