"""The small interface that a cloud has to fill, and the choice of it.

Where clouds differ, the difference is in this folder; nothing else asks which cloud it is.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

import pulumi

from components.firewall import Firewall, Rule
from components.settings import CloudName, Settings


@dataclass(frozen=True)
class Bucket:
    """A bucket that a server can add to, and do nothing else with.

    `profile` is what the cloud gives the server for that. `ready` is all that must be there before anything is added.
    """

    name: pulumi.Output[str]
    region: str
    profile: pulumi.Output[str]
    ready: tuple[pulumi.Resource, ...]


@dataclass(frozen=True)
class Guest:
    """Who may come to a port (TCP) by a public IPv4 address that is known only when a server has it.

    A rule more, beside the firewall's own: the cloud's has it from the beginning, the server's from its hardening on.
    """

    port: int
    address: pulumi.Output[str]
    why: str

    def rule(self, address: str) -> Rule:
        """The rule, now that the address is known."""
        return Rule("tcp", self.port, (IPv4Network(address),), self.why)


@dataclass(frozen=True)
class Machine:
    """What a server asks of the cloud.

    `user_data` is secret: it must not be readable in the state. `public` says whether the world is to address it;
    others get no public address, except on a cloud that has no other way out for their updates. `adds_to` is given
    only on a cloud that has such buckets (see `bucket_for`).
    """

    private_address: IPv4Address
    size: str
    firewall: Firewall
    user_data: bytes
    public: bool
    protect: bool
    guest: Guest | None = None
    adds_to: Bucket | None = None


@dataclass(frozen=True)
class Provisioned:
    """What the cloud made of it. `outward_address` is how the world sees it when it calls, whoever else shares that."""

    resource: pulumi.CustomResource
    public_address: pulumi.Output[str] | None
    outward_address: pulumi.Output[str]


class Cloud(Protocol):
    """A cloud: its network, and servers in it."""

    user_data_limit: int
    """Bytes of user data that it takes."""

    def machine(self, name: str, machine: Machine, parent: pulumi.Resource) -> Provisioned:
        """A machine behind its firewall, from its first moment."""


def cloud_for(settings: Settings, elsewhere: str | None = None) -> Cloud:
    """The stack's cloud, in the stack's region or `elsewhere`, where it is for servers that the world addresses.

    Importing an SDK costs a second at every preview, so only the one in use is.
    """
    if settings.cloud is CloudName.AWS:
        from components.clouds.aws import Aws  # noqa: PLC0415 - see above

        return Aws(settings, elsewhere)
    from components.clouds.linode import Linode  # noqa: PLC0415 - see above

    return Linode(settings, elsewhere)


def bucket_for(settings: Settings) -> Bucket | None:
    """The stack's bucket for backups, if it is to have one; settings are checked to ask for one on AWS only."""
    if not settings.backup.bucket:
        return None
    from components.clouds.aws_bucket import BackupBucket  # noqa: PLC0415 - see above

    return BackupBucket(settings).made
