"""Encrypt all communications, and what is stored."""

import re
from collections.abc import Mapping
from typing import Any

from pulumi_policy import EnforcementLevel, PolicyResource, ResourceValidationArgs, Severity

from policies.least_privilege import connections, statements
from policies.policy import Config, Guideline, Option, Resource, Stack, Violations, each, given, mended
from policies.resources import (
    AWS_INSTANCE,
    AWS_LAUNCH_TEMPLATE,
    BUCKETS,
    COMMAND,
    FIREWALLS,
    LINODE_INSTANCE,
    TELL_SERVERS,
    linked,
    openings,
)
from policies.user_data import told

GUIDELINE = Guideline("Encrypt all communications")

_EBS_VOLUME = "aws:ebs/volume:Volume"
_LINODE_VOLUME = "linode:index/volume:Volume"


@GUIDELINE.rule(
    "remote-command-unpinned",
    "Automation knows the server that it talks to, from the first contact on",
    section="3.3",
    severity=Severity.HIGH,
    types=[COMMAND, "command:remote:CopyToRemote"],
    steps="Set connection.hostKey (and proxy.hostKey) to the server's public host key.",
)
def _unpinned(resource: Resource, _config: Config) -> Violations:
    for where, connection in connections(resource):
        if not given(connection, "hostKey"):
            yield f"{where} would trust whoever answers (no hostKey)"


@GUIDELINE.rule(
    "database-without-tls",
    "A database speaks TLS, and nothing else over the network",
    section="3.11.1",
    severity=Severity.HIGH,
    types=TELL_SERVERS,
    steps="Set require_secure_transport = ON (MySQL, MariaDB), or ssl = on with hostssl lines (PostgreSQL).",
)
def _database_tls(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    if data is None:
        return
    for path, text in data.files.items():
        if not re.search(r"/(mysql|mariadb|my\.cnf|postgresql)", path) or not re.search(r"\.(cnf|conf)$", path):
            continue
        if re.search(
            r"(?im)^\s*(skip[-_]ssl\b|ssl\s*=\s*(0|off|false)\b|require[-_]secure[-_]transport\s*=\s*(0|off|false)\b)",
            text,
        ):
            yield f"{path} switches TLS off"
        elif re.search(r"(?im)^\s*bind[-_]address\s*=", text) and not re.search(
            r"(?im)^\s*(require[-_]secure[-_]transport\s*=\s*(1|on|true)|bind[-_]address\s*=\s*(127\.|::1|localhost))",
            text,
        ):
            yield f"{path} listens on the network and doesn't require TLS"


@GUIDELINE.rule(
    "managed-database-without-tls",
    "A managed database refuses connections without TLS",
    section="4.6",
    severity=Severity.HIGH,
    types=["aws:rds/parameterGroup:ParameterGroup", "aws:rds/clusterParameterGroup:ClusterParameterGroup"],
    steps="Set require_secure_transport to 1 (MySQL, MariaDB) or rds.force_ssl to 1 (PostgreSQL).",
)
def _managed_tls(resource: Resource, _config: Config) -> Violations:
    for name, value in each(
        resource.props.get("parameters"), lambda one: (str(one.get("name")), str(one.get("value")).lower())
    ):
        if name in ("require_secure_transport", "rds.force_ssl") and value in ("0", "off"):
            yield f"switches {name} off"


@GUIDELINE.rule(
    "load-balancer-without-tls",
    "Visitors are served over HTTPS, and plain HTTP only sends them there",
    section="4.2",
    severity=Severity.HIGH,
    types=[
        "aws:lb/listener:Listener",
        "aws:alb/listener:Listener",
        "linode:index/nodeBalancerConfig:NodeBalancerConfig",
    ],
    steps="Use HTTPS with a certificate; let the HTTP listener redirect (AWS), or pass TCP on (NodeBalancer).",
)
def _plain_http(resource: Resource, _config: Config) -> Violations:
    if str(resource.props.get("protocol") or "").upper() != "HTTP":
        return
    actions = each(resource.props.get("defaultActions"), lambda action: action.get("type"))
    if not any(kind == "redirect" for kind in actions):
        yield "serves plain HTTP"


@GUIDELINE.rule(
    "load-balancer-with-old-tls",
    "A load balancer speaks TLS 1.2 and 1.3 only",
    section="4.2",
    severity=Severity.MEDIUM,
    types=[
        "aws:lb/listener:Listener",
        "aws:alb/listener:Listener",
        "linode:index/nodeBalancerConfig:NodeBalancerConfig",
    ],
    steps="Set sslPolicy to ELBSecurityPolicy-TLS13-1-2-2021-06 (AWS), or cipherSuite to recommended (Linode).",
    options={"policy": Option(r"TLS13-1-[23]|TLS-1-2|FS-1-2", "Policies of AWS that are allowed (regular expression)")},
)
def _old_tls(resource: Resource, config: Config) -> Violations:
    if str(resource.props.get("protocol") or "").upper() not in ("HTTPS", "TLS"):
        return
    if resource.resource_type.startswith("linode:"):
        if resource.props.get("cipherSuite") == "legacy":
            yield "speaks old TLS (cipherSuite legacy)"
    elif not re.search(config["policy"], policy := str(resource.props.get("sslPolicy") or "the default")):
        yield f"speaks old TLS (sslPolicy: {policy})"


@GUIDELINE.rule(
    "clear-text-port-open",
    "No service that sends passwords in the clear is open",
    section="4.2",
    severity=Severity.HIGH,
    types=FIREWALLS,
    steps="Close the port, and use the protocol's encrypted form (SFTP, IMAPS, LDAPS, SSH).",
    options={"ports": Option([20, 21, 23, 69, 110, 143, 389, 512, 513, 514], "Ports of such services")},
)
def _clear_text(resource: Resource, config: Config) -> Violations:
    for opening in openings(resource):
        for port in config["ports"]:
            if opening.protocol in ("tcp", "udp") and opening.covers(port, opening.protocol) and opening.sources:
                yield f"opens {opening.protocol} {port}"


@GUIDELINE.rule(
    "weak-ssh-algorithms",
    "sshd offers modern algorithms only",
    section="3.5",
    severity=Severity.MEDIUM,
    types=TELL_SERVERS,
    steps="Remove the algorithm from Ciphers, MACs, KexAlgorithms and HostKeyAlgorithms.",
)
def _weak_algorithms(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    settings = (data.sshd() if data else None) or {}
    weak = re.compile(
        r"(?i)3des|arcfour|blowfish|-cbc|hmac-(md5|sha1)(?!-?\d)|group1-|group-exchange-sha1|group14-sha1|^ssh-(rsa|dss)$|^none$"
    )
    for name in ("ciphers", "macs", "kexalgorithms", "hostkeyalgorithms", "pubkeyacceptedalgorithms"):
        # A list that begins with "-" takes away.
        value = settings.get(name, "")
        for algorithm in value.lstrip("+^").split(",") if not value.startswith("-") else ():
            if weak.search(algorithm.strip()):
                yield f"offers {algorithm.strip()}"


@GUIDELINE.rule(
    "download-without-tls",
    "What a server runs wasn't fetched in the clear, or with certificates unchecked",
    section="4.2",
    severity=Severity.HIGH,
    types=TELL_SERVERS,
    steps="Fetch over https and check a checksum or signature; remove --insecure and --no-check-certificate.",
)
def _download(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    if data is None:
        return
    script = data.commands()
    if re.search(r"\b(curl|wget)\b[^\n|;&]*\bhttp://(?!(127\.|localhost|169\.254\.))", script):
        yield "fetches something over plain HTTP"
    if re.search(r"\bcurl\b[^\n|;&]*\s(-\w*k\w*|--insecure)\b|\bwget\b[^\n|;&]*--no-check-certificate", script):
        yield "fetches something without checking the certificate"


def _encrypt(args: ResourceValidationArgs) -> Mapping[str, Any] | None:
    props = args.props
    if args.resource_type == _EBS_VOLUME and not props.get("encrypted"):
        return mended(args, encrypted=True)
    if args.resource_type == _LINODE_VOLUME and not props.get("encryption"):
        return mended(args, encryption="enabled")
    root = props.get("rootBlockDevice") or {}
    # A remedy gets an unknown value as some text.
    if args.resource_type == AWS_INSTANCE and isinstance(root, Mapping) and not root.get("encrypted"):
        return mended(args, rootBlockDevice={**root, "encrypted": True})
    return None


@GUIDELINE.rule(
    "disk-not-encrypted",
    "Disks and volumes are encrypted",
    section="3.11.2",
    severity=Severity.HIGH,
    types=[_EBS_VOLUME, AWS_INSTANCE, AWS_LAUNCH_TEMPLATE, LINODE_INSTANCE, _LINODE_VOLUME],
    steps='Set encrypted to true (AWS), diskEncryption or encryption to "enabled" (Linode).',
    remedy=_encrypt,
)
def _disk(resource: Resource, _config: Config) -> Violations:
    props, kind = resource.props, resource.resource_type
    if kind == LINODE_INSTANCE and props.get("diskEncryption") == "disabled":
        yield "has its disk encryption switched off"
    elif kind == _LINODE_VOLUME:
        if props.get("encryption") != "enabled":
            yield "is not encrypted"
    elif kind == _EBS_VOLUME:
        if not props.get("encrypted"):
            yield "is not encrypted"
    elif kind == AWS_INSTANCE:
        if not (props.get("rootBlockDevice") or {}).get("encrypted"):
            yield "has a root volume that is not encrypted"
        for encrypted in each(props.get("ebsBlockDevices"), lambda disk: disk.get("encrypted")):
            if not encrypted:
                yield "has a volume that is not encrypted"
    elif kind == AWS_LAUNCH_TEMPLATE:
        for disk in each(props.get("blockDeviceMappings"), lambda mapping: mapping.get("ebs") or {}):
            if str(disk.get("encrypted")).lower() != "true":
                yield "makes volumes that are not encrypted"


@GUIDELINE.rule(
    "snapshot-not-encrypted",
    "Snapshots, which are copies of everything, are encrypted",
    section="3.11.2",
    severity=Severity.HIGH,
    types=["aws:ebs/snapshotCopy:SnapshotCopy", "aws:ec2/amiCopy:AmiCopy"],
    steps="Set encrypted to true.",
)
def _snapshot(resource: Resource, _config: Config) -> Violations:
    if not resource.props.get("encrypted"):
        yield "is not encrypted"


@GUIDELINE.rule(
    "managed-database-not-encrypted",
    "A managed database's storage is encrypted",
    section="4.6",
    severity=Severity.HIGH,
    types=["aws:rds/instance:Instance", "aws:rds/cluster:Cluster"],
    steps="Set storageEncrypted to true (for an existing one: restore an encrypted snapshot).",
)
def _managed_storage(resource: Resource, _config: Config) -> Violations:
    if not resource.props.get("storageEncrypted"):
        yield "is not encrypted"


@GUIDELINE.stack_rule(
    "bucket-not-encrypted",
    "A bucket says how it is encrypted",
    section="3.11.2",
    severity=Severity.LOW,
    types=BUCKETS,
    steps="Add aws.s3.BucketServerSideEncryptionConfiguration with a key of your own (aws:kms).",
    level=EnforcementLevel.ADVISORY,
)
def _bucket(resource: PolicyResource, _config: Config, stack: Stack) -> Violations:
    kinds = (
        "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration",
        "aws:s3/bucketServerSideEncryptionConfigurationV2:BucketServerSideEncryptionConfigurationV2",
    )
    if given(resource.props, "serverSideEncryptionConfiguration"):
        return
    if not any(
        bucket.urn == resource.urn
        for other in stack
        if other.resource_type in kinds
        for bucket in linked(other, "bucket")
    ):
        yield "leaves its encryption to AWS' default"


@GUIDELINE.stack_rule(
    "bucket-without-tls",
    "A bucket refuses requests without TLS",
    section="4.2",
    severity=Severity.LOW,
    types=BUCKETS,
    steps="Add a bucket policy that denies everything where aws:SecureTransport is false.",
    level=EnforcementLevel.ADVISORY,
)
def _bucket_tls(resource: PolicyResource, _config: Config, stack: Stack) -> Violations:
    for other in stack:
        if other.resource_type != "aws:s3/bucketPolicy:BucketPolicy":
            continue
        if any(bucket.urn == resource.urn for bucket in linked(other, "bucket")):
            denied = [one for one in statements(other.props.get("policy")) if one.get("Effect") == "Deny"]
            if any("aws:SecureTransport" in str(one.get("Condition")) for one in denied):
                return
    yield "answers requests without TLS"
