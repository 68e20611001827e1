"""Linode: a VPC with static private addresses, and instances that are behind their firewall from the first moment."""

import base64

import pulumi

from components.catalogue import IMAGES
from components.clouds import Guest, Machine, Provisioned
from components.clouds.sdk import without_the_rest
from components.firewall import CLOUD_INBOUND_POLICY, CLOUD_OUTBOUND_POLICY, CloudRule, check_linode_limits, cloud_rules
from components.settings import PROJECT, Settings, SettingsError

with without_the_rest("pulumi_linode"):
    from pulumi_linode._inputs import (
        FirewallInboundArgs,
        InstanceInterfaceArgs,
        InstanceInterfaceIpv4Args,
        InstanceMetadataArgs,
    )
    from pulumi_linode.firewall import Firewall
    from pulumi_linode.instance import Instance
    from pulumi_linode.vpc import Vpc
    from pulumi_linode.vpc_subnet import VpcSubnet


class Linode(pulumi.ComponentResource):
    """A Linode account's part of the stack.

    Its VPC is the stack's own: Linode's older private network (192.168.128.0/17) is shared by all customers of a data
    centre. Every instance keeps a public interface, since a VPC has no way out for updates; inbound, it is closed by
    both firewalls where the role doesn't serve the world. A VPC ends with its region: elsewhere, servers have one of
    their own, and reach the others over the internet.
    """

    user_data_limit = 16384
    """Bytes, before base64 (Akamai, "Metadata service")."""

    def __init__(
        self, settings: Settings, elsewhere: str | None = None, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Make the private network, in the stack's region or in another one."""
        name = "linode-elsewhere" if elsewhere else "linode"
        super().__init__("uds:cloud:Linode", name, None, opts)
        self._region = elsewhere or settings.region
        self._image = settings.image_id or IMAGES[settings.image].linode
        self._root_key = settings.deploy.public_key
        # Labels are unique in a whole account, which may hold several stacks.
        self._prefix = pulumi.get_stack()
        vpc = Vpc(
            f"{name}-vpc",
            label=self._label("elsewhere") if elsewhere else self._prefix,
            region=self._region,
            description="Private network of the servers that hold user data",
            opts=pulumi.ResourceOptions(parent=self),
        )
        self._subnet = VpcSubnet(
            f"{name}-subnet",
            vpc_id=vpc.id.apply(int),
            label="servers",
            ipv4=str(settings.network.cidr),
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.register_outputs({})

    def machine(self, name: str, machine: Machine, parent: pulumi.Resource) -> Provisioned:
        """An instance. It waits for its firewall, so there is no moment without one."""
        rules = cloud_rules(machine.firewall)
        try:
            check_linode_limits(rules)
        except ValueError as error:
            # Only the operators' addresses come in any number.
            raise SettingsError(f"{PROJECT}:ssh.allowedSources: {error}") from None
        firewall = Firewall(
            f"{name}-firewall",
            label=self._label(name),
            inbound_policy=CLOUD_INBOUND_POLICY,
            outbound_policy=CLOUD_OUTBOUND_POLICY,
            inbounds=[*map(_inbound, rules), *([_inbound_guest(machine.guest)] if machine.guest else [])],
            opts=pulumi.ResourceOptions(parent=parent),
        )
        instance = Instance(
            f"{name}-instance",
            label=self._label(name),
            region=self._region,
            type=machine.size,
            image=self._image,
            # Linode asks for a way in for root. The first boot takes it away.
            authorized_keys=[self._root_key],
            firewall_id=firewall.id.apply(int),
            # Explicit, because accounts differ in their default, and a firewall belongs to the instance only here.
            interface_generation="legacy_config",
            interfaces=[
                InstanceInterfaceArgs(purpose="public", primary=True),
                InstanceInterfaceArgs(
                    purpose="vpc",
                    subnet_id=self._subnet.id.apply(int),
                    ipv4=InstanceInterfaceIpv4Args(vpc=str(machine.private_address)),
                ),
            ],
            metadatas=[
                InstanceMetadataArgs(user_data=pulumi.Output.secret(base64.b64encode(machine.user_data).decode()))
            ],
            opts=pulumi.ResourceOptions(
                parent=parent,
                protect=machine.protect,
                # Each of these would replace the server, with all that is on it. Later changes go over SSH.
                ignore_changes=["authorizedKeys", "image", "metadatas"],
                # Two can't have one label, or one private address.
                delete_before_replace=True,
            ),
        )
        address = instance.ipv4s.apply(lambda addresses: addresses[0])
        return Provisioned(instance, address, address)

    def _label(self, name: str) -> str:
        return f"{self._prefix}-{name}"


def _inbound_guest(guest: Guest) -> FirewallInboundArgs:
    return FirewallInboundArgs(
        label=f"tcp-{guest.port}-guest",
        action="ACCEPT",
        protocol="TCP",
        ports=str(guest.port),
        ipv4s=[pulumi.Output.concat(guest.address, "/32")],
        description=guest.why,
    )


def _inbound(rule: CloudRule) -> FirewallInboundArgs:
    # An empty list of addresses is refused; none at all is not.
    return FirewallInboundArgs(
        label=rule.label,
        action="ACCEPT",
        protocol=rule.protocol.upper(),
        ports=rule.ports,
        ipv4s=list(rule.sources_v4) or None,
        ipv6s=list(rule.sources_v6) or None,
        description=rule.description,
    )
