"""The backup server: takes backups from the database server, and keeps them from it (guide, 3.11.2)."""

from ipaddress import IPv4Network

import pulumi

from components import backup, monit
from components.accounts import Accounts
from components.backup import PUSH_ACCOUNT, BackupStore
from components.clouds import Cloud, Guest
from components.firewall import Firewall, Rule
from components.server import Server, ServerArgs
from components.settings import DEPLOY_USER, Settings

_PUSHES = "backups of the database server"


def firewall(settings: Settings) -> Firewall:
    """SSH for the database server, and through the first application server; nothing else; IPv6 is closed.

    Elsewhere, operators come directly, since it must be reached when the stack's own region is not, and the database
    server is a guest.
    """
    if settings.backup.region:
        return Firewall(name="backup", rules=(Rule("tcp", 22, settings.ssh.operators, "SSH for operators"),))
    bastion = next(iter(settings.app_addresses.values()))
    return Firewall(
        name="backup",
        rules=(
            Rule("tcp", 22, (IPv4Network(bastion),), "SSH through the first application server"),
            Rule("tcp", 22, (IPv4Network(settings.database_address),), _PUSHES),
        ),
    )


class BackupServer(pulumi.ComponentResource):
    """The backup server. What it holds is needed when all else is lost, so Pulumi refuses to delete or replace it."""

    server: Server
    ready: pulumi.Resource
    """What must be there before backups can arrive."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        cloud: Cloud,
        *,
        bastion: Server,
        database: Server,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Build the server `name` for the backups of `database`, reached through `bastion` where it isn't elsewhere."""
        super().__init__("uds:server:BackupServer", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        elsewhere = settings.backup.region
        deploy_sources = [str(source) for source in settings.ssh.operators]
        pushed_from: pulumi.Input[str] = database.outward_address
        if not elsewhere:
            deploy_sources = [f"{bastion.private_address}/32"]
            pushed_from = database.private_address
        self.server = Server(
            name,
            ServerArgs(
                private_address=settings.backup_address,
                size=settings.backup_size,
                firewall=firewall(settings),
                packages=monit.PACKAGES,
                deploy_sources=deploy_sources,
                bastion=None if elsewhere else bastion,
                elsewhere=elsewhere,
                protect=True,
                guest=Guest(22, database.outward_address, _PUSHES) if elsewhere else None,
            ),
            settings,
            cloud,
            opts=child,
        )
        Accounts(f"{name}-accounts", settings, self.server, opts=child)
        self.ready = BackupStore(f"{name}-backup", settings, self.server, pushed_from, opts=child)
        automation = pulumi.Output.from_input(pushed_from).apply(
            lambda address: {DEPLOY_USER: deploy_sources, PUSH_ACCOUNT: [f"{address}/32"]}
        )
        monit.Monit(f"{name}-monit", settings, self.server, automation, {"backup": backup.watch()}, opts=child)
        self.register_outputs({})
