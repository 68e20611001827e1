"""The stack: settings -> cloud -> servers -> outputs."""

import pulumi

from components import application
from components import settings as configuration
from components.app_server import AppServer
from components.backup_server import BackupServer
from components.cloud_init import UserDataError
from components.clouds import bucket_for, cloud_for
from components.db_server import DbServer
from components.server import Server
from components.settings import DEPLOY_USER, SettingsError


def build() -> None:
    """Declare everything that the stack consists of."""
    settings = configuration.load()
    if not settings.alerts.has_channel:
        pulumi.warn(
            "the stack has no channel for alerts (see `alerts` in Pulumi.yaml): nobody hears of logins and failures"
        )
    # Before anything is made: it may have to be refused.
    release = application.delivery(settings)
    cloud = cloud_for(settings)

    backup = settings.backup
    private = [settings.database_address]
    if backup.server and not backup.region:
        private.append(settings.backup_address)
    jump_targets = [f"{address}:22" for address in private]
    bastion, *others = (
        AppServer(name, settings, cloud, release, jump_targets=jump_targets if name == "app-1" else []).server
        for name in settings.app_addresses
    )
    bucket = bucket_for(settings)
    db_server = DbServer("db-1", settings, cloud, bastion, bucket=bucket)
    database, store = db_server.server, None
    if backup.server:
        backup_cloud = cloud_for(settings, backup.region) if backup.region else cloud
        store = BackupServer("backup-1", settings, backup_cloud, bastion=bastion, database=database)
    db_server.back_up(store)

    servers = {"app": [bastion, *others], "db": [database], "backup": [store.server] if store else []}
    facts = {server.name: _facts(role, server) for role, group in servers.items() for server in group}
    if store and store.server.elsewhere:
        # How the one knows the other, where no private network joins them.
        facts[store.server.name]["region"] = store.server.elsewhere
        facts[database.name]["outwardIp"] = database.outward_address
    pulumi.export("servers", facts)
    pulumi.export("sshUser", DEPLOY_USER)
    pulumi.export(
        "database",
        {
            "host": database.private_address,
            "port": settings.database.port,
            "name": settings.database.name,
            "user": settings.database.user,
        },
    )
    if bucket:
        pulumi.export("backupBucket", {"name": bucket.name, "region": bucket.region})


def _facts(role: str, server: Server) -> dict[str, pulumi.Input[str]]:
    facts: dict[str, pulumi.Input[str]] = {
        "role": role,
        "privateIp": server.private_address,
        "hostKey": server.host_key,
    }
    # A null output would show as unknown for ever.
    return facts | ({"publicIp": server.public_address} if server.public_address else {})


try:
    build()
except (SettingsError, UserDataError) as error:
    # Shown as it stands: a traceback would bury it.
    raise pulumi.RunError(f"The configuration of this stack can't be used:\n{error}") from None
