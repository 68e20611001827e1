"""The database on real servers, with both engines: who gets in, what they may do, and what mends it.

The application server speaks to it as applications do: with an ordinary driver (PyMySQL).
"""

import base64
import contextlib
import hashlib
import json
import re
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.settings import PROJECT
from rehearsal.machines import Machine
from rehearsal.network import PUBLIC
from rehearsal.realm import Bystander
from rehearsal.workspace import Workspace
from tests.rehearsal.conftest import Rehearsal, new_rehearsal, one_stack
from tests.rehearsal.support import Script, until
from uds.certificates import Authority

pytestmark = one_stack("TLS, accounts and rights are the database's own; how it is reached is in test_ports.py")

IMAGES = {"mariadb": "debian13", "mysql": "ubuntu24.04"}
ADDRESS = "10.20.0.5"
APP = "10.20.0.11"
PORT = 3306
# In a GRANT, a bare `_` is any character.
DATABASE, LOOKALIKE = "app_data", "appxdata"
# A package that somebody might want there; its service is atd.
WITH_A_SERVICE = "at"

SETTINGS = {
    "require_secure_transport": "ON",
    "local_infile": "OFF",
    "secure_file_priv": "/var/lib/mysql-files/",
    "skip_name_resolve": "ON",
    "general_log": "OFF",
    "log_bin": "OFF",
    "event_scheduler": "OFF",
    "tls_version": "TLSv1.2,TLSv1.3",
    "max_connections": "100",
    "character_set_server": "utf8mb4",
}

# Opens one connection on the application server, runs statements, and says what came of each.
CLIENT = """
import hashlib, json, ssl, sys
import pymysql
options = {"host": asked["host"], "port": 3306, "user": asked["user"], "password": asked["password"],
           "database": asked["database"], "connect_timeout": 5, "local_infile": True, "autocommit": True}
if asked["ca"]:
    context = ssl.create_default_context(cadata=asked["ca"])
    if asked["version"]:
        context.minimum_version = context.maximum_version = ssl.TLSVersion[asked["version"]]
    if asked["ciphers"]:
        context.set_ciphers(asked["ciphers"])
    options["ssl"] = context
else:
    options["ssl_disabled"] = True
answer = {"error": "", "results": []}
try:
    connection = pymysql.connect(**options)
except Exception as error:
    answer["error"] = f"{type(error).__name__}: {error} {error.__cause__ or ''}"
else:
    if asked["ca"]:
        answer["tls"] = connection._sock.version()
        answer["certificate"] = hashlib.sha256(connection._sock.getpeercert(True)).hexdigest()
    for statement in asked["statements"]:
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                answer["results"].append({"rows": [list(map(str, row)) for row in cursor.fetchall()]})
        except Exception as error:
            answer["results"].append({"error": error.args[0] if error.args else repr(error), "text": str(error)})
print(json.dumps(answer))
"""

# What the server itself says to an address that no account is for, before any login.
GREETING = f"""
import socket
with socket.create_connection(("{ADDRESS}", {PORT}), 5) as s:
    print(s.recv(500))
"""


@dataclass
class Database:
    """A stack of these tests' own, with one of the engines."""

    engine: str
    rehearsal: Rehearsal
    # Pulumi takes a second to tell; `up` and `forget` drop them.
    _section: dict[str, Any] | None = None
    _script: Script | None = None

    def section(self) -> dict[str, Any]:
        """The stack's configuration of the database, with its secrets."""
        if self._section is None:
            self._section = self.rehearsal.stack().section("database")
        return self._section

    def script(self) -> Script:
        """What `uds apply` would run."""
        if self._script is None:
            self._script = Script.of(self.rehearsal, "db-1", "mysql")
        return self._script

    def forget(self) -> None:
        """The configuration was changed."""
        self._section = self._script = None

    def up(self) -> None:
        """`make up`."""
        self.rehearsal.make("up")
        self.forget()

    def client(self, *statements: str, user: str = "application", **changes: object) -> dict[str, Any]:
        """What the application server gets to see; by default it does everything right."""
        section = self.section()
        password = section["migrationPassword" if user == "migration" else "password"]
        asked = {
            "host": ADDRESS,
            "user": user,
            "password": password,
            "database": DATABASE,
            "ca": section["caCertificate"],
            "version": "",
            "ciphers": "",
            "statements": statements,
        }
        script = f"import json\nasked = json.loads({json.dumps(asked | changes)!r})\n{CLIENT}"
        answer: dict[str, Any] = json.loads(self.rehearsal.ssh("app-1", "python3 -", stdin=script).stdout)
        return answer

    def rows(self, statement: str, user: str = "application") -> list[list[str]]:
        answer = self.client(statement, user=user)
        assert answer["error"] == ""
        found: list[list[str]] = answer["results"][0]["rows"]
        return found

    def root(self, *statements: str) -> str:
        """SQL as root on the database server."""
        return self.shell(f"{self.engine} --batch --skip-column-names <<'END'\n" + ";\n".join(statements) + ";\nEND")

    def shell(self, script: str) -> str:
        return self.rehearsal.sudo("db-1", f"set -e\n{script}").stdout

    def apply(self) -> list[str]:
        """`uds apply`: the lines that it prints."""
        return self.rehearsal.uds("apply", "local", "db-1", "mysql").stdout.splitlines()

    def again(self) -> str:
        """The same once more, without the time that `uds apply` takes to start."""
        return self.script().run(self.rehearsal).stdout

    def apply_altered(self, path: str, old: str, new: str) -> str:
        """Run the script with one of its files altered; it must fail. What it prints."""
        done = self.script().altered(path, old, new).run(self.rehearsal, check=False)
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self) -> str:
        """Which run of the server this is: another one after a restart."""
        return self.shell(f"systemctl show -p MainPID -p ActiveEnterTimestampMonotonic {self.engine}")

    def everything(self) -> str:
        """All that damage could be done to, but for what is different after every change of a password."""
        variables = "', '".join([*SETTINGS, "port", "sql_mode"])
        sql = (
            "SELECT User, Host, plugin, ssl_type FROM mysql.user ORDER BY User, Host",
            *(f"SHOW GRANTS FOR {user}@'{APP}'" for user in ("application", "migration")),
            "SHOW DATABASES",
            f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ('{variables}')",
            f"CHECKSUM TABLE {DATABASE}.things",
        )
        return self.shell(
            f"{self.engine} -NB <<'END'\n{'; '.join(sql)};\nEND\n"
            "getent passwd mysql\n"
            "stat -c '%a %U:%G %n' /var/lib/mysql /var/lib/mysql-files /etc/mysql/tls /etc/mysql/tls/*\n"
            f"sha256sum {self.config} /etc/systemd/system/{self.engine}.service.d/hardening.conf /etc/mysql/tls/*\n"
            f"ls -A /etc/mysql {Path(self.config).parent}; systemctl is-enabled {self.engine}"
        )

    @property
    def config(self) -> str:
        return f"/etc/mysql/{self.engine}.conf.d/zz-hardening.cnf"

    def previewed(self) -> set[str]:
        """The names of the resources that a preview would change."""
        steps = json.loads(self.rehearsal.pulumi("preview", "--json"))["steps"]
        return {step["urn"].rpartition("::")[2] for step in steps if step["op"] != "same"}


@pytest.fixture(
    scope="module",
    params=["mariadb", pytest.param("mysql", marks=pytest.mark.nightly("the other engine, all of it once more"))],
)
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with pytest.MonkeyPatch.context() as patch:
        for rehearsal in new_rehearsal(tmp_path_factory.mktemp("database"), patch):
            rehearsal.configure(
                "database", {"name": DATABASE, "migrationUser": "migration", "packages": [WITH_A_SERVICE]}
            )
            stack_file = Workspace("local").stack_file
            config = yaml.safe_load(stack_file.read_text())
            config["config"][f"{PROJECT}:image"] = IMAGES[request.param]
            stack_file.write_text(yaml.safe_dump(config))
            rehearsal.make("up")
            rehearsal.stays_connected = True
            found = Database(request.param, rehearsal)
            found.root(
                f"CREATE TABLE {DATABASE}.things (id INT PRIMARY KEY, text VARCHAR(20) NOT NULL)",
                f"USE {DATABASE}",
                "INSERT INTO things VALUES (1, 'first'), (2, 'second')",
                f"CREATE DATABASE {LOOKALIKE}",
                f"CREATE TABLE {LOOKALIKE}.things (id INT)",
            )
            yield found


# What there is


def test_the_archives_own_engine_runs_and_the_script_has_nothing_to_mend(database: Database) -> None:
    version = database.root("SELECT VERSION()")
    assert ("MariaDB" in version) == (database.engine == "mariadb")
    assert database.apply() == []
    assert database.rehearsal.make("up", "--expect-no-changes").returncode == 0


def test_a_package_of_the_stacks_own_runs_without_a_reboot(database: Database) -> None:
    """At first boot, packages don't start their services themselves: they are started all together."""
    assert database.shell("systemctl is-active atd; systemctl show -p NeedDaemonReload --value atd") == "active\nno\n"


def test_it_listens_on_the_private_address_and_nowhere_else(database: Database) -> None:
    listening = database.shell("ss -Hltunp | grep -E 'mariadbd|mysqld'")
    assert [line.split()[4] for line in listening.splitlines()] == [f"{ADDRESS}:{PORT}"]


def test_the_accounts_are_the_stacks_and_the_systems(database: Database) -> None:
    system = {
        "mariadb": {"root@localhost", "mariadb.sys@localhost"},
        "mysql": {
            *("root@localhost", "mysql.sys@localhost", "mysql.session@localhost", "mysql.infoschema@localhost"),
            "debian-sys-maint@localhost",
        },
    }[database.engine]
    accounts = set(database.root("SELECT CONCAT(User, '@', Host) FROM mysql.user").split())
    assert accounts == system | {f"application@{APP}", f"migration@{APP}"}
    databases = set(database.root("SHOW DATABASES").split())
    assert databases == {"information_schema", "mysql", "performance_schema", "sys", DATABASE, LOOKALIKE}
    grants = database.root(f"SHOW GRANTS FOR application@'{APP}'")
    assert "SELECT, INSERT, UPDATE, DELETE ON `app\\\\_data`.* TO" in grants
    assert len(grants.splitlines()) == 2
    made = database.root(f"SHOW CREATE USER application@'{APP}'")
    assert "REQUIRE SSL" in made
    assert "caching_sha2_password" in made or database.engine == "mariadb"


def test_root_comes_by_the_socket_as_root_only(database: Database) -> None:
    assert database.shell(f"{database.engine} -NBe 'SELECT CURRENT_USER()'") == "root@localhost\n"
    for who in ("nobody", "mysql", "deploy"):
        refused = database.shell(f"runuser -u {who} -- {database.engine} -u root -e 'SELECT 1' 2>&1 || true")
        assert "Access denied" in refused, who


def test_files_and_folders_are_the_guides(database: Database) -> None:
    shown = database.shell("stat -c '%a %U:%G %n' /var/lib/mysql /var/lib/mysql-* /etc/mysql/tls /etc/mysql/tls/*")
    found = {path: f"{mode} {owner}" for mode, owner, path in map(str.split, shown.splitlines())}
    found.pop("/var/lib/mysql-upgrade", None)
    folders = {"/var/lib/mysql", "/var/lib/mysql-files"}
    folders |= {"/var/lib/mysql-keyring"} if database.engine == "mysql" else set()
    assert found == {
        **dict.fromkeys(folders, "700 mysql:mysql"),
        "/etc/mysql/tls": "750 root:mysql",
        **{f"/etc/mysql/tls/{name}.pem": "640 root:mysql" for name in ("ca", "server-cert", "server-key")},
    }
    assert database.shell("getent passwd mysql").strip().endswith(":/nonexistent:/bin/false")
    assert database.shell("stat -c '%a %U' /var/lib/uds/mysql /var/lib/uds/mysql/*").split("\n")[0] == "700 root"


def test_the_settings_are_in_force(database: Database) -> None:
    variables = dict(line.split("\t") for line in database.root("SHOW GLOBAL VARIABLES").splitlines())
    assert {name: variables[name] for name in SETTINGS} == SETTINGS


def test_what_does_not_fit_is_an_error(database: Database) -> None:
    answer = database.client("INSERT INTO things VALUES (9, REPEAT('x', 21))")
    assert answer["results"][0]["error"] == 1406


# Who gets in


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_the_application_gets_in_over_verified_tls(database: Database, version: str) -> None:
    answer = database.client("SELECT text FROM things ORDER BY id LIMIT 1", version=version)
    assert (answer["error"], answer["tls"]) == ("", version.replace("_", "."))
    assert answer["results"] == [{"rows": [["first"]]}]
    assert answer["certificate"] == fingerprint(database)


def fingerprint(database: Database) -> str:
    """Of the certificate that the stack wants to be served."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(database.section()["certificate"])).hexdigest()


def other_authority() -> str:
    return Authority.new("Somebody else").certificate_pem


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "without TLS": ({"ca": ""}, r"1045|3159|insecure transport"),
    "another authority": ({"ca": other_authority()}, "CERTIFICATE_VERIFY_FAILED"),
    "another name": ({"host": "elsewhere.test"}, "Hostname mismatch|match"),
    "a wrong password": ({"password": "wrong"}, "1045"),
    "no password": ({"password": ""}, "1045"),
    "root": ({"user": "root", "password": ""}, "1045|1130"),
    "an unknown user": ({"user": "nobody"}, "1045"),
    "the other user's password": ({"user": "migration", "password": None}, "1045"),
    "another database": ({"database": LOOKALIKE}, "1044"),
    "the system's database": ({"database": "mysql"}, "1044"),
    "TLS 1.1": ({"version": "TLSv1_1", "ciphers": "ALL:@SECLEVEL=0"}, "SSL|reset|1043"),
    "no forward secrecy": ({"version": "TLSv1_2", "ciphers": "AES256-GCM-SHA384"}, "SSL|HANDSHAKE|1043"),
    "no authenticated encryption": (
        {"version": "TLSv1_2", "ciphers": "ECDHE+AES+SHA1:ECDHE+SHA256"},
        "SSL|HANDSHAKE|1043",
    ),
}


@pytest.mark.parametrize("how", REFUSED)
def test_nobody_else_gets_in(database: Database, how: str) -> None:
    changes, complaint = REFUSED[how]
    changes = dict(changes)
    if changes.get("password", "") is None:
        changes["password"] = database.section()["password"]
    if "host" in changes:
        database.rehearsal.sudo("app-1", f"grep -q elsewhere /etc/hosts || echo {ADDRESS} elsewhere.test >> /etc/hosts")
    answer = database.client("SELECT 1", **changes)  # type: ignore[arg-type] # the user is among them
    assert re.search(complaint, answer["error"]), answer


@pytest.fixture
def no_firewalls(database: Database) -> Iterator[None]:
    """Nothing stands between a neighbour and the database server."""
    realm = database.rehearsal.realm()
    with realm.cloud_firewall_off(realm.machine("local-db-1")):
        database.shell("for t in iptables ip6tables; do $t -P INPUT ACCEPT; $t -F; done")
        try:
            yield
        finally:
            database.shell("iptables-restore < /etc/iptables/rules.v4; ip6tables-restore < /etc/iptables/rules.v6")


def answers(run: Any, address: str) -> bool:  # noqa: ANN401 - a bystander's or this host's way to run something
    code = f"import socket; socket.create_connection(({address!r}, {PORT}), 2)"
    return bool(run(["python3", "-c", code]).returncode == 0)


@contextlib.contextmanager
def strangers(database: Database) -> Iterator[tuple[Machine, Bystander, Bystander]]:
    """The database's machine, somebody on the internet, and another machine on the private network."""
    realm = database.rehearsal.realm()
    machine = realm.machine("local-db-1")
    [vpc] = [nic.network for nic in machine.nics if nic.network != PUBLIC]
    with realm.outsider() as outsider, realm.neighbour(int(vpc), "10.20.0.99/24") as neighbour:
        yield machine, outsider, neighbour


def test_other_addresses_get_no_connection(database: Database) -> None:
    with strangers(database) as (machine, outsider, neighbour):
        assert [address for address in machine.addresses() if answers(outsider.run, address)] == []
        assert not answers(neighbour.run, ADDRESS)


@pytest.mark.usefixtures("no_firewalls")
def test_without_any_firewall_other_addresses_get_no_login(database: Database) -> None:
    with strangers(database) as (machine, outsider, neighbour):
        # It doesn't listen there, v4 and v6.
        assert [address for address in machine.addresses() if answers(outsider.run, address)] == []
        # Here it does, and closes the door before any login.
        assert "Host '10.20.0.99' is not allowed to connect" in neighbour.run(["python3", "-c", GREETING]).stdout
    # Not even the server itself comes by the network.
    own = database.rehearsal.realm().power.exec(machine.number, ["python3", "-c", GREETING]).stdout
    assert f"Host '{ADDRESS}' is not allowed to connect" in own


# What they may do


def test_the_application_can_do_the_four_things(database: Database) -> None:
    answer = database.client(
        "INSERT INTO things VALUES (3, 'third')",
        "UPDATE things SET text = 'changed' WHERE id = 3",
        "SELECT text FROM things WHERE id = 3",
        "DELETE FROM things WHERE id = 3",
        "SELECT COUNT(*) FROM things",
    )
    assert [result.get("rows") for result in answer["results"]] == [[], [], [["changed"]], [], [["2"]]]


# Denied for want of a right (1044, 1142, 1227, 1370, 1045 for FILE), or switched off for everybody.
DENIED = (1044, 1045, 1142, 1143, 1227, 1370, 1410)
NOT_THE_APPLICATIONS = (
    "CREATE TABLE more (id INT)",
    "CREATE TEMPORARY TABLE more (id INT)",
    "DROP TABLE things",
    "TRUNCATE TABLE things",
    "ALTER TABLE things ADD more INT",
    "RENAME TABLE things TO others",
    "CREATE INDEX more ON things (text)",
    "CREATE VIEW more AS SELECT * FROM things",
    "CREATE TRIGGER more BEFORE INSERT ON things FOR EACH ROW SET NEW.text = ''",
    "LOCK TABLES things WRITE",
)
NOBODYS = (
    "CREATE DATABASE more",
    "SELECT * FROM appxdata.things",
    "INSERT INTO appxdata.things VALUES (1)",
    f"CREATE TABLE {LOOKALIKE}.more (id INT)",
    f"DROP DATABASE {LOOKALIKE}",
    "SELECT * FROM mysql.user",
    "UPDATE mysql.user SET User = 'x'",
    "SELECT * FROM things INTO OUTFILE '/var/lib/mysql-files/things'",
    "LOAD DATA INFILE '/etc/passwd' INTO TABLE things",
    # As the right itself is named; another spelling is another right, which nobody could pass on.
    f"GRANT SELECT ON `app\\_data`.* TO application@'{APP}'",
    f"GRANT ALL PRIVILEGES ON *.* TO application@'{APP}'",
    "CREATE USER more@localhost IDENTIFIED BY 'More-1234-more'",
    "DROP USER root@localhost",
    f"RENAME USER migration@'{APP}' TO migration@'%'",
    "SET PASSWORD FOR root@localhost = 'More-1234-more'",
    "CREATE ROLE more",
    "CREATE PROCEDURE more() SELECT 1",
    "CREATE FUNCTION more RETURNS STRING SONAME 'more.so'",
    "CREATE EVENT more ON SCHEDULE EVERY 1 DAY DO SELECT 1",
    "INSTALL PLUGIN more SONAME 'more.so'",
    "SET GLOBAL general_log = ON",
    "SET GLOBAL require_secure_transport = OFF",
    "FLUSH PRIVILEGES",
    "FLUSH TABLES WITH READ LOCK",
    "SHUTDOWN",
    "KILL 1",
    "SHOW BINARY LOGS",
    "CHANGE MASTER TO MASTER_HOST = 'x'",
)


def assert_denied(database: Database, user: str, statements: Sequence[str]) -> None:
    answer = database.client(*statements, user=user)
    assert answer["error"] == ""
    # 1094: somebody else's thread isn't even seen. 1064: MySQL has forgotten the word.
    denied = {*DENIED, 1094, 1095, 1064}
    wrong = {
        statement: result
        for statement, result in zip(statements, answer["results"], strict=True)
        if result.get("error") not in denied
    }
    assert wrong == {}


def test_the_application_can_do_nothing_else(database: Database) -> None:
    assert_denied(database, "application", (*NOT_THE_APPLICATIONS, *NOBODYS))
    assert database.rows("SELECT COUNT(*) FROM things") == [["2"]]


@pytest.mark.parametrize("user", ["application", "migration"])
def test_files_are_out_of_reach(database: Database, user: str) -> None:
    answer = database.client(
        "SELECT LOAD_FILE('/etc/passwd')",
        "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE things",
        "SHOW PROCESSLIST",
        "SHOW DATABASES",
        user=user,
    )
    content, local, processes, databases = answer["results"]
    assert content["rows"] == [["None"]]
    # 3948, 4166, 1148: loading local data is disabled.
    assert local["error"] in (1148, 3948, 4166), local
    assert {row[1] for row in processes["rows"]} == {user}
    assert {row[0] for row in databases["rows"]} <= {"information_schema", "performance_schema", DATABASE}


def test_the_migration_user_changes_the_structure_of_its_database_and_nothing_else(database: Database) -> None:
    answer = database.client(
        "CREATE TABLE more (id INT PRIMARY KEY)",
        "ALTER TABLE more ADD text VARCHAR(10)",
        "CREATE INDEX by_text ON more (text)",
        "CREATE TABLE child (id INT, FOREIGN KEY (id) REFERENCES more (id))",
        "CREATE VIEW shown AS SELECT * FROM more",
        "CREATE TRIGGER filled BEFORE INSERT ON more FOR EACH ROW SET NEW.text = 'set'",
        "INSERT INTO more (id) VALUES (1)",
        "LOCK TABLES more WRITE",
        "UNLOCK TABLES",
        "SELECT text FROM more",
        "DROP VIEW shown",
        "DROP TABLE child, more",
        user="migration",
    )
    assert [result for result in answer["results"] if "error" in result] == []
    assert answer["results"][9] == {"rows": [["set"]]}
    assert_denied(database, "migration", NOBODYS)


# Changes by configuration


def test_a_new_password_changes_only_what_it_must_and_nothing_restarts(database: Database) -> None:
    section, start = database.section(), database.start()
    old = section["password"]
    database.rehearsal.stack().set("database.password", "Rotated-'\\\"`$x;-- 1", secret=True)
    assert database.previewed() == {"db-1-mysql-apply", "app-1-application-apply"}
    database.up()
    assert "1045" in database.client(password=old)["error"]
    assert database.rows("SELECT COUNT(*) FROM things") == [["2"]]
    assert database.start() == start
    assert database.previewed() == set()
    database.rehearsal.stack().set("database.migrationPassword", "Another-one-2718281828", secret=True)
    assert database.previewed() == {"db-1-mysql-apply"}
    database.up()
    assert "1045" in database.client(user="migration", password=section["migrationPassword"])["error"]
    assert database.rows("SELECT 1", user="migration") == [["1"]]
    assert database.start() == start


def test_a_renewed_certificate_is_served_without_a_restart(database: Database) -> None:
    start, old = database.start(), fingerprint(database)
    database.rehearsal.uds("rotate", "database-certificate", database.rehearsal.name)
    database.forget()
    assert database.previewed() == {"db-1-mysql-apply"}
    database.up()
    answer = database.client("SELECT COUNT(*) FROM things")
    assert (answer["error"], answer["results"]) == ("", [{"rows": [["2"]]}])
    assert answer["certificate"] == fingerprint(database) != old
    assert database.start() == start
    assert database.apply() == []


# Damage


@dataclass(frozen=True)
class Damage:
    """What somebody does by hand, and the lines that say that it was mended; ENGINE and CONFIG are filled in."""

    shell: str = ":"
    sql: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    restarts: bool = False


ACCOUNT = f"application@'{APP}'"
DAMAGES = {
    "a setting edited": Damage("sed -i s/local_infile.*/local_infile=ON/ CONFIG", said=("changed: CONFIG",)),
    "a setting edited, and the server restarted": Damage(
        "sed -i s/require_secure_transport.*/require_secure_transport=OFF/ CONFIG; systemctl restart ENGINE",
        said=("changed: CONFIG", "ENGINE: restarted"),
        restarts=True,
    ),
    "the settings file removed": Damage("rm CONFIG", said=("changed: CONFIG",)),
    "the unit's protection removed": Damage(
        "rm /etc/systemd/system/ENGINE.service.d/hardening.conf; systemctl daemon-reload; systemctl restart ENGINE",
        said=("changed: /etc/systemd/system/ENGINE.service.d/hardening.conf", "ENGINE: restarted"),
        restarts=True,
    ),
    "settings of the running server": Damage(
        sql=(
            "SET GLOBAL require_secure_transport = OFF",
            "SET GLOBAL local_infile = ON",
            "SET GLOBAL sql_mode = ''",
            "SET GLOBAL general_log = ON",
        ),
        said=(
            *(f"setting {name}: put back" for name in ("general_log", "local_infile", "require_secure_transport")),
            "setting sql_mode: put back",
        ),
    ),
    "rights added": Damage(
        sql=(
            f"GRANT FILE, PROCESS ON *.* TO {ACCOUNT}",
            f"GRANT CREATE ON {DATABASE}.* TO {ACCOUNT} WITH GRANT OPTION",
            f"GRANT ALL PRIVILEGES ON {LOOKALIKE}.* TO {ACCOUNT}",
            f"GRANT SELECT ON mysql.user TO {ACCOUNT}",
        ),
        said=(
            f"rights of application@{APP}: no FILE, PROCESS on *.*; no CREATE, GRANT OPTION on `{DATABASE}`.*; "
            f"no ALL PRIVILEGES on `{LOOKALIKE}`.*; no SELECT on `mysql`.`user`",
        ),
    ),
    "a right taken away": Damage(
        sql=(f"REVOKE DELETE ON `app\\_data`.* FROM {ACCOUNT}",),
        said=(f"rights of application@{APP}: DELETE on `app\\_data`.*",),
    ),
    "a role and a right on a column": Damage(
        sql=(
            "CREATE ROLE boss",
            "GRANT ALL PRIVILEGES ON *.* TO boss",
            f"GRANT boss TO {ACCOUNT}",
            f"GRANT SELECT (User) ON mysql.user TO migration@'{APP}'",
        ),
        said=("ROLE: removed", f"account application@{APP}: made anew", f"account migration@{APP}: made anew"),
    ),
    "users added": Damage(
        sql=(
            "CREATE USER 'it''s'@'%' IDENTIFIED BY 'Evil-1234-evil'",
            "GRANT ALL PRIVILEGES ON *.* TO 'it''s'@'%' WITH GRANT OPTION",
            "CREATE USER ''@'%'",
            "CREATE USER root@'%' IDENTIFIED BY 'Evil-1234-evil'",
            "CREATE USER application@'%' IDENTIFIED BY 'Evil-1234-evil'",
        ),
        said=tuple(f"account {who}@%: removed" for who in ("", "application", "it's", "root")),
    ),
    "a password changed": Damage(
        sql=(f"ALTER USER {ACCOUNT} IDENTIFIED BY 'Evil-1234-evil'",),
        said=(f"account application@{APP}: made anew",),
    ),
    "TLS not required": Damage(
        sql=(f"ALTER USER {ACCOUNT} REQUIRE NONE",), said=(f"account application@{APP}: made anew",)
    ),
    "an account removed": Damage(sql=(f"DROP USER {ACCOUNT}",), said=(f"account application@{APP}: made",)),
    "a test database": Damage(sql=("CREATE DATABASE test",), said=("database test: removed, it was empty",)),
    "root removed": Damage(
        sql=("DROP USER root@localhost",),
        said=("root: could not log in, and can again (ENGINE: restarted)",),
        restarts=True,
    ),
    "permissions opened": Damage(
        "chmod -R 777 /var/lib/mysql; chmod 755 /var/lib/mysql-files; chmod 644 /etc/mysql/tls/server-key.pem; "
        "chmod 755 /etc/mysql/tls; usermod -s /bin/bash mysql",
        said=(
            "changed: /etc/mysql/tls/server-key.pem",
            "login shell of mysql: /bin/false",
            *(f"permissions: {folder}" for folder in ("/etc/mysql/tls", "/var/lib/mysql", "/var/lib/mysql-files")),
        ),
    ),
    "another certificate": Damage(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=x -keyout /etc/mysql/tls/server-key.pem "
        "-out /etc/mysql/tls/server-cert.pem 2>/dev/null; systemctl restart ENGINE",
        said=(
            *(f"changed: /etc/mysql/tls/server-{name}.pem" for name in ("cert", "key")),
            "ENGINE: certificate loaded",
        ),
        restarts=True,
    ),
    "the server stopped": Damage(
        "systemctl disable --now ENGINE 2>/dev/null", said=("ENGINE: enabled", "ENGINE: started"), restarts=True
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_mended_and_told_and_the_data_stays(database: Database, what: str) -> None:
    damage, start, before = DAMAGES[what], database.start(), database.everything()

    def filled(text: str) -> str:
        role = {"mariadb": "role boss", "mysql": "account boss@%"}[database.engine]
        return text.replace("ENGINE", database.engine).replace("CONFIG", database.config).replace("ROLE", role)

    sql = f"{database.engine} <<'END'\n{'; '.join(damage.sql)};\nEND" if damage.sql else ""
    database.shell(f"{filled(damage.shell)}\n{sql}")
    assert sorted(database.apply()) == sorted(map(filled, damage.said))
    assert database.again() == ""
    # Nothing of it is left.
    assert database.everything() == before
    assert (database.start() != start) == damage.restarts
    answer = database.client("SELECT id, text FROM things ORDER BY id")
    assert (answer["error"], answer["certificate"]) == ("", fingerprint(database))
    assert answer["results"][0]["rows"] == [["1", "first"], ["2", "second"]]


def test_the_session_of_a_stranger_ends_with_the_account(database: Database) -> None:
    database.root(f"CREATE USER stranger@'{APP}' IDENTIFIED BY 'Evil-1234-evil'")
    session = f"import json\nasked = json.loads({json.dumps(dict.fromkeys(('ciphers', 'version'), ''))!r})\n"
    asked: dict[str, object] = {"host": ADDRESS, "user": "stranger", "password": "Evil-1234-evil", "database": None}
    asked |= {"ca": database.section()["caCertificate"], "statements": ["DO SLEEP(600)"]}
    client = f"{session}asked.update(json.loads({json.dumps(asked)!r}))\n{CLIENT}"
    database.rehearsal.ssh("app-1", "cat > stranger.py; nohup python3 stranger.py > stranger.out 2>&1 &", stdin=client)
    until_session = f"until {database.engine} -NBe 'SHOW PROCESSLIST' | grep -q stranger; do sleep 0.1; done"
    database.shell(f'timeout 20 bash -c "{until_session}"')
    assert database.apply() == [
        f"account stranger@{APP}: removed",
        f"session of stranger@{APP}: ended",
    ]
    assert "stranger" not in database.root("SHOW PROCESSLIST")
    assert database.apply() == []


def test_what_the_server_refuses_is_taken_back(database: Database) -> None:
    path = f"files{database.config}"
    start = database.start()
    # Seen before anything is restarted.
    said = database.apply_altered(path, "general_log = OFF", "no_such_option = 1")
    assert "refuses the new settings" in said
    assert "no_such_option" in said
    assert database.start() == start
    assert database.rows("SELECT COUNT(*) FROM things") == [["2"]]
    # Seen only by trying.
    said = database.apply_altered(path, f"port = {PORT}", "port = 22")
    assert "the old ones are back" in said
    assert "Can't start server: Bind on TCP/IP port" in said
    assert database.rows("SELECT COUNT(*) FROM things") == [["2"]]
    # A key of somebody else's.
    start = database.start()
    said = database.apply_altered("data/server-cert.pem", database.section()["certificate"], other_authority())
    assert "the old ones are back" in said
    assert database.client("SELECT 1")["certificate"] == fingerprint(database)
    assert database.start() == start
    assert database.apply() == []


# Secrets


def test_no_process_or_log_shows_a_password(database: Database) -> None:
    watcher = (
        "import pathlib\n"
        "seen, stop = set(), pathlib.Path('/root/stop')\n"
        "while not stop.exists():\n"
        "    for name in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
        "        for file in (name, name.with_name('environ')):\n"
        "            try:\n"
        "                seen.add(file.read_bytes())\n"
        "            except OSError:\n"
        "                pass\n"
        "stop.unlink()\n"
        "pathlib.Path('/root/seen').write_bytes(b'\\n'.join(seen))\n"
    )
    database.shell(f"systemd-run -q --collect --unit=watcher python3 -c {json.dumps(watcher)}".replace("\\n", "\n"))
    database.root(f"DROP USER {ACCOUNT}", f"ALTER USER migration@'{APP}' REQUIRE NONE")
    assert len(database.apply()) == 2
    database.shell("touch /root/stop; timeout 60 bash -c 'while systemctl is-active -q watcher; do sleep 0.3; done'")
    section = database.section()
    assert "reconcile.py" in database.shell("strings -n 8 /root/seen 2>/dev/null || tr '\\0' ' ' < /root/seen")
    searched = "/root/seen /var/log /var/lib/uds /etc/mysql /etc/uds /tmp /run/log"
    for secret in (section["password"], section["migrationPassword"], section["privateKey"].splitlines()[1]):
        pattern = base64.b64encode(secret.encode()).decode()
        found = database.shell(
            f"grep -rlaF -f <(base64 -d <<< {pattern}) {searched} | grep -v /etc/mysql/tls/server-key.pem || true\n"
            f"journalctl -q | grep -cF -f <(base64 -d <<< {pattern}) || true"
        )
        assert found.split() == ["0"]


# Last, because it takes the server away for a moment


def test_everything_is_the_same_after_a_reboot(database: Database) -> None:
    database.rehearsal.reconnect()
    realm = database.rehearsal.realm()
    realm.power.reboot(realm.machine("local-db-1").number)

    def back() -> bool:
        with contextlib.suppress(AssertionError):
            return bool(database.client("SELECT 1")["error"] == "")
        return False

    until(back)
    assert database.rows("SELECT id, text FROM things ORDER BY id") == [["1", "first"], ["2", "second"]]
    assert database.apply() == []
    test_it_listens_on_the_private_address_and_nowhere_else(database)
