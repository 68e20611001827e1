"""AWS: a VPC whose private subnet nobody outside can address, and instances that are behind their firewall at once."""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

import pulumi

from components.catalogue import IMAGES
from components.clouds import Guest, Machine, Provisioned
from components.clouds.sdk import without_the_rest
from components.firewall import CloudRule, check_aws_limits, cloud_rules
from components.settings import PROJECT, Settings, SettingsError

with without_the_rest(
    "pulumi_aws", "pulumi_aws.cloudwatch", "pulumi_aws.ec2", "pulumi_aws.iam", "pulumi_aws.ssm", "pulumi_aws.vpc"
):
    from pulumi_aws.cloudwatch.log_group import LogGroup
    from pulumi_aws.ec2._inputs import (
        InstanceMetadataOptionsArgs,
        InstancePrimaryNetworkInterfaceArgs,
        InstanceRootBlockDeviceArgs,
    )
    from pulumi_aws.ec2.default_security_group import DefaultSecurityGroup
    from pulumi_aws.ec2.eip import Eip
    from pulumi_aws.ec2.flow_log import FlowLog
    from pulumi_aws.ec2.instance import Instance
    from pulumi_aws.ec2.internet_gateway import InternetGateway
    from pulumi_aws.ec2.nat_gateway import NatGateway
    from pulumi_aws.ec2.network_interface import NetworkInterface
    from pulumi_aws.ec2.route import Route
    from pulumi_aws.ec2.route_table import RouteTable
    from pulumi_aws.ec2.route_table_association import RouteTableAssociation
    from pulumi_aws.ec2.security_group import SecurityGroup
    from pulumi_aws.ec2.subnet import Subnet
    from pulumi_aws.ec2.vpc import Vpc
    from pulumi_aws.iam.role import Role
    from pulumi_aws.iam.role_policy import RolePolicy
    from pulumi_aws.ssm.get_parameter import get_parameter_output
    from pulumi_aws.vpc.security_group_egress_rule import SecurityGroupEgressRule
    from pulumi_aws.vpc.security_group_ingress_rule import SecurityGroupIngressRule

# Enough to look back at how an intrusion began.
_FLOW_LOG_DAYS = 90

# GiB. The images' own 8 leave a database little room. It can be made larger in place, never smaller.
_DISK = 30


@dataclass(frozen=True)
class _Private:
    """The subnet of those whom nobody can address, their way out, and the address that they have out there."""

    subnet: Subnet
    way_out: list[pulumi.Resource]
    outward: Eip


class Aws(pulumi.ComponentResource):
    """An AWS account's part of the stack.

    Servers that the world reaches stand in the public subnet, with an Elastic IP and an IPv6 address. All others stand
    in the private one: they have no public address at all, neither IPv4 nor IPv6, and go out by a NAT gateway. Both
    subnets are in one availability zone: traffic between zones is slower and costs extra. Elsewhere, there is a VPC of
    its own with nothing but the public subnet.
    """

    user_data_limit = 16384
    """Bytes, before base64 (EC2 user guide, "Run commands on your instances at launch")."""

    def __init__(
        self, settings: Settings, elsewhere: str | None = None, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Make the network, in the stack's region or in another one."""
        self._name = "aws-elsewhere" if elsewhere else "aws"
        super().__init__("uds:cloud:Aws", self._name, None, opts)
        self._child = pulumi.ResourceOptions(parent=self)
        # Given to every resource: the provider's default region can come from elsewhere (AWS_REGION).
        self._region = elsewhere or settings.region
        self._stack = pulumi.get_stack()
        # An image has another number in every region.
        own = "" if elsewhere else settings.image_id
        self._image = own or _newest(IMAGES[settings.image].aws, self._region, self)

        self._vpc = Vpc(
            f"{self._name}-vpc",
            cidr_block=str(settings.network.cidr),
            assign_generated_ipv6_cidr_block=True,
            region=self._region,
            tags=self._tags("servers"),
            opts=self._child,
        )
        # A VPC is born with a group whose members reach each other. Emptied, it is no way round ours.
        DefaultSecurityGroup(
            f"{self._name}-default-security-group",
            vpc_id=self._vpc.id,
            region=self._region,
            tags=self._tags("nobody"),
            opts=self._child,
        )
        self._log_flows()

        internet = InternetGateway(
            f"{self._name}-internet-gateway",
            vpc_id=self._vpc.id,
            region=self._region,
            tags=self._tags("servers"),
            opts=self._child,
        )
        self._public = Subnet(
            f"{self._name}-public-subnet",
            vpc_id=self._vpc.id,
            cidr_block=str(settings.public_subnet),
            ipv6_cidr_block=self._vpc.ipv6_cidr_block.apply(_first_64),
            region=self._region,
            tags=self._tags("public"),
            opts=self._child,
        )
        self._public_way_out = self._lead_out(internet)
        self._private = None if elsewhere else self._translated(internet, settings.private_subnet)
        self.register_outputs({})

    def machine(self, name: str, machine: Machine, parent: pulumi.Resource) -> Provisioned:
        """An instance. Its firewall, its address and its way out are there before it is.

        They belong to a network interface of its own: given to the instance itself, they would come when it already
        runs, and its first boot could not fetch its packages.
        """
        opts = pulumi.ResourceOptions(parent=parent)
        private = None if machine.public else self._private_subnet(name)
        rules = cloud_rules(machine.firewall)
        try:
            check_aws_limits(rules)
        except ValueError as error:
            # Only the operators' addresses come in any number.
            raise SettingsError(f"{PROJECT}:ssh.allowedSources: {error}") from None
        firewall = SecurityGroup(
            f"{name}-firewall",
            name=self._label(name),
            description=f"Firewall of {name}",
            vpc_id=self._vpc.id,
            region=self._region,
            tags=self._tags(name),
            opts=opts,
        )
        interface = NetworkInterface(
            f"{name}-interface",
            subnet_id=(private.subnet if private else self._public).id,
            private_ips=[str(machine.private_address)],
            ipv6_address_count=0 if private else 1,
            security_groups=[firewall.id],
            description=f"Network of {name}",
            region=self._region,
            tags=self._tags(name),
            opts=opts,
        )
        before: list[pulumi.Resource] = [
            *self._rules(name, rules, machine.guest, firewall, opts),
            *(private.way_out if private else self._public_way_out),
        ]
        if private:
            outward = private.outward
        else:
            outward = Eip(
                f"{name}-address",
                domain="vpc",
                network_interface=interface.id,
                region=self._region,
                tags=self._tags(name),
                opts=pulumi.ResourceOptions(parent=parent, depends_on=self._public_way_out),
            )
            before.append(outward)
        instance = Instance(
            f"{name}-instance",
            ami=self._image,
            instance_type=machine.size,
            primary_network_interface=InstancePrimaryNetworkInterfaceArgs(network_interface_id=interface.id),
            # No key pair: the automation's key is in the user data, and the image's own account is not made.
            user_data_base64=pulumi.Output.secret(base64.b64encode(machine.user_data).decode()),
            # Whoever makes a program on the server fetch an address (SSRF) gets nothing without a token, and one hop
            # doesn't reach containers.
            metadata_options=InstanceMetadataOptionsArgs(
                http_endpoint="enabled", http_tokens="required", http_put_response_hop_limit=1
            ),
            root_block_device=InstanceRootBlockDeviceArgs(
                encrypted=True, volume_type="gp3", volume_size=_DISK, tags=self._tags(name)
            ),
            # Given to a running server in place, and taken from it.
            iam_instance_profile=machine.adds_to.profile if machine.adds_to else None,
            disable_api_termination=machine.protect,
            region=self._region,
            tags=self._tags(name),
            opts=pulumi.ResourceOptions(
                parent=parent,
                depends_on=before,
                protect=machine.protect,
                # A newer image would replace the server with all that is on it, and new user data would stop it
                # without being read. Later changes go over SSH.
                ignore_changes=["ami", "userDataBase64"],
                # Two can't have one interface.
                delete_before_replace=True,
            ),
        )
        return Provisioned(instance, outward.public_ip if machine.public else None, outward.public_ip)

    def _private_subnet(self, name: str) -> _Private:
        if self._private is None:
            raise ValueError(f"{name}: there is no private subnet elsewhere")
        return self._private

    def _rules(
        self,
        name: str,
        rules: Sequence[CloudRule],
        guest: Guest | None,
        firewall: SecurityGroup,
        opts: pulumi.ResourceOptions,
    ) -> Iterator[pulumi.Resource]:
        """One resource for each port and source: changing one touches no other."""
        for rule in rules:
            for source in rule.sources_v4:
                yield self._inbound(name, rule, firewall, opts, v4=source)
            for source in rule.sources_v6:
                yield self._inbound(name, rule, firewall, opts, v6=source)
        if guest:
            yield SecurityGroupIngressRule(
                f"{name}-in-tcp-{guest.port}-guest",
                security_group_id=firewall.id,
                ip_protocol="tcp",
                from_port=guest.port,
                to_port=guest.port,
                cidr_ipv4=pulumi.Output.concat(guest.address, "/32"),
                description=guest.why,
                region=self._region,
                opts=opts,
            )
        # Without these nothing goes out: AWS's own rule for that is taken away from groups that Pulumi makes.
        for family, v4, v6 in (("v4", "0.0.0.0/0", None), ("v6", None, "::/0")):
            yield SecurityGroupEgressRule(
                f"{name}-out-{family}",
                security_group_id=firewall.id,
                ip_protocol="-1",
                cidr_ipv4=v4,
                cidr_ipv6=v6,
                description="Everything may go out",
                region=self._region,
                opts=opts,
            )

    def _inbound(
        self,
        name: str,
        rule: CloudRule,
        firewall: SecurityGroup,
        opts: pulumi.ResourceOptions,
        *,
        v4: str | None = None,
        v6: str | None = None,
    ) -> pulumi.Resource:
        # Two colons would end the name in Pulumi's eyes.
        source = str(v4 or v6).replace(":", "_")
        return SecurityGroupIngressRule(
            f"{name}-in-{rule.label}-{source}",
            security_group_id=firewall.id,
            ip_protocol=rule.protocol,
            from_port=rule.port,
            to_port=rule.last_port,
            cidr_ipv4=v4,
            cidr_ipv6=v6,
            description=rule.description,
            region=self._region,
            opts=opts,
        )

    def _lead_out(self, internet: InternetGateway) -> list[pulumi.Resource]:
        """The public subnet's routes, in and out."""
        table = self._route_table("public")
        v4 = Route(
            f"{self._name}-public-route-v4",
            route_table_id=table.id,
            destination_cidr_block="0.0.0.0/0",
            gateway_id=internet.id,
            region=self._region,
            opts=self._child,
        )
        v6 = Route(
            f"{self._name}-public-route-v6",
            route_table_id=table.id,
            destination_ipv6_cidr_block="::/0",
            gateway_id=internet.id,
            region=self._region,
            opts=self._child,
        )
        return [v4, v6, self._associated("public", table, self._public)]

    def _translated(self, internet: InternetGateway, cidr: IPv4Network) -> _Private:
        """The private subnet, and its way out, by which nobody comes in."""
        subnet = Subnet(
            f"{self._name}-private-subnet",
            vpc_id=self._vpc.id,
            cidr_block=str(cidr),
            availability_zone=self._public.availability_zone,
            region=self._region,
            tags=self._tags("private"),
            opts=self._child,
        )
        address = Eip(
            f"{self._name}-nat-address",
            domain="vpc",
            region=self._region,
            tags=self._tags("nat"),
            # AWS maps an address only where there is a gateway, and Pulumi can't see that.
            opts=pulumi.ResourceOptions(parent=self, depends_on=[internet]),
        )
        gateway = NatGateway(
            f"{self._name}-nat-gateway",
            allocation_id=address.allocation_id,
            subnet_id=self._public.id,
            region=self._region,
            tags=self._tags("nat"),
            opts=pulumi.ResourceOptions(parent=self, depends_on=self._public_way_out),
        )
        table = self._route_table("private")
        v4 = Route(
            f"{self._name}-private-route-v4",
            route_table_id=table.id,
            destination_cidr_block="0.0.0.0/0",
            nat_gateway_id=gateway.id,
            region=self._region,
            opts=self._child,
        )
        return _Private(subnet, [v4, self._associated("private", table, subnet)], address)

    def _route_table(self, which: str) -> RouteTable:
        return RouteTable(
            f"{self._name}-{which}-routes",
            vpc_id=self._vpc.id,
            region=self._region,
            tags=self._tags(which),
            opts=self._child,
        )

    def _associated(self, which: str, table: RouteTable, subnet: Subnet) -> pulumi.Resource:
        return RouteTableAssociation(
            f"{self._name}-{which}-subnet-routes",
            route_table_id=table.id,
            subnet_id=subnet.id,
            region=self._region,
            opts=self._child,
        )

    def _log_flows(self) -> None:
        """Who talked to whom, kept where no server can change it."""
        log = LogGroup(
            f"{self._name}-flow-log-group",
            name=f"/{PROJECT}/{self._stack}/flows",
            retention_in_days=_FLOW_LOG_DAYS,
            region=self._region,
            tags=self._tags("flows"),
            opts=self._child,
        )
        writer = Role(
            f"{self._name}-flow-log-role",
            # Pulumi adds letters, so that it is unique in the account.
            description="Lets the VPC write its flow log",
            assume_role_policy=_policy("sts:AssumeRole", Principal={"Service": "vpc-flow-logs.amazonaws.com"}),
            tags=self._tags("flows"),
            opts=self._child,
        )
        RolePolicy(
            f"{self._name}-flow-log-policy",
            role=writer.name,
            policy=log.arn.apply(
                lambda arn: _policy(
                    "logs:CreateLogStream",
                    "logs:DescribeLogStreams",
                    "logs:PutLogEvents",
                    Resource=f"{arn}:*",
                )
            ),
            opts=self._child,
        )
        FlowLog(
            f"{self._name}-flow-log",
            vpc_id=self._vpc.id,
            traffic_type="ALL",
            log_destination_type="cloud-watch-logs",
            log_destination=log.arn,
            iam_role_arn=writer.arn,
            region=self._region,
            tags=self._tags("flows"),
            opts=self._child,
        )

    def _label(self, name: str) -> str:
        return f"{self._stack}-{name}"

    def _tags(self, name: str) -> dict[str, str]:
        return {"Name": self._label(name), "Project": PROJECT, "Stack": self._stack}


def _newest(parameter: str, region: str, parent: pulumi.Resource) -> pulumi.Output[str]:
    """The newest image, as its maker publishes it. Later ones change nothing: servers ignore them."""
    opts = pulumi.InvokeOutputOptions(parent=parent)
    return get_parameter_output(name=parameter, region=region, opts=opts).insecure_value


def _first_64(block: str) -> str:
    """A subnet has exactly this size."""
    return str(next(IPv6Network(block).subnets(new_prefix=64)))


def _policy(*actions: str, **statement: object) -> str:
    return json.dumps(
        {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": list(actions), **statement}]}
    )
