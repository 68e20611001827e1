"""The backup server: takes backups from the database server, and keeps them from it (guide, 3.11.2)."""

from ipaddress import IPv4Network

import pulumi

from components import backup, monit
from components.accounts import Accounts
from components.backup import PUSH_ACCOUNT, BackupStore
from components.clouds import Cloud
from components.firewall import Firewall, Rule
from components.server import Server, ServerArgs
from components.settings import DEPLOY_USER, Settings


def firewall(settings: Settings) -> Firewall:
    """SSH for the database server, and through the first application server; nothing else; IPv6 is closed."""
    bastion = next(iter(settings.app_addresses.values()))
    return Firewall(
        name="backup",
        rules=(
            Rule("tcp", 22, (IPv4Network(bastion),), "SSH through the first application server"),
            Rule("tcp", 22, (IPv4Network(settings.database_address),), "backups of the database server"),
        ),
    )


class BackupServer(pulumi.ComponentResource):
    """The backup server. What it holds is needed when all else is lost, so Pulumi refuses to delete or replace it."""

    server: Server
    ready: pulumi.Resource
    """What must be there before backups can arrive."""

    def __init__(
        self, name: str, settings: Settings, cloud: Cloud, bastion: Server, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Build the server `name`, reached through `bastion`."""
        super().__init__("uds:server:BackupServer", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        deploy_sources = [f"{bastion.private_address}/32"]
        self.server = Server(
            name,
            ServerArgs(
                private_address=settings.backup_address,
                size=settings.backup_size,
                firewall=firewall(settings),
                packages=monit.PACKAGES,
                deploy_sources=deploy_sources,
                bastion=bastion,
                protect=True,
            ),
            settings,
            cloud,
            opts=child,
        )
        Accounts(f"{name}-accounts", settings, self.server, opts=child)
        self.ready = BackupStore(f"{name}-backup", settings, self.server, opts=child)
        automation = {DEPLOY_USER: deploy_sources, PUSH_ACCOUNT: [f"{settings.database_address}/32"]}
        monit.Monit(f"{name}-monit", settings, self.server, automation, {"backup": backup.watch()}, opts=child)
        self.register_outputs({})
