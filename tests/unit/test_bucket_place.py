"""The bucket, as the operator reads it: the first version of everything, whatever came over it."""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from uds.backup.bucket import Bucket
from uds.backup.catalogue import parse
from uds.backup.fetch import fetch
from uds.backup.places import BackupServer, Kept, place_of
from uds.backup.servers import Servers
from uds.stack import OperatorError, Stack

ID = "20260302T000100Z"
FILE = f"{ID}_app.sql.zst.age"
MOMENT = datetime(2026, 3, 2, 0, 1, 30, tzinfo=UTC)


@dataclass
class S3:
    """boto3's client of a bucket in memory; each page of a listing has one version."""

    versions: list[tuple[str, bytes, datetime]] = field(default_factory=list)
    """Oldest first, as they came."""
    markers: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    raises: Exception | None = None

    def put(self, key: str, content: bytes, later: float = 0) -> None:
        self.versions.append((key, content, MOMENT + timedelta(seconds=later)))

    def get_paginator(self, name: str) -> "S3":
        assert name == "list_object_versions"
        return self

    def paginate(self, **request: str) -> Iterator[dict[str, Any]]:
        if self.raises:
            raise self.raises
        assert request["Bucket"] == "backups"
        # As S3 does: by name, and of one name the newest first.
        order = sorted(range(len(self.versions)), key=lambda index: (self.versions[index][0], -index))
        for index in order:
            key, content, moment = self.versions[index]
            if key.startswith(request["Prefix"]):
                yield {
                    "Versions": [{"Key": key, "VersionId": str(index), "Size": len(content), "LastModified": moment}]
                }
        yield {"DeleteMarkers": [{"Key": key, "VersionId": "m", "LastModified": MOMENT} for key in self.markers]}

    def get_object(self, **request: str) -> dict[str, Any]:
        key, content, _ = self.versions[int(request["VersionId"])]
        assert key == request["Key"]
        self.ranges.append(request.get("Range", ""))
        start = int(request["Range"].removeprefix("bytes=").removesuffix("-")) if "Range" in request else 0
        assert start < len(content), "416 InvalidRange"
        return {"Body": io.BytesIO(content[start:])}


def backup(s3: S3, content: bytes = b"first") -> None:
    s3.put(FILE, content)
    described = {"name": FILE, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    s3.put(f"{ID}.manifest.json", json.dumps({"id": ID, "files": [described]}).encode())


def quiet(*_: object) -> Any:  # noqa: ANN401 - as what hears of progress
    return lambda _count: None


@pytest.mark.parametrize("later", [0, 3600])
def test_what_came_over_a_backup_is_as_if_it_were_not_there(tmp_path: Path, later: float) -> None:
    s3 = S3()
    backup(s3)
    junk = b"something else"
    s3.put(FILE, junk, later)
    s3.put(f"{ID}.manifest.json", b'{"files": []}', later)
    # Deleted, as far as a listing without versions would tell.
    s3.markers += [FILE, f"{ID}.manifest.json"]
    place = Bucket("backups", s3)
    (found,) = parse(place.listing())
    assert (found.problems, found.size) == ((), 5)
    fetch(place, found, tmp_path, quiet)
    assert (tmp_path / FILE).read_bytes() == b"first"


def test_a_download_goes_on_where_it_was(tmp_path: Path) -> None:
    s3 = S3()
    backup(s3)
    place = Bucket("backups", s3)
    (found,) = parse(place.listing())
    (tmp_path / f"{FILE}.part").write_bytes(b"fir")
    fetch(place, found, tmp_path, quiet)
    assert s3.ranges[-1] == "bytes=3-"
    assert (tmp_path / FILE).read_bytes() == b"first"
    # All of it was there but for its name: S3 has no range for nothing.
    (tmp_path / FILE).rename(tmp_path / f"{FILE}.part")
    fetch(place, found, tmp_path, quiet)
    assert (tmp_path / FILE).read_bytes() == b"first"


def test_a_manifest_that_would_fill_the_memory_is_not_read() -> None:
    s3 = S3()
    backup(s3)
    s3.put("20260303T000100Z.manifest.json", bytes((1 << 20) + 1))
    newest, older = parse(Bucket("backups", s3).listing())
    assert newest.problems == ("its manifest is missing",)
    assert older.problems == ()
    assert len(s3.ranges) == 1


def test_what_aws_says_is_told() -> None:
    denied = ClientError({"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}, "ListObjectVersions")
    for error in (denied, EndpointConnectionError(endpoint_url="https://s3")):
        with pytest.raises(OperatorError, match="The bucket backups can't be read: "):
            Bucket("backups", S3(raises=error)).listing()
    s3 = S3()
    with pytest.raises(OperatorError, match="the bucket backups has no x"), Bucket("backups", s3).file("x", 0, quiet()):
        pass


def test_only_the_stacks_own_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"AWS_PROFILE": "production", "HOME": "/nowhere"})
    monkeypatch.setattr("boto3.Session", Nobody)
    with pytest.raises(OperatorError, match="no AWS credentials for the bucket backups"):
        Bucket.of("backups", "eu-central-1", {"AWS_ACCESS_KEY_ID": "x", "OTHER": "y"})
    assert os.environ == {"AWS_ACCESS_KEY_ID": "x", "HOME": "/nowhere"}


class Nobody:
    """What boto3 makes where there are no credentials."""

    def get_credentials(self) -> None:
        return None


class Outputs(Stack):
    """A stack that has these outputs."""

    def outputs(self) -> dict[str, Any]:
        return dict(self.environment)


@pytest.mark.parametrize(
    ("server", "bucket", "wanted", "found"),
    [
        (True, True, None, "backup-1"),
        (True, True, Kept.BUCKET, "b"),
        (True, True, Kept.SERVER, "backup-1"),
        (False, True, None, "b"),
        (True, False, Kept.BUCKET, "has no bucket for backups: backup.bucket is false"),
        (False, True, Kept.SERVER, "has no backup server: backup.server is false"),
        (False, False, None, "has no backups: backup.server and backup.bucket are false"),
    ],
)
def test_backups_are_read_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, *, server: bool, bucket: bool, wanted: Kept | None, found: str
) -> None:
    made: dict[str, Any] = {"servers": {"db-1": {"role": "db"}, **({"backup-1": {"role": "backup"}} if server else {})}}
    if bucket:
        made["backupBucket"] = {"name": "b", "region": "eu-central-1"}
    monkeypatch.setattr(Bucket, "of", lambda name, *_: Bucket(name, None))
    stack, servers = Outputs("test", Path(), Path(), made), Servers([], "")
    if "has no" in found:
        with pytest.raises(OperatorError, match=found):
            place_of(stack, servers, wanted)
    else:
        place = place_of(stack, servers, wanted)
        assert place == (BackupServer(servers, found) if found == "backup-1" else Bucket(found, None))
