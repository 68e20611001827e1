"""S3's buckets and who may use them: records, made in a real S3 server of this host's (`endpoints.py`)."""

from typing import ClassVar

from rehearsal.aws import endpoints, rules
from rehearsal.aws.resources import Api, Recorded, Values
from rehearsal.provider.base import Resource
from rehearsal.store import RealmError, Record


class Served(Recorded):
    """A record that AWS's servers know of: those of a rehearsal are told at once."""

    def changed(self, record: Record) -> None:
        """See `endpoints.sync`."""
        del record
        endpoints.sync(self.api.realm)


class Role(Served):
    """What somebody may do who isn't a person."""

    args = ("pulumi_aws.iam.role", "RoleArgs")
    prefix, what = "role-", endpoints.ROLE
    rehearsed = frozenset({"description", "assumeRolePolicy"})
    replaces = frozenset({"name"})
    problems = (rules.role,)

    def facts(self, number: int, inputs: Values) -> Values:
        """Named by Pulumi."""
        return {**super().facts(number, inputs), "name": f"role-{number}"}


class RolePolicy(Served):
    """What a role may do."""

    args = ("pulumi_aws.iam.role_policy", "RolePolicyArgs")
    prefix, what = "policy-", endpoints.ROLE_POLICY
    rehearsed = frozenset({"role", "policy"})
    replaces = frozenset({"role"})
    problems = (rules.role_policy,)


class InstanceProfile(Served):
    """A role for instances, which get it from their metadata service."""

    args = ("pulumi_aws.iam.instance_profile", "InstanceProfileArgs")
    prefix, what = "profile-", endpoints.PROFILE
    rehearsed = frozenset({"role"})
    replaces = frozenset({"name"})

    def refuse(self, inputs: Values, own: str) -> None:
        """Of a role that there is."""
        del own
        roles = [record["facts"]["name"] for record in self.api.all(endpoints.ROLE).values()]
        if inputs.get("role") not in roles:
            raise RealmError(f"NoSuchEntity: the role with name {inputs.get('role')} cannot be found")

    def facts(self, number: int, inputs: Values) -> Values:
        """Named by Pulumi."""
        return {**super().facts(number, inputs), "name": f"profile-{number}"}

    def removed(self, record: Record) -> None:
        """Refused while an instance has it."""
        name = record["facts"]["name"]
        for machine in self.api.realm.machines():
            if machine.details["inputs"].get("iamInstanceProfile") == name:
                raise RealmError(f"DependencyViolation: {name} is {machine.label}'s")
        super().removed(record)


class Bucket(Served):
    """A bucket; its name, the only one in the world, is Pulumi's choice."""

    args = ("pulumi_aws.s3.bucket", "BucketArgs")
    prefix, what = "rehearsed-bucket-", endpoints.BUCKET
    rehearsed = frozenset({"objectLockEnabled", "forceDestroy"})
    replaces = frozenset({"objectLockEnabled", "region"})
    problems = (rules.bucket,)

    def facts(self, number: int, inputs: Values) -> Values:
        """Its id is its name."""
        name = f"{self.prefix}{number:08d}"
        domain = f"{name}.s3.{inputs['region']}.amazonaws.com"
        return {"arn": f"arn:aws:s3:::{name}", "bucket": name, "bucketRegionalDomainName": domain}

    def removed(self, record: Record) -> None:
        """Refused while anything is in it, any version."""
        name = record["facts"]["bucket"]
        if endpoints.holds_something(self.api.realm, name):
            raise RealmError(f"BucketNotEmpty: the bucket {name} is not empty; you must delete all versions in it")
        super().removed(record)


class _OfBucket(Served):
    """What is said about a bucket: once, by a resource of its own."""

    replaces: ClassVar[frozenset[str]] = frozenset({"bucket", "region"})

    def refuse(self, inputs: Values, own: str) -> None:
        """Of a bucket that there is, in its region."""
        bucket = self.api.all(endpoints.BUCKET).get(inputs["bucket"])
        if bucket is None or bucket["inputs"]["region"] != inputs["region"]:
            raise RealmError(f"NoSuchBucket: {inputs['bucket']} does not exist in {inputs['region']}")
        for other, values in self.others(own):
            if values["bucket"] == inputs["bucket"]:
                raise RealmError(f"the {self.what} of {inputs['bucket']} is managed already, by {other}")


class Versioning(_OfBucket):
    """Whether what is put over an object, or deleted, can be had back."""

    args = ("pulumi_aws.s3.bucket_versioning", "BucketVersioningInitArgs")
    prefix, what = "versioning-", "bucket versioning"
    rehearsed = frozenset({"bucket", "versioningConfiguration"})
    problems = (rules.bucket_versioning,)


class ObjectLock(_OfBucket):
    """For how long a version can't be deleted."""

    args = ("pulumi_aws.s3.bucket_object_lock_configuration", "BucketObjectLockConfigurationInitArgs")
    prefix, what = "lock-", "bucket object lock"
    rehearsed = frozenset({"bucket", "rule"})
    problems = (rules.bucket_object_lock,)

    def refuse(self, inputs: Values, own: str) -> None:
        """Only where the bucket was made for it, and keeps versions."""
        super().refuse(inputs, own)
        if not self.api.all(endpoints.BUCKET)[inputs["bucket"]]["inputs"].get("objectLockEnabled"):
            raise RealmError(f"InvalidBucketState: Object Lock is not enabled on {inputs['bucket']}")


class Encryption(_OfBucket):
    """How the disks of S3 are encrypted: a rehearsal keeps all in memory."""

    args = (
        "pulumi_aws.s3.bucket_server_side_encryption_configuration",
        "BucketServerSideEncryptionConfigurationInitArgs",
    )
    prefix, what = "encryption-", "bucket encryption"
    rehearsed = frozenset({"bucket", "rules"})
    problems = (rules.bucket_encryption,)


class AccessBlock(_OfBucket):
    """That nothing in it can be made public."""

    args = ("pulumi_aws.s3.bucket_public_access_block", "BucketPublicAccessBlockArgs")
    prefix, what = "block-", "bucket access block"
    rehearsed = frozenset(
        {"bucket", "blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets"}
    )


class Ownership(_OfBucket):
    """Whose objects are: with the bucket's owner, access lists have no effect."""

    args = ("pulumi_aws.s3.bucket_ownership_controls", "BucketOwnershipControlsArgs")
    prefix, what = "ownership-", "bucket ownership"
    rehearsed = frozenset({"bucket", "rule"})
    problems = (rules.bucket_ownership,)


class Policy(_OfBucket):
    """Who may use it, besides what roles say."""

    args = ("pulumi_aws.s3.bucket_policy", "BucketPolicyArgs")
    prefix, what = "bucket-policy-", "bucket policy"
    rehearsed = frozenset({"bucket", "policy"})
    problems = (rules.bucket_policy,)


class Lifecycle(_OfBucket):
    """When what goes: in a rehearsal nothing does, it doesn't live that long."""

    args = ("pulumi_aws.s3.bucket_lifecycle_configuration", "BucketLifecycleConfigurationArgs")
    prefix, what = "lifecycle-", "bucket lifecycle"
    rehearsed = frozenset({"bucket", "rules"})
    problems = (rules.bucket_lifecycle,)


def resources(api: Api) -> dict[str, Resource]:
    """The resource types by token."""
    return {
        "aws:iam/role:Role": Role(api),
        "aws:iam/rolePolicy:RolePolicy": RolePolicy(api),
        "aws:iam/instanceProfile:InstanceProfile": InstanceProfile(api),
        "aws:s3/bucket:Bucket": Bucket(api),
        "aws:s3/bucketVersioning:BucketVersioning": Versioning(api),
        "aws:s3/bucketObjectLockConfiguration:BucketObjectLockConfiguration": ObjectLock(api),
        "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": Encryption(api),
        "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock": AccessBlock(api),
        "aws:s3/bucketOwnershipControls:BucketOwnershipControls": Ownership(api),
        "aws:s3/bucketPolicy:BucketPolicy": Policy(api),
        "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration": Lifecycle(api),
    }
