"""The database server: reached by nobody but the application servers (guide, 3.9)."""

from ipaddress import IPv4Network

import pulumi

from components import backup, monit, mysql
from components.accounts import Accounts
from components.backup import Backup
from components.backup_server import BackupServer
from components.clouds import Bucket, Cloud
from components.firewall import Firewall, Rule
from components.mysql import MySql
from components.server import Server, ServerArgs
from components.settings import DEPLOY_USER, Settings


def firewall(settings: Settings) -> Firewall:
    """The database for the application servers, SSH through the first of them, nothing else; IPv6 is closed."""
    apps = tuple(IPv4Network(address) for address in settings.app_addresses.values())
    return Firewall(
        name="database",
        rules=(
            Rule("tcp", 22, apps[:1], "SSH through the first application server"),
            Rule("tcp", settings.database.port, apps, "database, for the application servers"),
        ),
    )


class DbServer(pulumi.ComponentResource):
    """The database server. It holds what can't be made again, so Pulumi refuses to delete or replace it.

    It is complete once it knows where its backups go (`back_up`).
    """

    server: Server

    def __init__(
        self,
        name: str,
        settings: Settings,
        cloud: Cloud,
        bastion: Server,
        *,
        bucket: Bucket | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Build the server `name`, reached through `bastion`, which may add to `bucket`."""
        super().__init__("uds:server:DbServer", name, None, opts)
        self._settings, self._bucket = settings, bucket
        self._child = child = pulumi.ResourceOptions(parent=self)
        self._deploy_sources = deploy_sources = [f"{bastion.private_address}/32"]
        self.server = Server(
            name,
            ServerArgs(
                private_address=settings.database_address,
                size=settings.database_size,
                firewall=firewall(settings),
                packages=[
                    *mysql.PACKAGES,
                    *monit.PACKAGES,
                    *(backup.PACKAGES if settings.backup.are_made else ()),
                    *(backup.BUCKET_PACKAGES if bucket else ()),
                    *settings.database.packages,
                ],
                deploy_sources=deploy_sources,
                bastion=bastion,
                protect=True,
                adds_to=bucket,
            ),
            settings,
            cloud,
            opts=child,
        )
        Accounts(f"{name}-accounts", settings, self.server, opts=child)
        self._database = MySql(f"{name}-mysql", settings, self.server, opts=child)
        self.register_outputs({})

    def back_up(self, store: BackupServer | None) -> None:
        """Have its backups go to `store`, and to its bucket; and watch it, which comes last."""
        settings, name, bucket, child = self._settings, self.server.name, self._bucket, self._child
        places = [*([store.ready] if store else []), *(bucket.ready if bucket else [])]
        Backup(
            f"{name}-backup",
            settings,
            self.server,
            store.server if store else None,
            bucket,
            after=[self._database, *places],
            opts=child,
        )
        watches = {"database": mysql.watch()}
        if settings.backup.are_made:
            watches["backup"] = backup.watch()
        monit.Monit(f"{name}-monit", settings, self.server, {DEPLOY_USER: self._deploy_sources}, watches, opts=child)
