"""The process behind AWS's names in a rehearsal: S3 and its permissions by moto, and the metadata service.

`python -m rehearsal.aws.services WORKSPACE`; `endpoints.py` starts, ends and tells it.
"""

import json
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, ip_interface
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

# Before moto is loaded: nobody may do anything that they aren't allowed to, from the first request on.
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"

import boto3
from botocore.exceptions import ClientError
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.iam.models import iam_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.sts.models import sts_backends
from werkzeug.serving import ThreadedWSGIServer

from components.catalogue import REGIONS
from rehearsal.aws import endpoints, permissions
from rehearsal.aws.endpoints import BUCKET, METADATA, PROFILE, ROLE, ROLE_POLICY
from rehearsal.aws.metadata import Credentials, Instance, MetadataService
from rehearsal.network import NAMESPACES
from rehearsal.podman import run
from rehearsal.realm import RESOURCES, ROUTERS, Realm
from rehearsal.store import RealmError, Record, write_atomically
from uds.certificates import Authority

_EVERYTHING = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
_OPERATOR = "operator"
_PARTITION = "aws"

Values = Mapping[str, Any]


class Account:
    """The AWS account of a realm, in moto's memory, made to be what the database says."""

    def __init__(self) -> None:
        """With one user, who may do everything: the operator."""
        self._iam = iam_backends[DEFAULT_ACCOUNT_ID][_PARTITION]
        self._iam.create_user("us-east-1", _OPERATOR)
        key = self._iam.create_access_key(_OPERATOR)
        self._iam.put_user_policy(_OPERATOR, "everything", _EVERYTHING)
        self.operator = (str(key.access_key_id), str(key.secret_access_key))
        self._done: dict[str, Record] = {}

    def make(self, records: Iterable[Record], client: Callable[[str, str], Any]) -> list[str]:
        """Make what is new, change what is different, remove what is gone; returns what could not be done.

        `client` gives boto3's for a service and a region.
        """
        wanted = {record["id"]: record for record in records if record["what"] in _MAKERS}
        problems = []
        for record in wanted.values():
            if self._done.get(record["id"]) != record:
                try:
                    _MAKERS[record["what"]](client, record)
                    self._done[record["id"]] = record
                except ClientError as error:
                    problems.append(f"{record['what']} {record['id']}: {error}")
        # What belongs to a bucket goes before it.
        for identifier in reversed([one for one in self._done if one not in wanted]):
            record = self._done.pop(identifier)
            if record["what"] in _REMOVERS:
                _REMOVERS[record["what"]](client, record)
        return problems

    def policies(self, key: str) -> list[str] | None:
        """The policies of the role whose session has this key; None where it's the operator's, or nobody's."""
        for session in sts_backends[DEFAULT_ACCOUNT_ID][_PARTITION].assumed_roles:
            if session.access_key_id == key:
                role = session.role_arn.rpartition("/")[2]
                names = self._iam.list_role_policies(role)
                return [self._iam.get_role_policy(role, name)[1] for name in names]
        return None

    def assume(self, role: str, name: str) -> Credentials | None:
        """A session of a role for an instance, if it trusts instances."""
        trust = json.loads(self._iam.get_role(role).assume_role_policy_document)
        statements = trust["Statement"] if isinstance(trust["Statement"], list) else [trust["Statement"]]
        if not any(
            one["Effect"] == "Allow" and "ec2.amazonaws.com" in str(one.get("Principal", {}).get("Service"))
            for one in statements
        ):
            return None
        arn = f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:role/{role}"
        sessions = sts_backends[DEFAULT_ACCOUNT_ID][_PARTITION]
        # What moto's own API would ask before is who is trusted, and it knows no services.
        made = sessions.assume_role("us-east-1", name, arn, "", 3600, "")
        return Credentials(
            str(made.access_key_id),
            str(made.secret_access_key),
            str(made.session_token),
            datetime.now(UTC) + timedelta(hours=1),
        )


class Guard:
    """Stands before moto: only signed requests, by who may do all that they ask for."""

    def __init__(self, account: Account) -> None:
        """Before this account."""
        self._account = account
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """A request, as WSGI has it."""
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        authorization = headers.get("authorization", "")
        scope = authorization.partition("Credential=")[2].partition(",")[0].split("/")
        # moto's own pages are for whoever runs it, and nobody does here.
        if (
            not authorization.startswith("AWS4-HMAC-SHA256 ")
            or len(scope) != 5
            or environ["PATH_INFO"].startswith("/moto-api")
            or not self._may(scope[0], environ, headers)
        ):
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        answer: Iterable[bytes] = self._moto(environ, start_response)
        return answer

    def _may(self, key: str, environ: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
        policies = self._account.policies(key)
        if policies is None:
            return True
        query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        # A bucket's own name stands before S3's, or in the path.
        host, path = headers.get("host", ""), environ["PATH_INFO"].lstrip("/")
        resource = path if host.startswith("s3.") else f"{host.partition('.s3.')[0]}/{path}"
        return all(
            permissions.allowed(policies, action, about or f"arn:aws:s3:::{resource}")
            for action, about in permissions.more_actions(environ["REQUEST_METHOD"], query, headers)
        )


class _Server(ThreadedWSGIServer):
    """With TLS, and a handshake in each connection's own thread: a slow one holds up nobody."""

    daemon_threads = True

    def __init__(self, address: str, application: Guard, context: ssl.SSLContext) -> None:
        super().__init__(address, 443, application, handler=_Quiet)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        # What requests are told they came by.
        self.ssl_context = context

    def handle_error(self, *_: object) -> None:
        """Who doesn't trust this server, or breaks off, is no news."""


class _Quiet(MotoRequestHandler):  # type: ignore[misc] # not read: see pyproject.toml
    timeout = 60

    def log(self, *_: object) -> None:
        """Nobody reads it."""


class Services:
    """All of them, of one realm."""

    def __init__(self, realm: Realm) -> None:
        """Not listening yet."""
        self._realm = realm
        self._folder = realm.store.folder / "aws"
        self._address = endpoints.address(realm.network)
        self._account = Account()
        self._metadata: dict[tuple[str, int], MetadataService] = {}

    def start(self) -> None:
        """S3 answers, and the operator's environment is written."""
        server = _Server(self._address, Guard(self._account), self._context())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        key, secret = self._account.operator
        environment = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_CA_BUNDLE": str(self._folder / "authority.pem"),
            "AWS_ENDPOINT_URL_S3": f"https://{self._address}",
            # Nothing of production's, whatever is in the operator's own files.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        write_atomically(endpoints.operator_file(self._realm.workspace), json.dumps(environment, indent=1))

    def answer(self, what: str) -> list[str]:
        """Do what `endpoints.py` asks for."""
        if what.startswith("holds "):
            bucket = what.removeprefix("holds ")
            found = self._client("s3", "us-east-1").list_object_versions(Bucket=bucket, MaxKeys=1)
            return [one["Key"] for one in (*found.get("Versions", ()), *found.get("DeleteMarkers", ()))]
        problems = self._account.make(self._realm.store.all(RESOURCES).values(), self._client)
        self._listen_in_routers()
        return problems

    def _client(self, service: str, region: str) -> Any:  # noqa: ANN401 - made by boto3 at run time
        key, secret = self._account.operator
        return boto3.client(
            service,
            region_name=region,
            endpoint_url=f"https://{self._address}",
            verify=str(self._folder / "authority.pem"),
            aws_access_key_id=key,
            aws_secret_access_key=secret,
        )

    def _listen_in_routers(self) -> None:
        present = {}
        for router in self._realm.store.all(ROUTERS):
            namespace = NAMESPACES / self._realm.network.router_namespace(router)
            # One that was made again is another.
            present[namespace.name, namespace.stat().st_ino] = namespace
        for gone in self._metadata.keys() - present.keys():
            self._metadata.pop(gone).shutdown()
        for key, namespace in present.items():
            if key not in self._metadata:
                run(["ip", "-n", namespace.name, "link", "set", "dev", "lo", "up"])
                run(["ip", "-n", namespace.name, "address", "replace", f"{METADATA}/32", "dev", "lo"])
                service = MetadataService(namespace, self._instance, lambda who, role: self._account.assume(role, who))
                self._metadata[key] = service
                threading.Thread(target=service.serve_forever, daemon=True).start()

    def _instance(self, address: str) -> Instance | None:
        for machine in self._realm.machines():
            if any(str(ip_interface(one).ip) == address for nic in machine.nics for one in nic.addresses):
                inputs = machine.details["inputs"]
                options = inputs.get("metadataOptions") or {}
                return Instance(
                    role=self._role(inputs.get("iamInstanceProfile")),
                    needs_token=options.get("httpTokens") == "required",
                    hops=options.get("httpPutResponseHopLimit", 1),
                    is_on=options.get("httpEndpoint") != "disabled",
                )
        return None

    def _role(self, profile: str | None) -> str | None:
        for record in self._realm.store.all(RESOURCES).values():
            if record["what"] == PROFILE and record["facts"]["name"] == profile:
                return str(record["inputs"]["role"])
        return None

    def _context(self) -> ssl.SSLContext:
        pem, authority_file = self._folder / "server.pem", self._folder / "authority.pem"
        if not pem.exists():
            authority = Authority.new("AWS, in a rehearsal")
            names = [f"{start}s3.{region}.amazonaws.com" for region in REGIONS["aws"] for start in ("", "*.")]
            certificate, key = authority.issue_server(names[0], IPv4Address(self._address), names[1:])
            write_atomically(authority_file, authority.certificate_pem)
            write_atomically(pem, key + certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        return context


def _role(client: Callable[[str, str], Any], record: Record) -> None:
    iam, name, policy = client("iam", "us-east-1"), record["facts"]["name"], record["inputs"]["assumeRolePolicy"]
    try:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=policy)
    except iam.exceptions.EntityAlreadyExistsException:
        iam.update_assume_role_policy(RoleName=name, PolicyDocument=policy)


def _role_policy(client: Callable[[str, str], Any], record: Record) -> None:
    client("iam", "us-east-1").put_role_policy(
        RoleName=record["inputs"]["role"], PolicyName=record["id"], PolicyDocument=record["inputs"]["policy"]
    )


def _no_role_policy(client: Callable[[str, str], Any], record: Record) -> None:
    client("iam", "us-east-1").delete_role_policy(RoleName=record["inputs"]["role"], PolicyName=record["id"])


def _bucket(client: Callable[[str, str], Any], record: Record) -> None:
    region = record["inputs"]["region"]
    s3 = client("s3", region)
    # The first region of all is named by naming none.
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    # It is there when only its tags have changed.
    with suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(
            Bucket=record["facts"]["bucket"],
            ObjectLockEnabledForBucket=bool(record["inputs"].get("objectLockEnabled")),
            **where,
        )


def _no_bucket(client: Callable[[str, str], Any], record: Record) -> None:
    client("s3", record["inputs"]["region"]).delete_bucket(Bucket=record["facts"]["bucket"])


def _setting(call: str, arguments: Callable[[Values], Values]) -> Callable[[Callable[[str, str], Any], Record], None]:
    """What a bucket's other resources are: a call about the bucket."""

    def make(client: Callable[[str, str], Any], record: Record) -> None:
        inputs = record["inputs"]
        getattr(client("s3", inputs["region"]), call)(Bucket=inputs["bucket"], **arguments(inputs))

    return make


def _lifecycle(rule: Values) -> Values:
    parts = {
        "Expiration": ("expiration", "days", "Days"),
        "NoncurrentVersionExpiration": ("noncurrentVersionExpiration", "noncurrentDays", "NoncurrentDays"),
        "AbortIncompleteMultipartUpload": (
            "abortIncompleteMultipartUpload",
            "daysAfterInitiation",
            "DaysAfterInitiation",
        ),
    }
    found = {name: {theirs: rule[section][key]} for name, (section, key, theirs) in parts.items() if section in rule}
    prefix = (rule.get("filter") or {}).get("prefix", "")
    return {"ID": rule["id"], "Status": rule["status"], "Filter": {"Prefix": prefix}, **found}


def _capital(values: Values, *names: str) -> Values:
    return {f"{name[0].upper()}{name[1:]}": values.get(name, False) for name in names}


# A bucket's policy is kept back: moto knows no conditions, and would take "nobody without TLS" for "nobody". There is
# nothing here that answers without TLS.
_MAKERS: dict[str, Callable[[Callable[[str, str], Any], Record], None]] = {
    ROLE: _role,
    ROLE_POLICY: _role_policy,
    BUCKET: _bucket,
    "bucket versioning": _setting(
        "put_bucket_versioning",
        lambda one: {"VersioningConfiguration": {"Status": one["versioningConfiguration"]["status"]}},
    ),
    "bucket object lock": _setting(
        "put_object_lock_configuration",
        lambda one: {
            "ObjectLockConfiguration": {
                "ObjectLockEnabled": "Enabled",
                "Rule": {
                    "DefaultRetention": {
                        "Mode": one["rule"]["defaultRetention"]["mode"],
                        "Days": one["rule"]["defaultRetention"]["days"],
                    }
                },
            }
        },
    ),
    "bucket encryption": _setting(
        "put_bucket_encryption",
        lambda one: {
            "ServerSideEncryptionConfiguration": {
                "Rules": [
                    {
                        "ApplyServerSideEncryptionByDefault": {
                            "SSEAlgorithm": rule["applyServerSideEncryptionByDefault"]["sseAlgorithm"]
                        }
                    }
                    for rule in one["rules"]
                ]
            }
        },
    ),
    "bucket access block": _setting(
        "put_public_access_block",
        lambda one: {
            "PublicAccessBlockConfiguration": _capital(
                one, "blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets"
            )
        },
    ),
    "bucket ownership": _setting(
        "put_bucket_ownership_controls",
        lambda one: {"OwnershipControls": {"Rules": [{"ObjectOwnership": one["rule"]["objectOwnership"]}]}},
    ),
    "bucket lifecycle": _setting(
        "put_bucket_lifecycle_configuration",
        lambda one: {"LifecycleConfiguration": {"Rules": [_lifecycle(rule) for rule in one["rules"]]}},
    ),
}
_REMOVERS = {
    ROLE_POLICY: _no_role_policy,
    BUCKET: _no_bucket,
    "bucket encryption": _setting("delete_bucket_encryption", lambda _: {}),
    "bucket access block": _setting("delete_public_access_block", lambda _: {}),
    "bucket ownership": _setting("delete_bucket_ownership_controls", lambda _: {}),
    "bucket lifecycle": _setting("delete_bucket_lifecycle", lambda _: {}),
}


def main(workspace: Path) -> None:
    """Serve until killed."""
    realm = Realm.open(workspace)
    services = Services(realm)
    services.start()
    path = Path(endpoints.control(realm.network))
    path.unlink(missing_ok=True)
    os.umask(0o177)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as stream:
                what = stream.readline().strip()
                # Nothing: somebody only wants to know whether this process is here.
                if what:
                    try:
                        answer = services.answer(what)
                    except (ClientError, RealmError, OSError) as error:
                        answer = [str(error)]
                    stream.write(json.dumps(answer) + "\n")
                    stream.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
