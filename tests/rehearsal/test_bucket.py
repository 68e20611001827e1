"""Backups in a bucket: what the database server can do there and what not, and that they come back (guide, 3.11.2)."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from rehearsal.aws import endpoints
from tests.rehearsal.backups import SPOOL, back_up, waiting
from tests.rehearsal.conftest import Rehearsal, new_rehearsal
from tests.rehearsal.people import for_a_while
from tests.rehearsal.support import boots, resources, until

STACK = "aws-local"
ROLES = "http://169.254.169.254/latest/meta-data/iam/security-credentials/"
TOKEN = "curl -sS -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token"


def bring_up(rehearsal: Rehearsal, **backup: bool) -> None:
    rehearsal.configure("backup", backup)
    rehearsal.make("up")


# Every change has a boot, a drill and all that an intruder would try; that takes a minute and a half.
nightly = pytest.mark.nightly("two minutes more")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """A stack whose backups are in a bucket, and nowhere else."""
    with pytest.MonkeyPatch.context() as patch:
        for rehearsal in new_rehearsal(tmp_path_factory.mktemp("rehearsals"), patch, STACK):
            bring_up(rehearsal, server=False, bucket=True)
            yield rehearsal


def operator(up: Rehearsal) -> Any:  # noqa: ANN401 - made by boto3 at run time
    """S3, with the credentials that the operator's commands have."""
    environment = up.stack().environment
    return boto3.client(
        "s3",
        region_name="eu-central-1",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        verify=environment["AWS_CA_BUNDLE"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )


def bucket(up: Rehearsal) -> str:
    name: str = up.outputs()["backupBucket"]["name"]
    return name


def versions(up: Rehearsal) -> list[dict[str, Any]]:
    """Every version, those of one object from the newest to the oldest."""
    found: list[dict[str, Any]] = operator(up).list_object_versions(Bucket=bucket(up))["Versions"]
    return found


def runs(up: Rehearsal) -> list[str]:
    """The backups that are complete, oldest first."""
    return sorted({one["Key"][:16] for one in versions(up) if one["Key"].endswith(".manifest.json")})


def drill(up: Rehearsal) -> str:
    return up.uds("backup", "drill", STACK).stdout


def as_root(up: Rehearsal, script: str, *arguments: str) -> str:
    """A program that uses what the database server is, as whoever broke into it would."""
    return up.sudo("db-1", f"python3 - {' '.join(arguments)} <<'END'\n{script}\nEND").stdout


# By path: another bucket's own name would be asked for in the real world.
CLIENT = """
import datetime, json, sys
import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

bucket, key, version = sys.argv[1:]
s3 = boto3.client(
    "s3",
    region_name="eu-central-1",
    verify="/etc/ssl/certs/ca-certificates.crt",
    config=Config(s3={"addressing_style": "path"}),
)
one = {"Bucket": bucket, "Key": key}
"""

ATTEMPTS = f"""{CLIENT}
soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1)
rule = {{"ID": "all", "Status": "Enabled", "Filter": {{"Prefix": ""}}, "Expiration": {{"Days": 1}}}}
block = {{"BlockPublicAcls": False, "BlockPublicPolicy": False}}
source = f"{{bucket}}/{{key}}"
attempts = {{
    "see buckets": lambda: s3.list_buckets(),
    "see objects": lambda: s3.list_objects_v2(Bucket=bucket),
    "see versions": lambda: s3.list_object_versions(Bucket=bucket),
    "read": lambda: s3.get_object(**one),
    "read a version": lambda: s3.get_object(**one, VersionId=version),
    "ask for": lambda: s3.head_object(**one),
    "copy": lambda: s3.copy_object(Bucket=bucket, Key="copy", CopySource=source, ChecksumAlgorithm="SHA256"),
    "delete": lambda: s3.delete_object(**one),
    "delete a version": lambda: s3.delete_object(**one, VersionId=version),
    "bypass the lock": lambda: s3.delete_object(**one, VersionId=version, BypassGovernanceRetention=True),
    "shorten the lock": lambda: s3.put_object_retention(
        **one,
        VersionId=version,
        Retention={{"Mode": "GOVERNANCE", "RetainUntilDate": soon}},
        BypassGovernanceRetention=True,
    ),
    "add with a lock of its own": lambda: s3.put_object(
        Bucket=bucket, Key="own", Body=b"x", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=soon
    ),
    "add for everybody": lambda: s3.put_object(Bucket=bucket, Key="own", Body=b"x", ACL="public-read"),
    "add elsewhere": lambda: s3.put_object(Bucket="somebody-elses", Key="own", Body=b"x"),
    "change the lock": lambda: s3.put_object_lock_configuration(
        Bucket=bucket, ObjectLockConfiguration={{"ObjectLockEnabled": "Enabled"}}
    ),
    "change the lifecycle": lambda: s3.put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration={{"Rules": [rule]}}
    ),
    "change the policy": lambda: s3.put_bucket_policy(Bucket=bucket, Policy="{{}}"),
    "stop versions": lambda: s3.put_bucket_versioning(
        Bucket=bucket, VersioningConfiguration={{"Status": "Suspended"}}
    ),
    "open it": lambda: s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=block),
    "delete it": lambda: s3.delete_bucket(Bucket=bucket),
}}
found = {{}}
for what, attempt in attempts.items():
    try:
        attempt()
        found[what] = "done"
    except ClientError as error:
        found[what] = error.response["ResponseMetadata"]["HTTPStatusCode"]
several = s3.delete_objects(Bucket=bucket, Delete={{"Objects": [{{"Key": key, "VersionId": version}}]}})
found["delete several"] = 403 if several["Errors"][0]["Code"] == "AccessDenied" else several
print(json.dumps(found))
"""


def test_backups_go_to_the_bucket_and_restore(up: Rehearsal) -> None:
    # The first one was made with the servers, before the demo's table.
    (first,) = runs(up)
    assert back_up(up).status == 0
    assert waiting(up) == []
    told = drill(up)
    assert f"restored from {max(runs(up))}" in told
    assert first not in told
    assert "The newest backup restores" in told


def test_root_on_the_database_server_can_add_and_nothing_else(up: Rehearsal) -> None:
    before = versions(up)
    oldest = before[-1]
    found = json.loads(as_root(up, ATTEMPTS, bucket(up), oldest["Key"], oldest["VersionId"]))
    assert found == dict.fromkeys(found, 403)
    assert versions(up) == before
    # Nor does anybody get in who isn't known, or without TLS.
    address = endpoints.address(up.realm().network)
    status = "curl -s -o /dev/null -w '%{http_code}' -m 5"
    for name in (f"s3.eu-central-1.amazonaws.com/{bucket(up)}", f"{bucket(up)}.s3.eu-central-1.amazonaws.com/"):
        assert up.sudo("db-1", f"{status} https://{name}").stdout == "403"
        assert up.sudo("db-1", f"{status} http://{name}; true").stdout == "000"
    assert up.sudo("db-1", "getent hosts s3.eu-central-1.amazonaws.com").stdout.split()[0] == address


@nightly
def test_backups_are_listed_and_fetched(up: Rehearsal, tmp_path: Path) -> None:
    up.uds("backup", "now", STACK)
    *_, newest = found = runs(up)
    listed = up.uds("backup", "list", STACK, "--from", "bucket").stdout
    assert [one for one in (*found, "production") if one not in listed] == []
    up.uds("backup", "fetch", STACK, newest, "--to", str(tmp_path))
    assert (tmp_path / f"{newest}_production.sql.zst.age").read_bytes().startswith(b"age-encryption.org/v1\n")
    refused = up.uds("backup", "list", STACK, "--from", "server", check=False)
    assert "has no backup server" in refused.stderr


@nightly
def test_what_is_put_over_a_backup_changes_nothing(up: Rehearsal, tmp_path: Path) -> None:
    run = runs(up)[-1]
    keys = {one["Key"] for one in versions(up) if one["Key"].startswith(run)}
    junk = f"{CLIENT}\ns3.put_object(**one, Body=b'{{}}', ChecksumAlgorithm='SHA256')"
    for key in keys:
        as_root(up, junk, bucket(up), key, "-")
    newest = {one["Key"]: one["Size"] for one in versions(up) if one["IsLatest"]}
    assert {newest[key] for key in keys} == {2}
    # Somebody with more rights in the account hides all of it as well.
    for key in keys:
        operator(up).delete_object(Bucket=bucket(up), Key=key)
    told = drill(up)
    assert f"restored from {run}" in told
    assert "The newest backup restores" in told
    up.uds("backup", "fetch", STACK, run, "--to", str(tmp_path))
    assert json.loads((tmp_path / f"{run}.manifest.json").read_text())["id"] == run


@nightly
def test_a_version_is_deleted_only_by_who_may_pass_the_lock_and_means_to(up: Rehearsal) -> None:
    as_root(up, f"{CLIENT}\ns3.put_object(**one, Body=b'x', ChecksumAlgorithm='SHA256')", bucket(up), "junk", "-")
    (junk,) = (one for one in versions(up) if one["Key"] == "junk")
    version = {"Bucket": bucket(up), "Key": "junk", "VersionId": junk["VersionId"]}
    with pytest.raises(ClientError, match="AccessDenied"):
        operator(up).delete_object(**version)
    operator(up).delete_object(**version, BypassGovernanceRetention=True)
    assert not [one for one in versions(up) if one["Key"] == "junk"]


@nightly
def test_only_root_on_the_database_server_is_told_who_it_is(up: Rehearsal) -> None:
    role = f"""curl -sS -m 5 -H "X-aws-ec2-metadata-token: $({TOKEN})" {ROLES}"""
    assert up.sudo("db-1", role).stdout.startswith("role-")
    # Others on the same server don't get that far, by whichever family.
    for account in ("deploy", "nobody", "mysql"):
        asked = up.sudo("db-1", f"runuser -u {account} -- {TOKEN}; echo $?").stdout
        # 7: refused, 28: no answer.
        assert asked.strip() in {"7", "28"}, account
    # Without a token nothing is told, and nothing at all to a server that has no role.
    status = "curl -s -o /dev/null -w '%{http_code}' -m 5"
    assert up.sudo("db-1", f"{status} {ROLES}").stdout == "401"
    told = up.sudo("app-1", f"""{status} -H "X-aws-ec2-metadata-token: $({TOKEN})" {ROLES}""")
    assert told.stdout == "404"


@nightly
def test_while_the_bucket_is_out_of_reach_backups_wait(up: Rehearsal) -> None:
    before = runs(up)
    route = f"unreachable {endpoints.address(up.realm().network)}"
    with for_a_while(up, "db-1", f"ip route add {route}", f"ip route del {route}"):
        done = back_up(up)
        assert done.status == 1
        assert "can't be reached" in done.said
        assert f"1 encrypted backups wait in {SPOOL}" in done.said
        assert "alert, critical: Backup FAILED" in done.said
        assert len([name for name in waiting(up) if name.endswith(".manifest.json")]) == 1
    done = back_up(up)
    assert (done.status, "alert, info: Backup made" in done.said) == (0, True)
    assert waiting(up) == []
    assert len(runs(up)) == len(before) + 2


@nightly
def test_a_large_file_goes_in_parts_and_comes_back(up: Rehearsal) -> None:
    fill = """
    mariadb -e 'CREATE TABLE production.bulk (raw LONGBLOB)'
    for _ in 1 2 3; do
        hex=$(head -c 8000000 /dev/urandom | od -An -v -tx1 | tr -d ' \\n')
        echo "INSERT INTO production.bulk VALUES (X'$hex');"
    done | mariadb --max-allowed-packet=64M
    """
    with for_a_while(up, "db-1", fill, "mariadb -e 'DROP TABLE production.bulk'"):
        assert back_up(up).status == 0
        large = max(versions(up), key=lambda one: int(one["Size"]))
        assert large["Size"] > 20_000_000
        # How S3 says that an object came in parts.
        assert large["ETag"].strip('"').endswith("-2")
        assert "The newest backup restores" in drill(up)


@nightly
def test_a_run_changes_nothing_and_one_after_a_kill_makes_the_bucket_again(up: Rehearsal) -> None:
    up.make("up", "--expect-no-changes")
    network = up.realm().network
    process = endpoints._process(network)
    assert process
    os.kill(process, signal.SIGKILL)
    until(lambda: endpoints._process(network) is None)
    again = up.make("up", "--expect-no-changes")
    assert "S3 had ended: its buckets are made again" in again.stderr
    assert "Versions" not in operator(up).list_object_versions(Bucket=bucket(up))
    assert back_up(up).status == 0
    assert "The newest backup restores" in drill(up)


@nightly
def test_nothing_is_left(up: Rehearsal) -> None:
    socket = Path(endpoints.control(up.realm().network))
    assert socket.exists()
    up.make("down")
    assert not socket.exists()
    running = subprocess.run(["pgrep", "-f", f"rehearsal.aws.services {up.workspace}"], check=False)
    assert running.returncode == 1


@pytest.mark.nightly("one more stack, brought up twice")
def test_a_bucket_that_comes_later_and_goes_again_leaves_the_servers_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for up in new_rehearsal(tmp_path / "rehearsals", monkeypatch, STACK):
        bring_up(up, server=False, bucket=False)
        assert endpoints._process(up.realm().network) is None
        before = boots(up.realm())
        bring_up(up, server=False, bucket=True)
        assert boots(up.realm()) == before
        up.uds("backup", "now", STACK)
        assert "The newest backup restores" in drill(up)
        # Pulumi doesn't delete it: what is in it may be all that is left.
        up.configure("backup", {"bucket": False})
        refused = up.make("up", check=False)
        assert "protect" in refused.stdout + refused.stderr
        assert "backup-bucket" in resources(up)
