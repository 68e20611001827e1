"""A server of any role: firewall, machine, first boot, first contact."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

import pulumi
from pulumi_command import remote

from components import cloud_init
from components.catalogue import IMAGES
from components.clouds import Bucket, Cloud, Guest, Machine
from components.files import ServerFile, digest
from components.firewall import Firewall
from components.remote import Login, RemoteScript, connection, wait_for_ssh
from components.settings import Settings

# Applies the first-boot tree again in place.
_APPLY = Path(__file__).with_suffix(".sh")


@dataclass(frozen=True)
class ServerArgs:
    """What makes a role's server.

    `private_address` is fixed, so that firewalls are known before anything exists. `deploy_sources` are the addresses
    (CIDR) from which the automation logs in. A server with a `bastion` is reached through it only; `jump_targets` are
    the private servers (`address:port`) that are reached through this one. `elsewhere` is the region of a server to
    which no private network of the stack leads. `guest` is somebody more than the firewall names. `adds_to` is a bucket
    that it may add to.
    """

    private_address: IPv4Address
    size: str
    firewall: Firewall
    packages: Sequence[str]
    deploy_sources: Sequence[str]
    jump_targets: Sequence[str] = ()
    bastion: "Server | None" = None
    elsewhere: str | None = None
    protect: bool = False
    guest: Guest | None = None
    adds_to: Bucket | None = None

    def firewall_with(self, address: str | None) -> Firewall:
        """The firewall with the guest in it, who has this address."""
        if self.guest is None or address is None:
            return self.firewall
        return replace(self.firewall, rules=(*self.firewall.rules, self.guest.rule(address)))


class Server(pulumi.ComponentResource):
    """A hardened server, ready for what its role puts on it.

    The chain: a machine behind its firewall hardens itself at its first boot; the first connection is pinned by a host
    key from its user data and brings home the key that the server made, and which OpenSSH it has; with that key pinned,
    the same files are applied again, which fails with the server's own words if the first boot did.
    """

    name: str
    public_address: pulumi.Output[str] | None
    """Where the world addresses it, if it has such an address."""
    outward_address: pulumi.Output[str]
    """Where the world sees it call from."""
    private_address: str
    address: pulumi.Input[str]
    """Where the stack's other servers reach it."""
    elsewhere: str | None
    """The region of a server to which no private network of the stack leads."""
    host_key: pulumi.Output[str]
    """The public host key, as one line."""
    connection: remote.ConnectionArgs
    """For what must run after the server is hardened: let it depend on `hardening`."""
    hardening: RemoteScript
    applied: list[pulumi.Resource]
    """Every script that was applied so far, for what has to come last."""

    def __init__(
        self, name: str, args: ServerArgs, settings: Settings, cloud: Cloud, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Provision `name` in `cloud`."""
        super().__init__("uds:server:Server", name, None, opts)
        self.name = name
        deploy = settings.deploy
        login = self._login = Login.of(settings)
        boot = cloud_init.FirstBoot(
            hostname=name,
            openssh=IMAGES[settings.image].openssh,
            firewall=args.firewall,
            packages=args.packages,
            deploy_public_key=deploy.public_key,
            deploy_sources=args.deploy_sources,
            jump_targets=args.jump_targets,
        )
        bootstrap_key = cloud_init.bootstrap_host_key(deploy.bootstrap_seed.get_secret_value(), name)
        provisioned = cloud.machine(
            name,
            Machine(
                private_address=args.private_address,
                size=args.size,
                firewall=args.firewall,
                user_data=cloud_init.user_data(
                    boot,
                    deploy_password_hash=deploy.sudo_password_hash.get_secret_value(),
                    host_key=bootstrap_key,
                    secrets=[login.private_key, login.sudo_password, deploy.bootstrap_seed.get_secret_value()],
                    limit=cloud.user_data_limit,
                ),
                public=args.bastion is None,
                protect=args.protect,
                guest=args.guest,
                adds_to=args.adds_to,
            ),
            parent=self,
        )
        machine = provisioned.resource
        self.public_address = provisioned.public_address
        self.outward_address = provisioned.outward_address
        self.private_address = str(args.private_address)
        self.elsewhere = args.elsewhere
        self.address = self.private_address
        if args.elsewhere and self.public_address:
            self.address = self.public_address

        bastion = args.bastion.connection if args.bastion else None
        host: pulumi.Input[str] = self.private_address
        reachable: pulumi.Resource = machine
        if bastion:
            reachable = wait_for_ssh(name, self.private_address, bastion, machine, parent=self)
        elif self.public_address:
            host = self.public_address
        contact = remote.Command(
            f"{name}-first-contact",
            connection=connection(host, cloud_init.public_line(bootstrap_key), login, bastion, first=True),
            create="cat /etc/ssh/ssh_host_ed25519_key.pub && ssh -V 2>&1",
            triggers=[machine.id],
            add_previous_output_in_env=False,
            logging=remote.Logging.NONE,
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[reachable],
                deleted_with=machine,
                # Once in a server's life: the key that pins this connection is gone afterwards.
                ignore_changes=["connection", "create"],
            ),
        )
        # The comment behind the key would only be noise in the pin.
        self.host_key = contact.stdout.apply(lambda line: " ".join(line.split()[:2]))
        self.connection = connection(host, self.host_key, login, bastion)

        # Servers keep the system that they were made with, whatever `image` says today.
        files = pulumi.Output.all(contact.stdout, args.guest.address if args.guest else None).apply(
            lambda known: cloud_init.server_files(
                replace(boot, openssh=openssh_of(known[0]) or boot.openssh, firewall=args.firewall_with(known[1]))
            )
        )
        self.hardening = RemoteScript(
            f"{name}-hardening",
            connection=self.connection,
            login=login,
            script=_APPLY.read_text(),
            files=files,
            data={"digest": files.apply(lambda files: digest(files) + "\n")},
            opts=pulumi.ResourceOptions(parent=self, deleted_with=machine),
        )
        self.applied = [self.hardening]
        self.register_outputs({})

    def apply(
        self,
        name: str,
        script: str,
        *,
        parent: pulumi.Resource,
        files: pulumi.Input[Sequence[ServerFile]] = (),
        data: Mapping[str, pulumi.Input[str]] | None = None,
        after: Sequence[pulumi.Resource] = (),
    ) -> RemoteScript:
        """Apply a capability's `script` on the hardened server, and after what is in `after`. See `RemoteScript`."""
        applied = RemoteScript(
            name,
            connection=self.connection,
            login=self._login,
            script=script,
            files=files,
            data=data,
            opts=pulumi.ResourceOptions(parent=parent, depends_on=[self.hardening, *after]),
        )
        self.applied.append(applied)
        return applied


def openssh_of(contact: str) -> tuple[int, int] | None:
    """What a server said of its OpenSSH, such as `OpenSSH_10.0p2 Debian-7, OpenSSL 3.5.1 1 Jul 2025`.

    None where its first contact was before anybody asked.
    """
    version = re.search(r"OpenSSH_(\d+)\.(\d+)", contact)
    return (int(version[1]), int(version[2])) if version else None
