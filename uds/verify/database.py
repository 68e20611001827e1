"""The database: who may use it, from where, and how (guide, 3.11.1 and 4.6)."""

from components.mysql import APPLICATION_RIGHTS, MIGRATION_RIGHTS
from uds.verify.check import DB, Problems, check, difference
from uds.verify.server import Server

_MYSQL = "uds apply STACK {server} mysql"

# Whose only way in is the socket of the server itself.
_OWN = {"root", "mysql", "mariadb.sys", "mysql.sys", "mysql.session", "mysql.infoschema", "debian-sys-maint"}


# What is granted, on each level.
_RIGHTS = {
    "all": "SELECT grantee, privilege_type FROM information_schema.user_privileges",
    "database": "SELECT grantee, table_schema, privilege_type FROM information_schema.schema_privileges",
    "table": "SELECT grantee, table_schema, table_name, privilege_type FROM information_schema.table_privileges",
    "column": "SELECT grantee, table_schema, column_name, privilege_type FROM information_schema.column_privileges",
}


def _ask(server: Server, statement: str) -> list[list[str]]:
    """The rows of an answer, as root over the socket."""
    client = "mariadb" if server.host.exists("mariadb") else "mysql"
    text = server.host.check_output(f"{client} --batch --skip-column-names -e %s", statement)
    return [line.split("\t") for line in str(text).splitlines()]


def _variables(server: Server) -> dict[str, str]:
    return {row[0]: row[1] if len(row) > 1 else "" for row in _ask(server, "SHOW GLOBAL VARIABLES")}


@check("3.11.1", "The database listens on the private network, for TLS only", _MYSQL, DB)
def database_is_private(server: Server) -> Problems:
    """The running server's settings."""
    found = _variables(server)
    wanted = {
        "bind_address": str(server.settings.database_address),
        "port": str(server.settings.database.port),
        "require_secure_transport": "ON",
        "local_infile": "OFF",
        "skip_name_resolve": "ON",
    }
    for name, value in wanted.items():
        if found.get(name) != value:
            yield f"{name} is {found.get(name)}, not {value}"
    if "TLSv1.1" in found.get("tls_version", "") or not found.get("tls_version"):
        yield f"tls_version is {found.get('tls_version') or 'empty'}"
    if not found.get("secure_file_priv"):
        yield "secure_file_priv is empty: SQL may read and write files anywhere"


@check("3.11.1", "Only the mysql account reads the data, and nobody logs in as it", _MYSQL, DB)
def data_is_private(server: Server) -> Problems:
    """The data folder and the account's shell."""
    folder = server.host.file("/var/lib/mysql")
    if (folder.user, folder.mode) != ("mysql", 0o700):
        yield f"/var/lib/mysql belongs to {folder.user} with {folder.mode:o}, not to mysql with 700"
    shell = server.host.user("mysql").shell
    if not shell.endswith(("/false", "/nologin")):
        yield f"mysql has the shell {shell}"


@check("4.6", "Exactly the stack's accounts, from the application servers only", _MYSQL, DB)
def database_accounts(server: Server) -> Problems:
    """No anonymous account, none from elsewhere, no second root."""
    rows = _ask(server, "SELECT user, host FROM mysql.user WHERE user <> '' OR host <> ''")
    settings = server.settings.database
    users = [settings.user] + ([settings.migration_user] if settings.migration_user else [])
    wanted = {f"{user}@{address}" for user in users for address in server.settings.app_addresses.values()}
    found = set()
    for user, host in rows:
        if user in _OWN and host in {"localhost", ""}:
            continue
        # MariaDB's name for everybody's rights, which is no account.
        if (user, host) == ("PUBLIC", ""):
            continue
        found.add(f"{user}@{host}")
    yield from difference("account", found, wanted)


@check("4.6", "The application may do four things with its data", _MYSQL, DB)
def database_rights(server: Server) -> Problems:
    """The rights of the application's and the migrations' accounts, as the server has them."""
    settings = server.settings.database
    wanted = {settings.user: set(APPLICATION_RIGHTS)}
    if settings.migration_user:
        wanted[settings.migration_user] = set(MIGRATION_RIGHTS)
    for user, rights in wanted.items():
        for address in server.settings.app_addresses.values():
            granted = {
                f"{table} {' '.join(row)}"
                for table, statement in _RIGHTS.items()
                for grantee, *row in _ask(server, statement)
                if grantee == f"'{user}'@'{address}'"
            }
            yield from difference(
                f"{user}@{address}",
                granted - {"all USAGE"},
                {f"database {settings.name} {right}" for right in rights},
            )


@check("3.11.1", "Nothing is left of the engine's first installation", _MYSQL, DB)
def nothing_is_left(server: Server) -> Problems:
    """The test database, and accounts that anybody could use."""
    for (name,) in _ask(server, "SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE 'test%'"):
        if name != server.settings.database.name:
            yield f"database {name} exists"
    for (host,) in _ask(server, "SELECT host FROM mysql.user WHERE user = '' AND host <> ''"):
        yield f"an account without a name may log in from {host}"
