"""The instance metadata service, version 2, in a VPC's router: who asks, it knows by the address that asks.

(Amazon EC2 user guide, "Use the Instance Metadata Service to access instance metadata".)
"""

import ctypes
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rehearsal.aws.endpoints import METADATA

_LONGEST = 21600
_ROLES = "/latest/meta-data/iam/security-credentials/"
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Credentials:
    """What a role's session is known by, until it `expires`."""

    key: str
    secret: str
    token: str
    expires: datetime


@dataclass(frozen=True)
class Instance:
    """What the service knows of an instance: its role, if it has one, and how it may be asked."""

    role: str | None
    needs_token: bool
    hops: int
    is_on: bool


Find = Callable[[str], Instance | None]
"""The instance with this private address."""
Assume = Callable[[str, str], Credentials | None]
"""New credentials of a role for who has this address; None where the role isn't for instances."""


class MetadataService(ThreadingHTTPServer):
    """Answers the instances of one VPC."""

    daemon_threads = True

    def __init__(self, namespace: Path, find: Find, assume: Assume) -> None:
        """Listen in a network namespace, which must have the service's address."""
        super().__init__((METADATA, 80), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listen_in(namespace, METADATA, 80)
        self.find, self._assume = find, assume
        # By address: tokens with their ends, and credentials.
        self.tokens: dict[tuple[str, str], float] = {}
        self._credentials: dict[tuple[str, str], Credentials] = {}

    def credentials(self, address: str, role: str) -> Credentials | None:
        """The instance's credentials, new ones a while before the old ones end."""
        known = self._credentials.get((address, role))
        if known is None or known.expires - datetime.now(UTC) < timedelta(minutes=15):
            known = self._assume(address, role)
            if known is not None:
                self._credentials[address, role] = known
        return known


class _Handler(BaseHTTPRequestHandler):
    server: MetadataService
    timeout = 15

    def do_PUT(self) -> None:
        instance = self.server.find(self.client_address[0])
        seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if instance is None or not instance.is_on or "X-Forwarded-For" in self.headers:
            self._answer(403)
        elif self.path != "/latest/api/token":
            self._answer(404)
        elif not seconds.isdigit() or not 1 <= int(seconds) <= _LONGEST:
            self._answer(400)
        else:
            token = secrets.token_urlsafe(40)
            self.server.tokens[self.client_address[0], token] = time.monotonic() + int(seconds)
            # The answer reaches nobody who is further away.
            self.connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, instance.hops)
            self._answer(200, token)

    def do_GET(self) -> None:
        address = self.client_address[0]
        instance = self.server.find(address)
        token = self.headers.get("X-aws-ec2-metadata-token", "")
        if instance is None or not instance.is_on:
            self._answer(403)
        elif self.server.tokens.get((address, token), 0) < time.monotonic() and (token or instance.needs_token):
            self._answer(401)
        elif instance.role is None:
            self._answer(404)
        elif self.path in {_ROLES, _ROLES.rstrip("/")}:
            self._answer(200, instance.role)
        elif self.path == _ROLES + instance.role and (found := self.server.credentials(address, instance.role)):
            self._answer(200, _document(found))
        else:
            self._answer(404)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""

    def _answer(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def listen_in(namespace: Path, address: str, port: int) -> socket.socket:
    """A socket that listens in another network namespace: the one that its thread was in when it was made."""

    def make() -> socket.socket:
        descriptor = os.open(namespace, os.O_RDONLY)
        try:
            if _LIBC.setns(descriptor, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(namespace))
        finally:
            os.close(descriptor)
        return socket.create_server((address, port))

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def _document(found: Credentials) -> str:
    moment = "%Y-%m-%dT%H:%M:%SZ"
    return json.dumps(
        {
            "Code": "Success",
            "LastUpdated": datetime.now(UTC).strftime(moment),
            "Type": "AWS-HMAC",
            "AccessKeyId": found.key,
            "SecretAccessKey": found.secret,
            "Token": found.token,
            "Expiration": found.expires.strftime(moment),
        },
        indent=1,
    )
