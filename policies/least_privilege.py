"""Use the least privilege possible."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pulumi_policy import PolicyResource, Severity

from policies.policy import Config, Guideline, Option, Properties, Resource, Stack, Violations, each, given
from policies.resources import BACKUP_BUCKET_NAME, BUCKETS, COMMAND, FIREWALLS, TELL_SERVERS, linked, openings
from policies.user_data import told

GUIDELINE = Guideline("Use the least privilege possible")

_POLICY_DOCUMENTS = (
    "aws:iam/policy:Policy",
    "aws:iam/rolePolicy:RolePolicy",
    "aws:iam/userPolicy:UserPolicy",
    "aws:iam/groupPolicy:GroupPolicy",
)
_ATTACHMENTS = (
    "aws:iam/rolePolicyAttachment:RolePolicyAttachment",
    "aws:iam/userPolicyAttachment:UserPolicyAttachment",
    "aws:iam/groupPolicyAttachment:GroupPolicyAttachment",
    "aws:iam/policyAttachment:PolicyAttachment",
)


@GUIDELINE.rule(
    "firewall-opens-many-ports",
    "A firewall rule opens the ports that a service needs, not a range or everything",
    section="3.9",
    severity=Severity.HIGH,
    types=FIREWALLS,
    steps="Write one rule for each port that a service listens on.",
    options={"maxPorts": Option(16, "How many ports one rule may open")},
)
def _many_ports(resource: Resource, config: Config) -> Violations:
    for opening in openings(resource):
        many = opening.protocol in ("tcp", "udp", "all") and opening.last - opening.first >= config["maxPorts"]
        # A group that admits its own members is a network of its own.
        if many and opening.sources:
            yield f"opens {opening.ports}"


@GUIDELINE.rule(
    "sudo-without-password",
    "Nobody becomes root without a password",
    section="3.7",
    severity=Severity.HIGH,
    types=TELL_SERVERS,
    steps="Remove NOPASSWD; give the account a password of its own for sudo (automation sends it on standard input).",
)
def _nopasswd(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    if data is None:
        return
    users = data.cloud_config.get("users") or []
    rules = "\n".join(str(user.get("sudo") or "") for user in users if isinstance(user, Mapping))
    if re.search(r"=\s*(\([^)]*\)\s*)?NOPASSWD\s*:|\bDefaults\b.*!authenticate", f"{data.commands()}\n{rules}"):
        yield "lets an account use sudo without a password (NOPASSWD)"


@GUIDELINE.rule(
    "remote-command-as-root",
    "Automation logs in with an account of its own, not as root",
    section="3.7",
    severity=Severity.HIGH,
    types=[COMMAND, "command:remote:CopyToRemote"],
    steps="Set connection.user to an account that may use sudo, and refuse root in sshd.",
)
def _as_root(resource: Resource, _config: Config) -> Violations:
    for where, connection in connections(resource):
        if connection.get("user", "root") == "root":
            yield f"{where} logs in as root"


def connections(resource: Resource) -> Iterator[tuple[str, Properties]]:
    """A command's connection and the one through which it goes, if it goes through another."""
    connection = resource.props.get("connection") or {}
    yield "its connection", connection
    if given(connection, "proxy"):
        yield "the connection of its proxy", connection["proxy"]


@GUIDELINE.rule(
    "database-account-with-all-rights",
    "A database account has the rights that the application needs, and can pass none on",
    section="4.6",
    severity=Severity.HIGH,
    types=TELL_SERVERS,
    steps="GRANT SELECT, INSERT, UPDATE, DELETE on the application's database, to the application servers' addresses.",
)
def _all_rights(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    # Root, on the server itself, has them in any case.
    account = r"[^;]*\bTO\s+(?!['`\"]?root\b)"
    if data and re.search(rf"\bGRANT\s+ALL\b{account}|\"rights\":\s*\[[^\]]*\"ALL\b", data.commands(), re.I):
        yield "grants a database account all rights"
    if data and re.search(rf"\bGRANT\s{account}[^;]*\bWITH\s+GRANT\s+OPTION\b", data.commands(), re.I):
        yield "lets a database account pass on its rights"


@GUIDELINE.rule(
    "database-account-from-anywhere",
    "A database account belongs to the application servers' addresses, not to any host",
    section="4.6",
    severity=Severity.MEDIUM,
    types=TELL_SERVERS,
    steps="Create the account as 'name'@'ADDRESS' for the address of each application server.",
)
def _any_host(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    account = r"\b(?:GRANT\b[^;]*\bTO|CREATE\s+USER(?:\s+IF\s+NOT\s+EXISTS)?)\s+['`\"]?\w+['`\"]?\s*@\s*['`\"]%['`\"]"
    if data and re.search(rf"{account}|\"host\":\s*\"%\"", data.commands(), re.I):
        yield "makes a database account for every host ('%')"


@GUIDELINE.rule(
    "iam-policy-with-wildcard",
    "A policy names the actions that it allows",
    section="4",
    severity=Severity.HIGH,
    types=_POLICY_DOCUMENTS,
    steps="List the actions that are needed, and the resources (ARNs) that they are needed on.",
)
def _wildcard(resource: Resource, _config: Config) -> Violations:
    for statement in statements(resource.props.get("policy")):
        if statement.get("Effect") == "Allow" and "*" in _list(statement.get("Action")):
            yield "allows every action (*)"
        if statement.get("Effect") == "Allow" and "NotAction" in statement:
            yield "allows every action but some (NotAction)"


def statements(document: object) -> list[Mapping[str, Any]]:
    """The statements of a policy document, given as text or as an object; none of one that can't be read."""
    if isinstance(document, str):
        try:
            document = json.loads(document)
        except ValueError:
            return []
    if not isinstance(document, Mapping):
        return []
    found = document.get("Statement") or []
    return [found] if isinstance(found, Mapping) else list(found)


def _list(value: object) -> list[object]:
    return [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else []


@GUIDELINE.rule(
    "iam-administrator-rights",
    "Nothing in a stack has an administrator's rights",
    section="4",
    severity=Severity.CRITICAL,
    types=_ATTACHMENTS,
    steps="Attach a policy with the actions that are needed.",
    options={
        "policies": Option(["AdministratorAccess", "PowerUserAccess", "IAMFullAccess"], "Managed policies to refuse")
    },
)
def _administrator(resource: Resource, config: Config) -> Violations:
    name = str(resource.props.get("policyArn") or "").rpartition("/")[2]
    if name in config["policies"]:
        yield f"attaches {name}"


@GUIDELINE.rule(
    "linode-token-with-all-scopes",
    "A token of the Linode API is for what it is used for, and ends",
    section="4",
    severity=Severity.HIGH,
    types=["linode:index/token:Token"],
    steps="Set scopes to what is needed, such as 'linodes:read_only', and expiry to a date.",
)
def _token_scopes(resource: Resource, _config: Config) -> Violations:
    if str(resource.props.get("scopes")) == "*":
        yield "has all scopes (*)"
    if not given(resource.props, "expiry"):
        yield "never expires"


@GUIDELINE.rule(
    "object-storage-key-for-every-bucket",
    "A key of the object storage is for the buckets that it is used for",
    section="4",
    severity=Severity.HIGH,
    types=["linode:index/objectStorageKey:ObjectStorageKey"],
    steps="Name the buckets and the permission in bucketAccesses.",
)
def _unlimited_key(resource: Resource, _config: Config) -> Violations:
    accesses = resource.props.get("bucketAccesses")
    if not accesses:
        yield "may read and write every bucket"
    for name in each(accesses, lambda access: access.get("bucketName")):
        if name == "*":
            yield "may use every bucket"


# What an upload of a large file needs beside s3:PutObject.
_ADDS = frozenset(
    {"s3:putobject", "s3:abortmultipartupload", "s3:listmultipartuploadparts", "s3:listbucketmultipartuploads"}
)


@GUIDELINE.stack_rule(
    "server-does-more-than-add-backups",
    "A server may add to the bucket of its backups, and neither read nor delete what is there",
    section="3.11.2",
    severity=Severity.HIGH,
    types=["aws:iam/rolePolicy:RolePolicy"],
    steps="Allow s3:PutObject on the bucket's objects only; restore with the credentials of a person.",
    options={"backupBuckets": Option(BACKUP_BUCKET_NAME, "Names of buckets that hold backups (regular expression)")},
)
def _more_than_add(resource: PolicyResource, config: Config, stack: Stack) -> Violations:
    roles = {role.urn for role in linked(resource, "role")}
    profiles = [other for other in stack if other.resource_type == "aws:iam/instanceProfile:InstanceProfile"]
    if not any(role.urn in roles for profile in profiles for role in linked(profile, "role")):
        return
    # In a preview of a new stack, the ARN isn't known, and the bucket is.
    about = any(
        other.resource_type in BUCKETS and re.search(config["backupBuckets"], other.name, re.I)
        for other in linked(resource, "policy")
    )
    for statement in statements(resource.props.get("policy")):
        named = any(re.search(config["backupBuckets"], str(one), re.I) for one in _list(statement.get("Resource")))
        if statement.get("Effect") != "Allow" or not (about or named):
            continue
        for action in map(str, _list(statement.get("Action"))):
            if action.lower().startswith(("s3:", "*")) and action.lower() not in _ADDS:
                yield f"lets a server do {action} where its backups are"
