"""AWS's servers in a rehearsal: what a machine's disk is told of S3, and whom the metadata service answers."""

import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from rehearsal.aws import metadata
from rehearsal.aws.endpoints import prepare_disk
from rehearsal.aws.metadata import Credentials, Instance, MetadataService
from rehearsal.store import Store

AUTHORITY = "-----BEGIN CERTIFICATE-----\nMIIBown\n-----END CERTIFICATE-----\n"
ROLES = "/latest/meta-data/iam/security-credentials/"


def disk(tmp_path: Path) -> Path:
    root = tmp_path / "disk"
    (root / "etc/ssl/certs").mkdir(parents=True)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc/ssl/certs/ca-certificates.crt").write_text("public\n")
    return root


def test_a_disk_knows_s3_and_trusts_it_once_however_often_it_is_told(tmp_path: Path) -> None:
    root, store = disk(tmp_path), Store(tmp_path / "cloud")
    for hosts in ("198.18.7.2 s3.x", "198.18.7.2 s3.x b.s3.x"):
        (store.folder / "machine.json").write_text(json.dumps({"hosts": hosts, "authority": AUTHORITY}))
        prepare_disk(root, store)
        lines = (root / "etc/hosts").read_text().splitlines()
        assert lines[0] == "127.0.0.1 localhost"
        assert [line.partition(" #")[0] for line in lines[1:]] == [hosts]
        assert (root / "etc/ssl/certs/ca-certificates.crt").read_text() == f"public\n{AUTHORITY}"
    # The same for what renews the list some day.
    assert (root / "usr/local/share/ca-certificates/aws-in-a-rehearsal.crt").read_text() == AUTHORITY
    (store.folder / "machine.json").write_text(json.dumps({"hosts": "", "authority": AUTHORITY}))
    prepare_disk(root, store)
    assert (root / "etc/hosts").read_text() == "127.0.0.1 localhost\n"


def test_without_a_bucket_a_disk_is_left_alone(tmp_path: Path) -> None:
    root = disk(tmp_path)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    prepare_disk(root, Store(tmp_path / "cloud"))
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


class Service:
    """The metadata service, on this machine's own address."""

    def __init__(self) -> None:
        self.instance: Instance | None = Instance(role="writer", needs_token=True, hops=1, is_on=True)
        self.hours = 1.0
        self.assumed: list[str] = []
        self.server = MetadataService(Path(), lambda _: self.instance, self._assume)
        self.port = self.server.socket.getsockname()[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def _assume(self, _address: str, role: str) -> Credentials:
        self.assumed.append(role)
        return Credentials(
            f"key{len(self.assumed)}", "secret", "token", datetime.now(UTC) + timedelta(hours=self.hours)
        )

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def token(self) -> str:
        status, text = self.ask("/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
        assert status == 200
        return text


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(metadata, "listen_in", lambda *_: socket.create_server(("127.0.0.1", 0)))
    found = Service()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_only_with_a_token_is_anything_told(service: Service) -> None:
    assert service.ask(ROLES) == (401, "")
    assert service.ask(ROLES, X_aws_ec2_metadata_token="guessed") == (401, "")
    token = service.token()
    assert service.ask(ROLES, X_aws_ec2_metadata_token=token) == (200, "writer")
    status, text = service.ask(f"{ROLES}writer", X_aws_ec2_metadata_token=token)
    told: dict[str, Any] = json.loads(text)
    assert (status, told["Code"], told["AccessKeyId"]) == (200, "Success", "key1")
    assert service.ask(f"{ROLES}another", X_aws_ec2_metadata_token=token) == (404, "")
    service.instance = Instance(role="writer", needs_token=False, hops=1, is_on=True)
    assert service.ask(ROLES) == (200, "writer")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({"X_aws_ec2_metadata_token_ttl_seconds": "21601"}, 400),
        # Somebody's program that passes requests on.
        ({"X_aws_ec2_metadata_token_ttl_seconds": "60", "X_Forwarded_For": "192.0.2.1"}, 403),
    ],
)
def test_a_token_is_asked_for_as_aws_wants_it(service: Service, headers: dict[str, str], status: int) -> None:
    assert service.ask("/latest/api/token", "PUT", **headers) == (status, "")


def test_who_has_no_role_or_is_nobody_is_told_nothing(service: Service) -> None:
    token = service.token()
    service.instance = Instance(role=None, needs_token=True, hops=1, is_on=True)
    assert service.ask(ROLES, X_aws_ec2_metadata_token=token) == (404, "")
    for instance in (None, Instance(role="writer", needs_token=True, hops=1, is_on=False)):
        service.instance = instance
        assert service.ask(ROLES, X_aws_ec2_metadata_token=token) == (403, "")


def test_credentials_are_renewed_before_they_end(service: Service) -> None:
    token = service.token()
    for _ in range(2):
        service.ask(f"{ROLES}writer", X_aws_ec2_metadata_token=token)
    assert service.assumed == ["writer"]
    service.hours = 0.1
    service.server._credentials.clear()
    for _ in range(2):
        service.ask(f"{ROLES}writer", X_aws_ec2_metadata_token=token)
    assert service.assumed == ["writer"] * 3
