"""A bucket of AWS in which the database server keeps backups, and can do nothing else (guide, 3.11.2).

What arrives is locked for as long as it is kept: nobody deletes or changes a version until its days are over, except
people of the account who may bypass that (`s3:BypassGovernanceRetention`), which no server may. Whoever has the
database server can put another version over a backup; the first one stays, and it is the first one that is read.
"""

import json

import pulumi

from components.clouds import Bucket
from components.clouds.sdk import without_the_rest
from components.settings import PROJECT, Settings

with without_the_rest("pulumi_aws", "pulumi_aws.iam", "pulumi_aws.s3"):
    from pulumi_aws.iam.instance_profile import InstanceProfile
    from pulumi_aws.iam.role import Role
    from pulumi_aws.iam.role_policy import RolePolicy
    from pulumi_aws.s3._inputs import (
        BucketLifecycleConfigurationRuleAbortIncompleteMultipartUploadArgs,
        BucketLifecycleConfigurationRuleArgs,
        BucketLifecycleConfigurationRuleExpirationArgs,
        BucketLifecycleConfigurationRuleFilterArgs,
        BucketLifecycleConfigurationRuleNoncurrentVersionExpirationArgs,
        BucketObjectLockConfigurationRuleArgs,
        BucketObjectLockConfigurationRuleDefaultRetentionArgs,
        BucketOwnershipControlsRuleArgs,
        BucketServerSideEncryptionConfigurationRuleApplyServerSideEncryptionByDefaultArgs,
        BucketServerSideEncryptionConfigurationRuleArgs,
        BucketVersioningVersioningConfigurationArgs,
    )
    from pulumi_aws.s3.bucket import Bucket as S3Bucket
    from pulumi_aws.s3.bucket_lifecycle_configuration import BucketLifecycleConfiguration
    from pulumi_aws.s3.bucket_object_lock_configuration import BucketObjectLockConfiguration
    from pulumi_aws.s3.bucket_ownership_controls import BucketOwnershipControls
    from pulumi_aws.s3.bucket_policy import BucketPolicy
    from pulumi_aws.s3.bucket_public_access_block import BucketPublicAccessBlock
    from pulumi_aws.s3.bucket_server_side_encryption_configuration import BucketServerSideEncryptionConfiguration
    from pulumi_aws.s3.bucket_versioning import BucketVersioning


class BackupBucket(pulumi.ComponentResource):
    """The bucket, and the role of who may add to it."""

    made: Bucket

    def __init__(self, settings: Settings, opts: pulumi.ResourceOptions | None = None) -> None:
        """Make it in the stack's region, or in that of the backups."""
        super().__init__("uds:cloud:BackupBucket", "backup-bucket", None, opts)
        self._region = settings.backup.region or settings.region
        self._child = pulumi.ResourceOptions(parent=self)
        stack = pulumi.get_stack()
        self._tags = {"Name": f"{stack}-backups", "Project": PROJECT, "Stack": stack}
        # Pulumi adds letters to its name, which is the only one in the world.
        bucket = S3Bucket(
            "backup-bucket",
            object_lock_enabled=True,
            force_destroy=False,
            region=self._region,
            tags=self._tags,
            opts=pulumi.ResourceOptions(parent=self, protect=True),
        )
        # Everything that guards it is there before the first backup may come.
        guards = [*self._keep(bucket, settings.backup.bucket_days), *self._close(bucket)]
        profile, rights = self._writer(bucket)
        self.made = Bucket(
            name=bucket.bucket, region=self._region, profile=profile.name, ready=(bucket, *guards, profile, rights)
        )
        self.register_outputs({})

    def _keep(self, bucket: S3Bucket, days: int) -> list[pulumi.Resource]:
        """What arrives stays for `days`, all of its versions, and then goes."""
        versions = BucketVersioning(
            "backup-bucket-versions",
            bucket=bucket.bucket,
            versioning_configuration=BucketVersioningVersioningConfigurationArgs(status="Enabled"),
            region=self._region,
            opts=self._child,
        )
        after_versions = pulumi.ResourceOptions(parent=self, depends_on=[versions])
        lock = BucketObjectLockConfiguration(
            "backup-bucket-lock",
            bucket=bucket.bucket,
            rule=BucketObjectLockConfigurationRuleArgs(
                default_retention=BucketObjectLockConfigurationRuleDefaultRetentionArgs(
                    # COMPLIANCE would bind the account's owners too: a mistake could be mended by nobody, for years.
                    mode="GOVERNANCE",
                    days=days,
                )
            ),
            region=self._region,
            opts=after_versions,
        )
        lifecycle = BucketLifecycleConfiguration(
            "backup-bucket-lifecycle",
            bucket=bucket.bucket,
            rules=[
                BucketLifecycleConfigurationRuleArgs(
                    id="backups",
                    status="Enabled",
                    # All of them.
                    filter=BucketLifecycleConfigurationRuleFilterArgs(prefix=""),
                    expiration=BucketLifecycleConfigurationRuleExpirationArgs(days=days),
                    # Not sooner than the rest: a version that somebody put another one over is still locked.
                    noncurrent_version_expiration=BucketLifecycleConfigurationRuleNoncurrentVersionExpirationArgs(
                        noncurrent_days=1
                    ),
                    abort_incomplete_multipart_upload=BucketLifecycleConfigurationRuleAbortIncompleteMultipartUploadArgs(
                        days_after_initiation=2
                    ),
                )
            ],
            region=self._region,
            opts=after_versions,
        )
        return [versions, lock, lifecycle]

    def _close(self, bucket: S3Bucket) -> list[pulumi.Resource]:
        """Nobody outside of the account reaches it, and nobody in the clear."""
        block = BucketPublicAccessBlock(
            "backup-bucket-access",
            bucket=bucket.bucket,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
            region=self._region,
            opts=self._child,
        )
        ownership = BucketOwnershipControls(
            "backup-bucket-ownership",
            bucket=bucket.bucket,
            rule=BucketOwnershipControlsRuleArgs(object_ownership="BucketOwnerEnforced"),
            region=self._region,
            opts=self._child,
        )
        encryption = BucketServerSideEncryptionConfiguration(
            "backup-bucket-encryption",
            bucket=bucket.bucket,
            rules=[
                BucketServerSideEncryptionConfigurationRuleArgs(
                    # With a key of S3's own. Backups come encrypted to keys that AWS hasn't got; a key in KMS would
                    # only be one more that can be lost, and one more right for the server.
                    apply_server_side_encryption_by_default=BucketServerSideEncryptionConfigurationRuleApplyServerSideEncryptionByDefaultArgs(
                        sse_algorithm="AES256"
                    )
                )
            ],
            region=self._region,
            opts=self._child,
        )
        policy = BucketPolicy(
            "backup-bucket-policy",
            bucket=bucket.bucket,
            policy=bucket.arn.apply(_only_with_tls),
            region=self._region,
            # AWS refuses to change both at once.
            opts=pulumi.ResourceOptions(parent=self, depends_on=[block]),
        )
        return [block, ownership, encryption, policy]

    def _writer(self, bucket: S3Bucket) -> tuple[InstanceProfile, RolePolicy]:
        """Who may add to it: no key that could be stolen and used for long, but what the server is."""
        role = Role(
            "backup-bucket-writer",
            description="Lets the database server add backups to its bucket",
            assume_role_policy=_policy(
                Effect="Allow", Action="sts:AssumeRole", Principal={"Service": "ec2.amazonaws.com"}
            ),
            tags=self._tags,
            opts=self._child,
        )
        rights = RolePolicy(
            "backup-bucket-writer-rights",
            role=role.name,
            policy=bucket.arn.apply(
                # Large files come in parts, which is the same right; what was broken off goes by the lifecycle.
                lambda arn: _policy(Effect="Allow", Action="s3:PutObject", Resource=f"{arn}/*")
            ),
            opts=self._child,
        )
        profile = InstanceProfile("backup-bucket-writer-profile", role=role.name, tags=self._tags, opts=self._child)
        return profile, rights


def _only_with_tls(arn: str) -> str:
    return _policy(
        Sid="OnlyWithTls",
        Effect="Deny",
        Principal="*",
        Action="s3:*",
        Resource=[arn, f"{arn}/*"],
        Condition={"Bool": {"aws:SecureTransport": "false"}},
    )


def _policy(**statement: object) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
