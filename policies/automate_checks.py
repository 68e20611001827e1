"""Automate security checks and constraints."""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime

from pulumi_policy import EnforcementLevel, PolicyResource, Severity

from policies.policy import Config, Guideline, Option, Resource, Stack, Violations, given
from policies.prevent_direct_access import DATABASE_PATTERN
from policies.resources import (
    AWS_LAUNCH_TEMPLATE,
    BACKUP_BUCKET_NAME,
    BUCKETS,
    LINODE_INSTANCE,
    MANAGED_DATABASES,
    SERVERS,
    about,
    is_database_server,
    linked,
)
from policies.user_data import packages, told

GUIDELINE = Guideline("Automate security checks and constraints")

# The last day with security updates that cost nothing, as the distributors announced it. Ubuntu: standard support.
_END_OF_LIFE = {
    "almalinux8": date(2029, 3, 1),
    "almalinux9": date(2032, 5, 31),
    "centos7": date(2024, 6, 30),
    "centos8": date(2021, 12, 31),
    "centos-stream8": date(2024, 5, 31),
    "centos-stream9": date(2027, 5, 31),
    "debian9": date(2022, 6, 30),
    "debian10": date(2024, 6, 30),
    "debian11": date(2026, 8, 31),
    "debian12": date(2028, 6, 30),
    "debian13": date(2030, 6, 30),
    "rocky8": date(2029, 5, 31),
    "rocky9": date(2032, 5, 31),
    "ubuntu16.04lts": date(2021, 4, 30),
    "ubuntu18.04": date(2023, 5, 31),
    "ubuntu20.04": date(2025, 5, 31),
    "ubuntu22.04": date(2027, 4, 30),
    "ubuntu24.04": date(2029, 4, 30),
    "ubuntu24.10": date(2025, 7, 10),
    "ubuntu25.04": date(2026, 1, 15),
    "ubuntu25.10": date(2026, 7, 9),
}


@GUIDELINE.rule(
    "no-security-updates",
    "Security updates install themselves, from the first boot on",
    section="3",
    severity=Severity.HIGH,
    types=[*SERVERS, AWS_LAUNCH_TEMPLATE],
    steps="Install and enable unattended-upgrades (Debian, Ubuntu) or dnf-automatic in the user data.",
)
def _no_updates(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    if data is None:
        return
    tools = {"unattended-upgrades", "dnf-automatic", "yum-cron"}
    switched_off = any(
        re.search(r'APT::Periodic::Unattended-Upgrade\s+"0"', text)
        for path, text in data.files.items()
        if path.startswith("/etc/apt/")
    )
    if switched_off or not (packages(data) & tools or any(tool in data.script for tool in tools)):
        yield "sets up no automatic security updates in its user data"


@GUIDELINE.rule(
    "image-past-end-of-life",
    "A server's system still gets security updates",
    section="3.2",
    severity=Severity.HIGH,
    types=[LINODE_INSTANCE],
    steps="Choose a supported image for new servers, and move existing ones before the day.",
    options={"days": Option(0, "Complain so many days before the end")},
)
def _end_of_life(resource: Resource, config: Config) -> Violations:
    image = str(resource.props.get("image") or "").removeprefix("linode/")
    end = _END_OF_LIFE.get(image)
    if end and (end - datetime.now(UTC).date()).days < config["days"]:
        yield f"its image {image} gets no security updates after {end}"


@GUIDELINE.rule(
    "database-server-not-protected",
    "Pulumi refuses to delete a database",
    section="3.11.2",
    severity=Severity.HIGH,
    types=SERVERS | MANAGED_DATABASES,
    steps="Set the resource option protect=True.",
    options={"databaseServers": DATABASE_PATTERN},
)
def _not_protected(resource: Resource, config: Config) -> Violations:
    if resource.opts.protect:
        return
    if resource.resource_type in MANAGED_DATABASES or is_database_server(resource, config["databaseServers"]):
        yield "could be deleted, with all its data, by one mistake in a program"


@GUIDELINE.rule(
    "database-replaced-by-user-data",
    "New user data doesn't replace a database server",
    section="3.11.2",
    severity=Severity.HIGH,
    types=SERVERS,
    steps="Linode: ignore_changes=['metadatas']. AWS: leave userDataReplaceOnChange out. Change servers over SSH.",
    options={"databaseServers": DATABASE_PATTERN},
)
def _replaced(resource: Resource, config: Config) -> Violations:
    if not is_database_server(resource, config["databaseServers"]):
        return
    if resource.resource_type == LINODE_INSTANCE:
        if given(resource.props, "metadatas") and "metadatas" not in resource.opts.ignore_changes:
            yield "is replaced, with all its data, when its user data changes"
    elif resource.props.get("userDataReplaceOnChange"):
        yield "is replaced, with all its data, when its user data changes"


# What makes backups, by name: dumps, and the usual tools.
_BACKUP_TOOLS = re.compile(
    r"\b(mysqldump|mariadb-dump|mariabackup|xtrabackup|pg_dump|pg_basebackup|mongodump|restic|borg|duplicity|wal-g)\b"
)
_BACKUP_WORDS = r"backup|snapshot"


@GUIDELINE.stack_rule(
    "database-server-without-backups",
    "A database server is backed up by the stack that makes it",
    section="3.11.2",
    severity=Severity.HIGH,
    types=SERVERS,
    steps="Back it up every day to another place: a job on the server, aws.backup.Plan, or Linode's backups.",
    options={"databaseServers": DATABASE_PATTERN},
)
def _without_backups(resource: PolicyResource, config: Config, stack: Stack) -> Violations:
    if not is_database_server(resource, config["databaseServers"]):
        return
    if resource.resource_type == LINODE_INSTANCE and resource.props.get("backupsEnabled"):
        return
    if about(resource, stack, ["uds:backup:Backup"], _BACKUP_WORDS):
        return
    plans = ("aws:backup/selection:Selection", "aws:dlm/lifecyclePolicy:LifecyclePolicy")
    if resource.resource_type not in (LINODE_INSTANCE,) and any(other.resource_type in plans for other in stack):
        return
    data = told(resource)
    if data and _BACKUP_TOOLS.search(data.commands()):
        return
    yield "has no backups"


@GUIDELINE.rule(
    "managed-database-without-backups",
    "A managed database keeps its backups for some days",
    section="3.11.2",
    severity=Severity.HIGH,
    types=["aws:rds/instance:Instance", "aws:rds/cluster:Cluster"],
    steps="Set backupRetentionPeriod.",
    options={"days": Option(7, "For how many days backups are kept at least")},
)
def _retention(resource: Resource, config: Config) -> Violations:
    days = int(resource.props.get("backupRetentionPeriod") or 0)
    if days < config["days"]:
        yield f"keeps backups for {days} days; {config['days']} are asked for"


@GUIDELINE.rule(
    "managed-database-deletion-protection",
    "A managed database is protected against deletion by the cloud too",
    section="3.11.2",
    severity=Severity.MEDIUM,
    types=["aws:rds/instance:Instance", "aws:rds/cluster:Cluster"],
    steps="Set deletionProtection to true.",
)
def _deletion(resource: Resource, _config: Config) -> Violations:
    if not resource.props.get("deletionProtection"):
        yield "can be deleted by one call"


@GUIDELINE.rule(
    "password-rules-missing",
    "A first boot that makes accounts also sets rules for passwords",
    section="3.4",
    severity=Severity.MEDIUM,
    types=SERVERS,
    steps="Install libpam-pwquality and write /etc/security/pwquality.conf (or a file in pwquality.conf.d).",
)
def _password_rules(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    if data is None or not [user for user in data.cloud_config.get("users") or [] if isinstance(user, Mapping)]:
        return
    files = "".join(data.files)
    if not ("pwquality" in files or "cracklib" in files or "pam_pwquality" in data.script):
        yield "makes accounts, and sets no rules for their passwords"


_VERSIONS = ("aws:s3/bucketVersioning:BucketVersioning", "aws:s3/bucketVersioningV2:BucketVersioningV2")
_LOCKS = (
    "aws:s3/bucketObjectLockConfiguration:BucketObjectLockConfiguration",
    "aws:s3/bucketObjectLockConfigurationV2:BucketObjectLockConfigurationV2",
)


@GUIDELINE.stack_rule(
    "bucket-without-versions",
    "What is overwritten or deleted in a bucket can be had back",
    section="3.11.2",
    severity=Severity.LOW,
    types=["aws:s3/bucket:Bucket", "aws:s3/bucketV2:BucketV2", "linode:index/objectStorageBucket:ObjectStorageBucket"],
    steps="Switch versioning on (aws.s3.BucketVersioning, or versioning of the Linode bucket); let old ones expire.",
    level=EnforcementLevel.ADVISORY,
)
def _versions(resource: PolicyResource, _config: Config, stack: Stack) -> Violations:
    own = resource.props.get("versioning")
    if own is True or (isinstance(own, Mapping) and own.get("enabled")):
        return
    for other in stack:
        if other.resource_type in _VERSIONS and any(bucket.urn == resource.urn for bucket in linked(other, "bucket")):
            return
    yield "keeps no versions"


@GUIDELINE.stack_rule(
    "backup-bucket-without-lock",
    "Backups in a bucket can't be overwritten or deleted before their time",
    section="3.11.2",
    severity=Severity.HIGH,
    types=BUCKETS,
    steps="Make the bucket with objectLockEnabled; add BucketVersioning (Enabled) and a BucketObjectLockConfiguration.",
    options={
        "backupBuckets": Option(BACKUP_BUCKET_NAME, "Names of buckets that hold backups (regular expression)"),
        "days": Option(7, "For how many days a backup is locked at least"),
    },
)
def _without_lock(resource: PolicyResource, config: Config, stack: Stack) -> Violations:
    if not re.search(config["backupBuckets"], resource.name, re.I):
        return
    own = [other for other in stack if any(bucket.urn == resource.urn for bucket in linked(other, "bucket"))]
    versions = [other.props.get("versioningConfiguration") or {} for other in own if other.resource_type in _VERSIONS]
    if not any(one.get("status") == "Enabled" for one in versions):
        yield "keeps no versions: who may add to it can overwrite what is there"
    rules = [other.props.get("rule") or {} for other in own if other.resource_type in _LOCKS]
    retentions = [rule.get("defaultRetention") or {} for rule in rules]
    days = max((int(one.get("days") or 0) or 365 * int(one.get("years") or 0) for one in retentions), default=0)
    if not resource.props.get("objectLockEnabled") or days == 0:
        yield "locks nothing: who may delete from it can delete every backup"
    elif days < config["days"]:
        yield f"locks a backup for {days} days, not for {config['days']}"
