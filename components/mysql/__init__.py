"""The database: MySQL or MariaDB, for the application over verified TLS, and for nobody else (guide, 3.11.1 and 4.6).

Which of the two it is, the image's archive decides; the script asks the server.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pulumi
from pydantic import SecretStr

from components.files import ServerFile, read_tree
from components.monit.watch import WATCH, certificate, program
from components.server import Server
from components.settings import Settings

PACKAGES = ("mysql-server|mariadb-server",)

_FOLDER = Path(__file__).parent

# Guide, 4.6.
APPLICATION_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
# Tables, views and triggers, for the usual migration tools. No routines: they run with the rights of who made them.
MIGRATION_RIGHTS = (
    *APPLICATION_RIGHTS,
    "CREATE",
    "ALTER",
    "DROP",
    "INDEX",
    "REFERENCES",
    "CREATE VIEW",
    "SHOW VIEW",
    "TRIGGER",
    "LOCK TABLES",
)

# Forward secrecy and authenticated encryption; both kinds of keys, since a certificate may come from elsewhere.
_CIPHERS = ":".join(
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
    )
)


def server_files(settings: Settings) -> list[ServerFile]:
    """The files of both engines; the script installs those of the one that is there."""
    values = {"address": settings.database_address, "port": settings.database.port, "ciphers": _CIPHERS}
    return read_tree(_FOLDER / "files", values)


def script_data(settings: Settings) -> dict[str, str]:
    """What the script needs to know: the TLS files, the accounts with their passwords, and how to bring them about."""
    database = settings.database
    return {
        "ca.pem": database.ca_certificate,
        "server-cert.pem": database.certificate,
        "server-key.pem": database.private_key.get_secret_value().strip() + "\n",
        "desired.json": json.dumps({"database": database.name, "accounts": _accounts(settings)}, indent=1) + "\n",
        "reconcile.py": (_FOLDER / "reconcile.py").read_text(),
    }


def _accounts(settings: Settings) -> list[dict[str, object]]:
    """One for each address that may use it: an account is a name together with where it comes from."""
    database = settings.database
    users: list[tuple[str, SecretStr, Sequence[str]]] = [(database.user, database.password, APPLICATION_RIGHTS)]
    if database.migration_user is not None and database.migration_password is not None:
        users.append((database.migration_user, database.migration_password, MIGRATION_RIGHTS))
    return [
        {"user": user, "host": str(address), "password": password.get_secret_value(), "rights": rights}
        for user, password, rights in users
        for address in settings.app_addresses.values()
    ]


def watch() -> str:
    """What monit watches of it: that it answers, and its certificate."""
    database = program("database", f"{WATCH} database", cycles=2)
    return f"{database}\n{certificate('database-certificate', '/etc/mysql/tls/server-cert.pem')}"


class MySql(pulumi.ComponentResource):
    """The database server's software, brought to the stack's settings in place. Data is never touched."""

    def __init__(
        self, name: str, settings: Settings, server: Server, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Set up the database on `server`, which has one of `PACKAGES`."""
        super().__init__("uds:mysql:MySql", name, None, opts)
        server.apply(
            name,
            (_FOLDER / "apply.sh").read_text(),
            files=server_files(settings),
            data=script_data(settings),
            parent=self,
        )
        self.register_outputs({})
