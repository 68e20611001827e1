"""A bad and a good program for each policy: other people's stacks, which know nothing of our components."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from tests.policies.support import Made

Props = Mapping[str, Any]

# Shaped as keys are, and nobody's.
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ"
# The first bytes alone, which say that it has no passphrase; put together here, so that no scanner takes it for a key.
_LINE = "-----{} OPENSSH PRIVATE {}-----"
PRIVATE_KEY = f"{_LINE.format('BEGIN', 'KEY')}\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAE\n{_LINE.format('END', 'KEY')}\n"
SHA512 = "$6$saltsaltsaltsalt$" + "a" * 86


def rsa_key(bits: int) -> str:
    """A public key of this length, as ssh writes it."""
    fields = [b"ssh-rsa", (65537).to_bytes(3, "big"), b"\0" + (1 << (bits - 1)).to_bytes(bits // 8, "big")]
    return "ssh-rsa " + base64.b64encode(b"".join(len(one).to_bytes(4, "big") + one for one in fields)).decode()


@dataclass(frozen=True)
class Example:
    """Stacks that break a rule, stacks that keep it, and a configuration with which the first bad one keeps it."""

    bad: list[list[Made]]
    good: list[list[Made]]
    lenient: Props = field(default_factory=dict)


def cloud_config(document: Props) -> str:
    return "#cloud-config\n" + yaml.safe_dump(document)


def files(**contents: str) -> list[dict[str, str]]:
    names = {
        "sshd": "/etc/ssh/sshd_config.d/00-own.conf",
        "v4": "/etc/iptables/rules.v4",
        "v6": "/etc/iptables/rules.v6",
        "mysql": "/etc/mysql/mysql.conf.d/own.cnf",
        "apt": "/etc/apt/apt.conf.d/20auto",
        "pwquality": "/etc/security/pwquality.conf",
        "journald": "/etc/systemd/journald.conf.d/own.conf",
        "key": "/etc/ssh/bootstrap_host_key",
        "script": "/usr/local/sbin/own",
    }
    return [{"path": names[name], "content": content} for name, content in contents.items()]


def linode(name: str = "web", user_data: str | Props | None = None, **props: Any) -> Made:  # noqa: ANN401 - JSON
    """A Linode, made behind a firewall unless it says otherwise."""
    given: dict[str, Any] = {"firewallId": 7, **props}
    if user_data is not None:
        text = user_data if isinstance(user_data, str) else cloud_config(user_data)
        given["metadatas"] = [{"userData": base64.b64encode(text.encode()).decode()}]
    return Made("linode:index/instance:Instance", name, {k: v for k, v in given.items() if v is not None})


def linked(one: Made, **links: str) -> Made:
    return Made(
        one.type,
        one.name,
        one.props,
        {key: (name,) for key, name in links.items()},
        one.protect,
        one.ignored,
        one.parent,
    )


def options(one: Made, *, protect: bool = False, ignored: tuple[str, ...] = ()) -> Made:
    return Made(one.type, one.name, one.props, one.links, protect, ignored, one.parent)


def ec2(name: str = "web", user_data: str | None = None, **props: Any) -> Made:  # noqa: ANN401 - JSON
    given = {"vpcSecurityGroupIds": ["sg-1"], **props} | ({"userData": user_data} if user_data else {})
    return Made("aws:ec2/instance:Instance", name, {k: v for k, v in given.items() if v is not None})


def aws(kind: str, name: str, links: Mapping[str, str] | None = None, /, **props: Any) -> Made:  # noqa: ANN401 - JSON
    module, _, resource = kind.partition("/")
    token = f"aws:{module}/{resource[0].lower()}{resource[1:]}:{resource}"
    return Made(token, name, props, {key: (other,) for key, other in (links or {}).items()})


def linode_resource(kind: str, name: str, **props: Any) -> Made:  # noqa: ANN401 - JSON
    """A resource of Linode's."""
    return Made(f"linode:index/{kind[0].lower()}{kind[1:]}:{kind}", name, props)


def firewall(*rules: Props, policy: str = "DROP", name: str = "firewall", **props: Any) -> Made:  # noqa: ANN401 - JSON
    return linode_resource(
        "Firewall", name, inbounds=list(rules), inboundPolicy=policy, outboundPolicy="ACCEPT", **props
    )


def inbound(ports: str | None, v4: str | None = None, v6: str | None = None, protocol: str = "TCP") -> Props:
    found: dict[str, Any] = {"action": "ACCEPT", "protocol": protocol, "label": "rule"}
    found |= {"ports": ports} if ports else {}
    return found | ({"ipv4s": [v4]} if v4 else {}) | ({"ipv6s": [v6]} if v6 else {})


def ingress(port: int, last: int | None = None, name: str = "ingress", **source: Any) -> Made:  # noqa: ANN401 - JSON
    return aws(
        "vpc/SecurityGroupIngressRule",
        name,
        {"securityGroupId": "group"},
        ipProtocol="tcp",
        fromPort=port,
        toPort=last or port,
        **source,
    )


def command(name: str = "setup", connection: Props | None = None, **props: Any) -> Made:  # noqa: ANN401 - JSON
    wanted = {"host": "203.0.113.5", "user": "deploy", "hostKey": "ssh-ed25519 AAAA", **(connection or {})}
    return Made("command:remote:Command", name, {"create": "true", **props, "connection": wanted})


def by_interface(name: str, **props: Any) -> list[Made]:  # noqa: ANN401 - JSON
    """An instance whose firewall and addresses belong to a network interface of its own."""
    nic = Made("aws:ec2/networkInterface:NetworkInterface", "nic", props)
    one = ec2(name, vpcSecurityGroupIds=None, primaryNetworkInterface={"networkInterfaceId": "eni-1"})
    return [nic, linked(one, primaryNetworkInterface="nic")]


def policy_document(**statement: Any) -> str:  # noqa: ANN401 - JSON
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement}]})


WORLD4, WORLD6, OFFICE, PRIVATE = "0.0.0.0/0", "::/0", "198.51.100.7/32", "10.20.0.11/32"

SSHD = (
    "PasswordAuthentication no\nPermitRootLogin no\nAllowGroups people\n"
    "AuthenticationMethods publickey,keyboard-interactive:pam\n"
)
RULES = "*filter\n:INPUT {policy} [0:0]\n:TCP - [0:0]\n{accepted}-A INPUT -p tcp --syn -j TCP\nCOMMIT\n"
REDIRECT = "*nat\n-A PREROUTING -p tcp --dport 80 -j REDIRECT --to-port 3000\nCOMMIT\n"


def host_rules(*accepted: str, policy: str = "DROP", nat: str = "") -> str:
    lines = "".join(f"-A TCP -p tcp {one} -j ACCEPT\n" for one in accepted)
    return RULES.format(policy=policy, accepted=lines) + nat


SAFE = {
    "packages": ["unattended-upgrades", "libpam-pwquality"],
    "write_files": files(
        sshd=SSHD,
        v4=host_rules(),
        v6=host_rules(),
        pwquality="minlen = 10\n",
        journald="[Journal]\nStorage=persistent\n",
    ),
    "users": [{"name": "alice", "hashed_passwd": SHA512, "ssh_authorized_keys": [f"{KEY} alice"]}],
}


def told(**changes: Any) -> Props:  # noqa: ANN401 - cloud-init's own document
    """A safe server's cloud-config, with some of it changed."""
    return SAFE | changes


def with_files(**contents: str) -> Props:
    changed = {one["path"]: one for one in [*files(sshd=SSHD, v4=host_rules(), v6=host_rules()), *files(**contents)]}
    return told(write_files=list(changed.values()))


def both(bad: Props | str, good: Props | str = SAFE, name: str = "web") -> Example:
    """A rule on user data, which is the same on both clouds."""
    texts = [text if isinstance(text, str) else cloud_config(text) for text in (bad, good)]
    return Example(
        [[linode(name, texts[0])], [ec2(name, texts[0])]], [[linode(name, texts[1])], [ec2(name, texts[1])], [linode()]]
    )


def open_port(port: int, *, lenient: Props | None = None) -> Example:
    """A rule on a port that is open to everyone, in each shape that clouds know."""
    inline = {"protocol": "tcp", "fromPort": port, "toPort": port}
    return Example(
        bad=[
            [firewall(inbound(str(port), WORLD4))],
            [firewall(inbound(f"1-{port},8080", None, WORLD6))],
            [firewall(inbound(str(port), OFFICE), inbound(str(port), "128.0.0.0/1"))],
            [firewall(policy="ACCEPT")],
            [aws("ec2/SecurityGroup", "group", ingress=[inline | {"cidrBlocks": [WORLD4]}])],
            [aws("ec2/SecurityGroup", "group", ingress=[inline | {"protocol": "-1", "ipv6CidrBlocks": [WORLD6]}])],
            [aws("ec2/SecurityGroupRule", "rule", type="ingress", cidrBlocks=[WORLD4], **inline)],
            [ingress(port, cidrIpv6=WORLD6)],
        ],
        good=[
            [firewall(inbound(str(port), PRIVATE), inbound("443", WORLD4, WORLD6))],
            [
                aws(
                    "ec2/SecurityGroup",
                    "group",
                    ingress=[inline | {"cidrBlocks": [OFFICE], "securityGroups": ["sg-2"]}],
                )
            ],
            [aws("ec2/SecurityGroupRule", "rule", type="egress", cidrBlocks=[WORLD4], **inline)],
            [ingress(port, referencedSecurityGroupId="sg-2")],
        ],
        lenient=lenient or {"ports": [9]},
    )


def bucket(*others: Made) -> list[Made]:
    return [aws("s3/Bucket", "files"), *others]


def backup_bucket(*others: Made, **changes: bool) -> list[Made]:
    return [aws("s3/Bucket", "nightly-Backups", **{"objectLockEnabled": True, **changes}), *others]


VERSIONS = aws(
    "s3/BucketVersioning",
    "versions",
    {"bucket": "nightly-Backups"},
    versioningConfiguration={"status": "Enabled"},
)


def locked(**retention: int) -> Made:
    rule = {"defaultRetention": {"mode": "GOVERNANCE", **retention}}
    return aws("s3/BucketObjectLockConfiguration", "lock", {"bucket": "nightly-Backups"}, rule=rule)


def of_server(policy: str, /, **links: str) -> list[Made]:
    """A policy of a server's role."""
    profile = aws("iam/InstanceProfile", "profile", {"role": "writer"})
    rights = aws("iam/RolePolicy", "rights", {"role": "writer", **links}, policy=policy)
    return [*backup_bucket(), aws("iam/Role", "writer"), profile, rights]


def blocked(**changes: bool) -> Made:
    names = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
    return aws("s3/BucketPublicAccessBlock", "block", {"bucket": "files"}, **dict.fromkeys(names, True) | changes)


def behind(rules: list[Props], user_data: Props, name: str = "web") -> list[Made]:
    return [firewall(*rules), linked(linode(name, user_data), firewallId="firewall")]


def hardened(server: list[Made], *accepted: str) -> list[Made]:
    """As one component, which also tells its server which connections its own firewall accepts (v4)."""
    component = Made("own:Server", "component")
    script = f"cat > /etc/iptables/rules.v4 <<'END'\n{host_rules(*accepted)}END"
    return [component, *(replace(one, parent="component") for one in (*server, command(create=script)))]


LEAST_PRIVILEGE = {
    "firewall-opens-many-ports": Example(
        bad=[
            [firewall(inbound("1024-65535", OFFICE))],
            [firewall(inbound(None, OFFICE))],
            [ingress(1, 1000, cidrIpv4=OFFICE)],
            [
                aws(
                    "ec2/SecurityGroup",
                    "group",
                    ingress=[{"protocol": "-1", "fromPort": 0, "toPort": 0, "cidrBlocks": [OFFICE]}],
                )
            ],
        ],
        good=[
            [firewall(inbound("80,443,60000-60010", OFFICE), inbound(None, OFFICE, protocol="ICMP"))],
            [ingress(22, cidrIpv4=OFFICE)],
        ],
        lenient={"maxPorts": 65536},
    ),
    "sudo-without-password": Example(
        bad=[
            [linode("web", told(users=[{"name": "alice", "sudo": "ALL=(ALL) NOPASSWD:ALL"}]))],
            [ec2("web", "#!/bin/sh\necho 'deploy ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/deploy\n")],
            [command(create="echo 'Defaults:deploy !authenticate' | sudo tee /etc/sudoers.d/deploy")],
        ],
        good=[
            [linode("web", told(users=[{"name": "alice", "sudo": "ALL=(ALL) ALL"}]))],
            [ec2("web", "#!/bin/sh\n# nobody has NOPASSWD: here\nsed -i 's/NOPASSWD://' /etc/sudoers\n")],
        ],
    ),
    "remote-command-as-root": Example(
        bad=[[command(connection={"user": "root"})], [command(connection={"proxy": {"host": "203.0.113.9"}})]],
        good=[[command()], [command(connection={"proxy": {"host": "203.0.113.9", "user": "deploy"}})]],
    ),
    "database-account-with-all-rights": Example(
        bad=[
            [command(stdin="mysql -e \"GRANT ALL PRIVILEGES ON *.* TO 'app'@'10.0.0.1'\"")],
            [ec2("db", '#!/bin/sh\nmysql -e "GRANT SELECT ON a.* TO app@10.0.0.1 WITH GRANT OPTION;"\n')],
        ],
        good=[
            [command(stdin="GRANT SELECT, INSERT ON a.* TO 'app'@'10.0.0.1';")],
            [command(stdin="GRANT ALL PRIVILEGES ON *.* TO 'root'@'localhost' WITH GRANT OPTION;")],
        ],
    ),
    "database-account-from-anywhere": Example(
        bad=[[command(stdin="CREATE USER 'app'@'%' IDENTIFIED BY ...")]],
        good=[[command(stdin="CREATE USER 'app'@'10.0.0.1' IDENTIFIED BY ...")]],
    ),
    "iam-policy-with-wildcard": Example(
        bad=[
            [aws("iam/Policy", "all", policy=policy_document(Action="*", Resource="*"))],
            [aws("iam/RolePolicy", "all", policy=policy_document(NotAction="iam:*", Resource="*"))],
        ],
        good=[[aws("iam/Policy", "put", policy=policy_document(Action=["s3:PutObject"], Resource="arn:aws:s3:::b/*"))]],
    ),
    "server-does-more-than-add-backups": Example(
        bad=[
            of_server(policy_document(Action="s3:*", Resource="arn:aws:s3:::x/*"), policy="nightly-Backups"),
            of_server(policy_document(Action=["s3:PutObject", "s3:GetObject"], Resource="arn:aws:s3:::my-backups/*")),
            of_server(policy_document(Action=["*"], Resource=["arn:aws:s3:::my-backups"])),
        ],
        good=[
            of_server(policy_document(Action="s3:PutObject", Resource="arn:aws:s3:::x/*"), policy="nightly-Backups"),
            of_server(policy_document(Action="s3:GetObject", Resource="arn:aws:s3:::releases/*")),
            of_server(policy_document(Action="logs:PutLogEvents", Resource="*"), policy="nightly-Backups"),
            # A person's, or another service's.
            [
                aws("iam/Role", "reader"),
                aws(
                    "iam/RolePolicy",
                    "rights",
                    {"role": "reader"},
                    policy=policy_document(Action="s3:GetObject", Resource="arn:aws:s3:::my-backups/*"),
                ),
            ],
        ],
        lenient={"backupBuckets": "^nothing$"},
    ),
    "iam-administrator-rights": Example(
        bad=[[aws("iam/RolePolicyAttachment", "admin", policyArn="arn:aws:iam::aws:policy/AdministratorAccess")]],
        good=[
            [aws("iam/RolePolicyAttachment", "logs", policyArn="arn:aws:iam::aws:policy/CloudWatchAgentServerPolicy")]
        ],
        lenient={"policies": []},
    ),
    "linode-token-with-all-scopes": Example(
        bad=[
            [linode_resource("Token", "ci", scopes="*", expiry="2030-01-01T00:00:00Z")],
            [linode_resource("Token", "ci", scopes="linodes:read_only")],
        ],
        good=[[linode_resource("Token", "ci", scopes="linodes:read_only", expiry="2030-01-01T00:00:00Z")]],
    ),
    "object-storage-key-for-every-bucket": Example(
        bad=[[linode_resource("ObjectStorageKey", "key", label="key")]],
        good=[
            [
                linode_resource(
                    "ObjectStorageKey", "key", bucketAccesses=[{"bucketName": "b", "permissions": "read_only"}]
                )
            ]
        ],
    ),
}

PREVENT_DIRECT_ACCESS = {
    "database-port-open-to-world": open_port(3306),
    "ssh-open-to-world": open_port(22),
    "management-port-open-to-world": open_port(2375),
    "inbound-default-accept": Example([[firewall(policy="ACCEPT")]], [[firewall()]]),
    "firewall-disabled": Example([[firewall(disabled=True)]], [[firewall(disabled=False)], [firewall()]]),
    "ipv6-wider-than-ipv4": Example(
        bad=[
            [firewall(inbound("8443", OFFICE, WORLD6))],
            [
                aws(
                    "ec2/SecurityGroup",
                    "g",
                    ingress=[{"protocol": "tcp", "fromPort": 80, "toPort": 80, "ipv6CidrBlocks": [WORLD6]}],
                )
            ],
        ],
        good=[[firewall(inbound("443", WORLD4, WORLD6), inbound("22", OFFICE, "2001:db8:1::/64"))]],
    ),
    "server-without-firewall": Example(
        bad=[
            [linode(firewallId=None)],
            [linode(firewallId=None, linodeInterfaces=[{"public": {}}])],
            [ec2(vpcSecurityGroupIds=None)],
            by_interface("web"),
        ],
        good=[
            [linode()],
            [linode(firewallId=None, linodeInterfaces=[{"firewallId": 7}])],
            [ec2()],
            by_interface("web", securityGroups=["sg-1"]),
        ],
    ),
    "firewall-after-boot": Example(
        bad=[
            [linode(firewallId=None), linked(firewall(linodes=[1]), linodes="web")],
            [
                linode(firewallId=None),
                firewall(),
                linked(
                    linode_resource("FirewallDevice", "device", entityId=1, firewallId=7),
                    entityId="web",
                    firewallId="firewall",
                ),
            ],
            [
                *by_interface("web"),
                aws("ec2/NetworkInterfaceSecurityGroupAttachment", "late", {"networkInterfaceId": "nic"}),
            ],
        ],
        good=[[firewall(), linked(linode(), firewallId="firewall")]],
    ),
    "host-firewall-missing": both(
        told(write_files=files(sshd=SSHD)), "#!/bin/sh\nufw default deny incoming\nufw --force enable\n"
    ),
    "host-firewall-accepts-by-default": both(
        with_files(v6=host_rules(policy="ACCEPT")),
        "#!/bin/sh\niptables -P INPUT DROP\nip6tables -P INPUT DROP\niptables -A INPUT -p tcp --dport 22 -j ACCEPT\n",
    ),
    "host-firewall-leaves-ipv6-open": both(told(write_files=files(v4=host_rules()))),
    "cloud-and-host-firewall-differ": Example(
        bad=[
            behind(
                [inbound("22", OFFICE), inbound("8080", WORLD4)], with_files(v4=host_rules(f"--dport 22 -s {OFFICE}"))
            ),
            behind([inbound("22", OFFICE)], with_files(v4=host_rules("--dport 22"))),
            behind([inbound("22", OFFICE)], with_files(v4=host_rules(f"--dport 22 -s {OFFICE}", "--dport 3306"))),
            # What it is made with agrees, and what it is told later doesn't.
            hardened(
                behind([inbound("22", OFFICE)], with_files(v4=host_rules(f"--dport 22 -s {OFFICE}"))), "--dport 22"
            ),
            # A command for another server says nothing about this one.
            [
                *behind([inbound("22", OFFICE)], with_files(v4=host_rules("--dport 22"))),
                *hardened([linode("other")], f"--dport 22 -s {OFFICE}"),
            ],
        ],
        good=[
            # A source was added since it was made.
            hardened(behind([inbound("22", OFFICE)], with_files(v4=host_rules())), f"--dport 22 -s {OFFICE}"),
            behind(
                [inbound("22", OFFICE), inbound("80", WORLD4, WORLD6)],
                with_files(
                    v4=host_rules(f"--dport 22 -s {OFFICE}", "--dport 3000", nat=REDIRECT),
                    v6=host_rules("--dport 3000", nat=REDIRECT),
                ),
            ),
            [
                aws("ec2/SecurityGroup", "group"),
                ingress(5432, referencedSecurityGroupId="sg-9"),
                linked(
                    ec2("db", cloud_config(with_files(v4=host_rules(f"--dport 5432 -s {PRIVATE}")))),
                    vpcSecurityGroupIds="group",
                ),
            ],
        ],
    ),
    "database-server-reachable": Example(
        bad=[
            behind([inbound("22", OFFICE)], SAFE, "users-db"),
            behind([inbound("8080", WORLD4)], told(packages=["mariadb-server"]), "web"),
            [
                aws("ec2/SecurityGroup", "group"),
                ingress(5432, cidrIpv4=OFFICE),
                linked(ec2("store", tags={"Name": "postgres"}), vpcSecurityGroupIds="group"),
            ],
        ],
        good=[
            behind([inbound("22", PRIVATE), inbound("3306", PRIVATE)], SAFE, "users-db"),
            behind([inbound("22", OFFICE)], SAFE, "sandbox"),
            behind([inbound("22", OFFICE)], told(packages=["mariadb-client"]), "web"),
        ],
        lenient={"databaseServers": "^nothing$"},
    ),
    "database-server-with-public-address": Example(
        bad=[
            [ec2("db", associatePublicIpAddress=True)],
            [aws("ec2/Subnet", "net", mapPublicIpOnLaunch=True), linked(ec2("db"), subnetId="net")],
            [ec2("db"), aws("ec2/Eip", "ip", {"instance": "db"}, domain="vpc")],
            [*by_interface("db"), aws("ec2/Eip", "ip", {"networkInterface": "nic"}, domain="vpc")],
        ],
        good=[
            [ec2("db", associatePublicIpAddress=False)],
            [aws("ec2/Subnet", "net", mapPublicIpOnLaunch=False), linked(ec2("db"), subnetId="net")],
            [ec2("web", associatePublicIpAddress=True)],
        ],
        lenient={"databaseServers": "^nothing$"},
    ),
    "managed-database-public": Example(
        bad=[
            [aws("rds/Instance", "users", publiclyAccessible=True)],
            [linode_resource("DatabaseMysqlV2", "users", allowLists=[PRIVATE, WORLD4])],
        ],
        good=[
            [aws("rds/Instance", "users", publiclyAccessible=False)],
            [linode_resource("DatabaseMysqlV2", "users", allowLists=[PRIVATE])],
        ],
    ),
    "default-security-group-with-rules": Example(
        [[aws("ec2/DefaultSecurityGroup", "default", egress=[{"protocol": "-1"}])]],
        [[aws("ec2/DefaultSecurityGroup", "default")], [aws("ec2/DefaultSecurityGroup", "default", ingress=[])]],
    ),
    "default-security-group-left-open": Example(
        [[aws("ec2/Vpc", "vpc")]],
        [[aws("ec2/Vpc", "vpc"), aws("ec2/DefaultSecurityGroup", "default", {"vpcId": "vpc"})]],
    ),
    "imds-v1": Example(
        bad=[[ec2()], [ec2(metadataOptions={"httpTokens": "optional"})], [aws("ec2/LaunchTemplate", "template")]],
        good=[[ec2(metadataOptions={"httpTokens": "required"})], [ec2(metadataOptions={"httpEndpoint": "disabled"})]],
    ),
    "imds-hop-limit": Example(
        bad=[[ec2(metadataOptions={"httpPutResponseHopLimit": 2})]],
        good=[[ec2(metadataOptions={"httpPutResponseHopLimit": 1})], [ec2()]],
        lenient={"maxHops": 2},
    ),
    "bucket-public-acl": Example(
        bad=[
            [aws("s3/Bucket", "files", acl="public-read")],
            [aws("s3/BucketAcl", "acl", acl="public-read-write")],
            [linode_resource("ObjectStorageBucket", "files", acl="authenticated-read")],
        ],
        good=[[aws("s3/Bucket", "files", acl="private")], [linode_resource("ObjectStorageBucket", "files")]],
    ),
    "bucket-public-policy": Example(
        bad=[
            [aws("s3/BucketPolicy", "policy", policy=policy_document(Principal="*", Action="s3:GetObject"))],
            [aws("s3/BucketPolicy", "policy", policy=policy_document(Principal={"AWS": "*"}, Action="s3:GetObject"))],
        ],
        good=[
            [aws("s3/BucketPolicy", "policy", policy=policy_document(Principal={"AWS": "1"}, Action="s3:GetObject"))]
        ],
    ),
    "bucket-public-access-not-blocked": Example(
        [bucket(), bucket(blocked(blockPublicPolicy=False))], [bucket(blocked())]
    ),
    "snapshot-shared": Example(
        [[aws("ec2/AmiLaunchPermission", "all", group="all")]],
        [[aws("ec2/AmiLaunchPermission", "partner", accountId="123456789012")]],
    ),
    "shared-private-network": Example([[linode(privateIp=True)]], [[linode()]]),
}

AUTOMATE_CHECKS = {
    "no-security-updates": both(
        told(packages=["nginx"]), "#!/bin/sh\napt-get install -y unattended-upgrades\nufw --force enable\n"
    ),
    "image-past-end-of-life": Example(
        bad=[[linode(image="linode/ubuntu18.04")]],
        good=[[linode(image="linode/debian13")], [linode(image="private/1234")]],
        lenient={"days": -100000},
    ),
    "database-server-not-protected": Example(
        bad=[[linode("db-1")], [aws("rds/Instance", "users")]],
        good=[
            [options(linode("db-1"), protect=True)],
            [linode("web")],
            [options(aws("rds/Instance", "users"), protect=True)],
        ],
        lenient={"databaseServers": "^nothing$"},
    ),
    "database-replaced-by-user-data": Example(
        bad=[[linode("db-1", SAFE)], [ec2("db-1", userDataReplaceOnChange=True)]],
        good=[[options(linode("db-1", SAFE), ignored=("metadatas",))], [ec2("db-1")]],
        lenient={"databaseServers": "^nothing$"},
    ),
    "database-server-without-backups": Example(
        bad=[
            [linode("db-1")],
            [ec2("mysql")],
            [linode("db-1"), command("web-backup")],
            [linode("db-1"), command("db-10-backup")],
        ],
        good=[
            [linode("db-1", backupsEnabled=True)],
            [linode("db-1"), command("db-1-backup")],
            [ec2("mysql"), aws("backup/Selection", "daily", {"planId": "plan"})],
            [ec2("mysql", "#!/bin/sh\necho '1 0 * * * root pg_dump users | age -r age1... ' > /etc/cron.d/dump\n")],
            [linode("web")],
        ],
        lenient={"databaseServers": "^nothing$"},
    ),
    "managed-database-without-backups": Example(
        [[aws("rds/Instance", "users", backupRetentionPeriod=1)], [aws("rds/Cluster", "users")]],
        [[aws("rds/Instance", "users", backupRetentionPeriod=14)]],
        {"days": 1},
    ),
    "managed-database-deletion-protection": Example(
        [[aws("rds/Instance", "users")]], [[aws("rds/Instance", "users", deletionProtection=True)]]
    ),
    "password-rules-missing": both(told(write_files=files(sshd=SSHD))),
    "bucket-without-versions": Example(
        [bucket(), [linode_resource("ObjectStorageBucket", "files")]],
        [
            bucket(aws("s3/BucketVersioning", "versions", {"bucket": "files"})),
            [linode_resource("ObjectStorageBucket", "f", versioning=True)],
        ],
    ),
    "backup-bucket-without-lock": Example(
        bad=[
            backup_bucket(),
            backup_bucket(VERSIONS),
            backup_bucket(locked(days=35)),
            backup_bucket(VERSIONS, locked(days=6)),
            backup_bucket(VERSIONS, locked(days=35), objectLockEnabled=False),
            backup_bucket(
                replace(VERSIONS, props={"versioningConfiguration": {"status": "Suspended"}}), locked(days=35)
            ),
        ],
        good=[
            backup_bucket(VERSIONS, locked(days=35)),
            backup_bucket(VERSIONS, locked(years=1)),
            # What is in it, its name says.
            bucket(),
        ],
        lenient={"backupBuckets": "^nothing$", "days": 1},
    ),
}

NOTIFY = {
    "server-without-alerts": Example(
        bad=[[linode()], [ec2()], [linode(), command("db-monit")], [linode("web", told(packages=["monit"]))]],
        good=[
            [linode(), command("web-monit")],
            [linode("web", told(packages=["monit"], runcmd=["systemctl enable --now monit"]))],
            [linode("web", told(write_files=[{"path": "/etc/monit/conf.d/sshd", "content": "check ..."}]))],
            [ec2(), aws("cloudwatch/MetricAlarm", "cpu")],
        ],
    ),
    "topic-without-subscription": Example(
        [[aws("sns/Topic", "alerts")]],
        [[aws("sns/Topic", "alerts"), aws("sns/TopicSubscription", "mail", {"topic": "alerts"}, protocol="email")]],
    ),
    "alarm-without-action": Example(
        [
            [aws("cloudwatch/MetricAlarm", "cpu")],
            [aws("cloudwatch/MetricAlarm", "cpu", alarmActions=["arn"], actionsEnabled=False)],
        ],
        [[aws("cloudwatch/MetricAlarm", "cpu", alarmActions=["arn"])]],
    ),
    "vpc-without-flow-logs": Example(
        [[aws("ec2/Vpc", "vpc")]],
        [[aws("ec2/Vpc", "vpc"), aws("ec2/FlowLog", "log", {"vpcId": "vpc"}, trafficType="ALL")]],
    ),
    "trail-incomplete": Example(
        bad=[
            [aws("cloudtrail/Trail", "trail", isMultiRegionTrail=True)],
            [aws("cloudtrail/Trail", "t", enableLogging=False)],
        ],
        good=[[aws("cloudtrail/Trail", "trail", isMultiRegionTrail=True, enableLogFileValidation=True)]],
    ),
    "logins-not-logged": both(with_files(sshd=SSHD + "LogLevel QUIET\n"), with_files(sshd=SSHD + "LogLevel VERBOSE\n")),
    "journal-lost-at-reboot": both(told(write_files=[]), "#!/bin/sh\nmkdir -p /var/log/journal\nufw --force enable\n"),
}

IDENTIFY_USERS = {
    "ssh-passwords": Example(
        bad=[
            [linode("web", {"ssh_pwauth": True})],
            [linode("web", with_files(sshd=SSHD.replace("PasswordAuthentication no\n", "")))],
            [
                ec2(
                    "web",
                    "#!/bin/sh\nsed -i 's/^#Pass.*/PasswordAuthentication yes/' /etc/ssh/sshd_config\n",
                )
            ],
            [command(create="sudo tee /etc/ssh/sshd_config.d/00.conf <<EOF\nPasswordAuthentication yes\nEOF")],
        ],
        good=[[linode("web", SAFE)], [linode("web", {"ssh_pwauth": False})], [command()]],
    ),
    "ssh-root-login": Example(
        bad=[
            [linode("web", {"disable_root": False})],
            [linode("web", with_files(sshd=SSHD.replace("PermitRootLogin no", "PermitRootLogin prohibit-password")))],
            [ec2("web", "#!/bin/sh\necho 'PermitRootLogin yes' >> /etc/ssh/sshd_config\n")],
        ],
        good=[[linode("web", SAFE)], [linode("web", {"disable_root": True})]],
    ),
    "ssh-one-factor": both(with_files(sshd=SSHD.replace(",keyboard-interactive:pam", ""))),
    "ssh-anyone": both(with_files(sshd=SSHD.replace("AllowGroups people\n", ""))),
    "root-password": Example(
        bad=[
            [linode(rootPass="x")],
            [linode("web", told(chpasswd={"list": "root:$6$salt$hash"}))],
            [ec2("web", "#!/bin/sh\necho root:$PASSWORD | chpasswd\n")],
            [linode("web", told(users=[{"name": "root", "lock_passwd": False}]))],
        ],
        good=[[linode("web", SAFE)], [ec2()]],
    ),
    "password-in-the-clear": Example(
        bad=[
            [linode("web", told(password="Wombat!Kite8"))],
            [linode("web", told(users=[{"name": "alice", "plain_text_passwd": "Wombat!Kite8"}]))],
            [linode("web", told(users=[{"name": "alice", "passwd": "$1$salt$hash"}]))],
            [linode("web", told(chpasswd={"users": [{"name": "alice", "password": "Wombat!Kite8"}]}))],
            [linode("web", told(chpasswd={"list": "alice:Wombat!Kite8\n"}))],
        ],
        good=[[linode("web", SAFE)], [linode("web", told(chpasswd={"list": "alice:RANDOM\nbob:$6$salt$hash"}))]],
    ),
    "weak-ssh-key": Example(
        bad=[
            [aws("ec2/KeyPair", "key", publicKey=rsa_key(2048))],
            [linode_resource("SshKey", "key", sshKey="ssh-dss AAAAB3NzaC1kc3MAAACBAKL0")],
            [linode(authorizedKeys=[KEY, rsa_key(1024)])],
            [linode("web", told(users=[{"name": "alice", "ssh_authorized_keys": [rsa_key(2048)]}]))],
        ],
        good=[
            [aws("ec2/KeyPair", "key", publicKey=rsa_key(4096))],
            [linode(authorizedKeys=[KEY])],
            [linode("web", SAFE)],
        ],
        lenient={"rsaBits": 2048},
    ),
    "shared-account": Example(
        bad=[[linode("web", told(ssh_authorized_keys=[KEY, OTHER_KEY]))]],
        good=[[linode("web", SAFE)]],
        lenient={"maxKeys": 2},
    ),
    "shared-key": both(
        told(users=[{"name": name, "ssh_authorized_keys": [KEY]} for name in ("alice", "bob")]),
        told(
            users=[{"name": "alice", "ssh_authorized_keys": [KEY]}, {"name": "bob", "ssh_authorized_keys": [OTHER_KEY]}]
        ),
    ),
    "iam-user-shared": Example(
        bad=[
            [
                aws("iam/User", "alice"),
                aws("iam/AccessKey", "key", {"user": "alice"}),
                aws("iam/UserLoginProfile", "login", {"user": "alice"}),
            ]
        ],
        good=[[aws("iam/User", "alice"), aws("iam/UserLoginProfile", "login", {"user": "alice"})]],
    ),
    "iam-access-key": Example([[aws("iam/AccessKey", "key")]], [[aws("iam/User", "alice")]]),
    "iam-password-policy": Example(
        bad=[
            [
                aws(
                    "iam/AccountPasswordPolicy",
                    "rules",
                    minimumPasswordLength=8,
                    requireLowercaseCharacters=True,
                    requireUppercaseCharacters=True,
                    requireNumbers=True,
                    requireSymbols=True,
                )
            ],
            [aws("iam/AccountPasswordPolicy", "rules", minimumPasswordLength=20)],
        ],
        good=[
            [
                aws(
                    "iam/AccountPasswordPolicy",
                    "rules",
                    minimumPasswordLength=14,
                    requireLowercaseCharacters=True,
                    requireUppercaseCharacters=True,
                    requireNumbers=True,
                    requireSymbols=True,
                )
            ]
        ],
        lenient={"length": 8},
    ),
    "remote-command-by-password": Example(
        bad=[[command(connection={"password": "x"})], [command(connection={"proxy": {"user": "a", "password": "x"}})]],
        good=[[command(connection={"privateKey": "x"})]],
    ),
}

ENCRYPT = {
    "remote-command-unpinned": Example(
        bad=[[command(connection={"hostKey": None})], [command(connection={"proxy": {"user": "deploy"}})]],
        good=[[command()]],
    ),
    "database-without-tls": both(
        with_files(mysql="[mysqld]\nbind_address = 10.0.0.5\n"),
        with_files(mysql="[mysqld]\nbind_address = 10.0.0.5\nrequire_secure_transport = ON\n"),
    ),
    "managed-database-without-tls": Example(
        [[aws("rds/ParameterGroup", "own", parameters=[{"name": "rds.force_ssl", "value": "0"}])]],
        [[aws("rds/ParameterGroup", "own", parameters=[{"name": "require_secure_transport", "value": "1"}])]],
    ),
    "load-balancer-without-tls": Example(
        bad=[
            [aws("lb/Listener", "http", protocol="HTTP", defaultActions=[{"type": "forward"}])],
            [linode_resource("NodeBalancerConfig", "http", protocol="http")],
        ],
        good=[
            [aws("lb/Listener", "http", protocol="HTTP", defaultActions=[{"type": "redirect"}])],
            [linode_resource("NodeBalancerConfig", "https", protocol="https")],
        ],
    ),
    "load-balancer-with-old-tls": Example(
        bad=[
            [aws("lb/Listener", "https", protocol="HTTPS", sslPolicy="ELBSecurityPolicy-2016-08")],
            [linode_resource("NodeBalancerConfig", "https", protocol="https", cipherSuite="legacy")],
        ],
        good=[
            [aws("lb/Listener", "https", protocol="HTTPS", sslPolicy="ELBSecurityPolicy-TLS13-1-2-2021-06")],
            [linode_resource("NodeBalancerConfig", "https", protocol="https")],
        ],
        lenient={"policy": "2016"},
    ),
    "clear-text-port-open": Example(
        bad=[[firewall(inbound("23", OFFICE))], [ingress(21, cidrIpv4=PRIVATE)]],
        good=[[firewall(inbound("22", OFFICE))]],
        lenient={"ports": [9]},
    ),
    "weak-ssh-algorithms": both(
        with_files(sshd=SSHD + "Ciphers aes256-gcm@openssh.com,aes128-cbc\n"),
        with_files(
            sshd=SSHD + "Ciphers aes256-gcm@openssh.com\nMACs hmac-sha2-512-etm@openssh.com\nKexAlgorithms -ssh-rsa\n"
        ),
    ),
    "download-without-tls": Example(
        bad=[
            [ec2("web", "#!/bin/sh\ncurl -s http://example.org/install | sh\n")],
            [linode("web", told(runcmd=["wget --no-check-certificate https://example.org/x"]))],
            [command(create="curl -sk https://example.org/x -o x")],
        ],
        good=[[ec2("web", "#!/bin/sh\ncurl -fsS https://example.org/x; curl -s http://169.254.169.254/x\n")]],
    ),
    "disk-not-encrypted": Example(
        bad=[
            [ec2()],
            [ec2(rootBlockDevice={"encrypted": True}, ebsBlockDevices=[{"encrypted": False}])],
            [aws("ebs/Volume", "data")],
            [linode_resource("Volume", "data")],
            [linode(diskEncryption="disabled")],
            [aws("ec2/LaunchTemplate", "template", blockDeviceMappings=[{"ebs": {"volumeSize": 8}}])],
        ],
        good=[
            [ec2(rootBlockDevice={"encrypted": True})],
            [aws("ebs/Volume", "data", encrypted=True)],
            [linode_resource("Volume", "data", encryption="enabled")],
            [linode()],
        ],
    ),
    "snapshot-not-encrypted": Example(
        [[aws("ebs/SnapshotCopy", "copy")], [aws("ec2/AmiCopy", "copy", encrypted=False)]],
        [[aws("ebs/SnapshotCopy", "copy", encrypted=True)]],
    ),
    "managed-database-not-encrypted": Example(
        [[aws("rds/Instance", "users")]], [[aws("rds/Instance", "users", storageEncrypted=True)]]
    ),
    "bucket-not-encrypted": Example(
        [bucket()], [bucket(aws("s3/BucketServerSideEncryptionConfiguration", "key", {"bucket": "files"}))]
    ),
    "bucket-without-tls": Example(
        [bucket()],
        [
            bucket(
                aws(
                    "s3/BucketPolicy",
                    "policy",
                    {"bucket": "files"},
                    policy=json.dumps(
                        {"Statement": [{"Effect": "Deny", "Condition": {"Bool": {"aws:SecureTransport": "false"}}}]}
                    ),
                )
            )
        ],
    ),
}

KEEP_ON_SERVER = {
    "secret-in-user-data": Example(
        bad=[
            [linode("web", with_files(script=PRIVATE_KEY))],
            [ec2("web", "#!/bin/sh\nexport DB_PASSWORD=Wombat!Kite8\n")],
            [ec2("web", "#!/bin/sh\naws configure set aws_access_key_id AKIA" + "ABCDEFGHIJKLMNOP\n")],
            [linode("web", {"ssh_keys": {"ed25519_public": KEY}})],
            [ec2("web", "#!/bin/sh\ngit clone https://me:Wombat8@example.org/x\n")],
        ],
        good=[
            [linode("web", SAFE)],
            [linode("web", with_files(key=PRIVATE_KEY))],
            [ec2("web", '#!/bin/sh\npassword=$(cat /run/secret)\nmysql --password="$password"\n')],
        ],
        lenient={"hostKeys": ["/usr/local/sbin/own"]},
    ),
    "secret-in-tags": Example(
        bad=[
            [linode(tags=["password=Wombat8!Kite"])],
            [ec2(tags={"api_key": "Wombat8!Kite"})],
            [ec2(tags={"note": "ghp_" + "a1" * 18})],
        ],
        good=[[linode(tags=["web", "team-users"])], [ec2(tags={"Name": "web", "token-service": "yes"})]],
    ),
    "secret-in-command": Example(
        bad=[
            [command(create="mysql --password=Wombat8!Kite -e 'SELECT 1'")],
            [Made("command:local:Command", "local", {"create": "true", "delete": "TOKEN='Wombat8Kite' ./remove"})],
            [command(triggers=["password=Wombat8!Kite"])],
        ],
        good=[[command(create="sudo -S -p '' -- ./apply # 0123abcd", stdin="password=Wombat8!Kite")]],
    ),
    "secret-in-environment": Example(
        bad=[[command(environment={"DB_PASSWORD": "x"})], [command(environment={"X": "AKIA" + "ABCDEFGHIJKLMNOP"})]],
        good=[[command(environment={"LANG": "C.UTF-8"})]],
    ),
    "command-output-in-log": Example(
        [[command(stdin="x")], [command(stdin="x", logging="stdout")]],
        [[command(stdin="x", logging="none")], [command()]],
    ),
    "command-output-in-environment": Example(
        [[command(stdin="x")]], [[command(stdin="x", addPreviousOutputInEnv=False)], [command()]]
    ),
    "secret-in-plain-parameter": Example(
        [[aws("ssm/Parameter", "p", name="/users/db-password", type="String", value="x")]],
        [[aws("ssm/Parameter", "p", name="/users/db-password", type="SecureString", value="x")]],
    ),
}

EXAMPLES: dict[str, Example] = {
    **LEAST_PRIVILEGE,
    **PREVENT_DIRECT_ACCESS,
    **AUTOMATE_CHECKS,
    **NOTIFY,
    **IDENTIFY_USERS,
    **ENCRYPT,
    **KEEP_ON_SERVER,
}
