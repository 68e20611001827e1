"""The bucket as a place of backups, read with the operator's own AWS credentials.

Whoever has the database server can add versions to what is there, and whoever has more rights in the account can put
delete markers over it. So the oldest version of each object counts, which was sent first and has been locked since;
delete markers, and whatever was put over it later, are as if they weren't there.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from uds.backup.catalogue import MANIFEST, Listing
from uds.backup.servers import Download
from uds.stack import OperatorError

# More than a manifest ever needs, and less than would fill this machine's memory.
_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Version:
    """A version of an object. Size in bytes."""

    id: str
    size: int
    added: datetime


@dataclass(frozen=True)
class Bucket:
    """An S3 bucket. `client` is boto3's."""

    bucket: str
    client: Any

    @classmethod
    def of(cls, bucket: str, region: str, environment: Mapping[str, str]) -> "Bucket":
        """With the credentials that AWS's tools find in this environment, or in the operator's own files.

        Raises:
            OperatorError: there are none, or what is said there can't be used.
        """
        # boto3 asks the process's own environment. A rehearsal has another one, with nothing of production's in it.
        for name in {name for name in (*os.environ, *environment) if name.startswith("AWS_")}:
            if name in environment:
                os.environ[name] = environment[name]
            else:
                del os.environ[name]
        with _told(bucket):
            session = boto3.Session()
            if session.get_credentials() is None:
                raise OperatorError(
                    f"There are no AWS credentials for the bucket {bucket}: put yours where AWS's tools find them."
                )
            patience = Config(retries={"mode": "standard", "max_attempts": 5})
            return cls(bucket, session.client("s3", region_name=region, config=patience))

    @property
    def name(self) -> str:
        """As it is called in sentences."""
        return f"the bucket {self.bucket}"

    def listing(self) -> Listing:
        """See `Place`."""
        with _told(self.bucket):
            oldest = self._oldest()
            manifests = {}
            for name, version in oldest.items():
                if name.endswith(MANIFEST) and version.size <= _MANIFEST_BYTES:
                    body = self.client.get_object(Bucket=self.bucket, Key=name, VersionId=version.id)["Body"]
                    manifests[name] = body.read().decode(errors="replace")
        return Listing({name: version.size for name, version in oldest.items()}, manifests)

    @contextmanager
    def file(self, name: str, offset: int, seen: Callable[[int], None]) -> Iterator[Download]:
        """See `Place`."""
        with _told(self.bucket):
            version = self._oldest(name).get(name)
            if version is None:
                raise OperatorError(f"{self.name} has no {name}.")
            if offset >= version.size:
                # S3 has no range for nothing.
                yield Download(io.BytesIO(), seen)
                return
            found = self.client.get_object(Bucket=self.bucket, Key=name, VersionId=version.id, Range=f"bytes={offset}-")
            with closing(found["Body"]) as body:
                yield Download(body, seen)

    def _oldest(self, prefix: str = "") -> dict[str, Version]:
        """The oldest version of each object, by name."""
        found: dict[str, Version] = {}
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=prefix)
        for page in pages:
            for one in page.get("Versions", []):
                version = Version(one["VersionId"], int(one["Size"]), one["LastModified"])
                known = found.get(one["Key"])
                # Of one second, the later in the list is the older: S3 lists an object's newest version first.
                if known is None or version.added <= known.added:
                    found[one["Key"]] = version
        return found


@contextmanager
def _told(bucket: str) -> Iterator[None]:
    """What AWS and its SDK say, said as the operator's commands do."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise OperatorError(f"The bucket {bucket} can't be read: {error}") from None
