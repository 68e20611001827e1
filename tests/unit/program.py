"""Runs the whole program against a monitor that records what it is asked for, as the engine would be."""

import asyncio
import runpy
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped] # comes with Pulumi, untyped
from pulumi.runtime import mocks
from pulumi.runtime.config import set_all_config
from pulumi.runtime.settings import ROOT
from pulumi.runtime.stack import run_in_stack

from components.settings import PROJECT
from tests.unit.support import as_pulumi

PROGRAM = Path(__file__).parents[2] / "__main__.py"
STACK = "test"

# The servers that are reached through the bastion.
PRIVATE = {"db-1": "10.20.0.5", "backup-1": "10.20.0.6"}

# How values that are no JSON travel between a program and the engine (Pulumi's "Property values" reference).
_SIGNATURE = "4dabf18193072939515e22adb298388d"
_SECRET = "1b47061264138c4ac30d75fd1eb44270"
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"


@dataclass(frozen=True)
class Secret:
    """A value that the program marked as a secret."""

    value: Any


@dataclass(frozen=True)
class Registration:
    """A resource as the program registered it."""

    urn: str
    name: str
    type: str
    inputs: dict[str, Any]
    parent: str
    dependencies: frozenset[str]
    property_dependencies: dict[str, tuple[str, ...]]
    protect: bool
    ignored: tuple[str, ...]
    secret_outputs: frozenset[str]
    deleted_with: str


@dataclass
class Program:
    """What a run of the program came to."""

    resources: dict[str, Registration] = field(default_factory=dict)
    """What a provider makes, by name."""
    components: list[Registration] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    @property
    def commands(self) -> list[Registration]:
        """Everything that runs on a server."""
        return [resource for resource in self.resources.values() if resource.type == "command:remote:Command"]

    def of(self, server: str) -> dict[str, Registration]:
        """A server's resources, by what comes behind its name."""
        start = f"{server}-"
        return {name.removeprefix(start): found for name, found in self.resources.items() if name.startswith(start)}


# What AWS makes up for a resource, by its name.
_AWS: dict[str, Callable[[str], dict[str, Any]]] = {
    "aws:ec2/vpc:Vpc": lambda _: {"ipv6CidrBlock": "2001:db8:a00::/56"},
    "aws:ec2/subnet:Subnet": lambda _: {"availabilityZone": "eu-central-1b"},
    "aws:ec2/eip:Eip": lambda name: {
        "publicIp": public_ip(name.removesuffix("-address")),
        "allocationId": f"for {name}",
    },
    "aws:cloudwatch/logGroup:LogGroup": lambda name: {"arn": f"arn of {name}"},
    "aws:iam/role:Role": lambda name: {"arn": f"arn of {name}", "name": name},
    "aws:iam/instanceProfile:InstanceProfile": lambda name: {"name": f"{name}-1a2b3c4"},
    "aws:s3/bucket:Bucket": lambda name: {"arn": f"arn:aws:s3:::{name}-1a2b3c4", "bucket": f"{name}-1a2b3c4"},
}


class Cloud(mocks.Mocks):
    """Gives resources what a cloud would: ids that are numbers, public addresses, host keys."""

    def __init__(self, *, preview: bool) -> None:
        self._preview = preview

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        if not args.custom:
            return None, {}
        if self._preview:
            return "", args.inputs
        outputs: dict[str, Any] = {}
        if args.typ == "linode:index/instance:Instance":
            outputs = {"ipv4s": [public_ip(args.name.removesuffix("-instance"))]}
        elif args.typ in _AWS:
            outputs = _AWS[args.typ](args.name)
        elif args.typ == "command:remote:Command":
            # The comment behind the key is no part of the pin.
            key = host_key(args.name.removesuffix("-first-contact"))
            outputs = {"stdout": f"{key} root@host\nOpenSSH_10.0p2 Debian-7, OpenSSL 3.5.1 1 Jul 2025\n"}
        return str(resource_id(args.name)), {**args.inputs, **outputs}

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]] | None]:
        assert args.token == "aws:ssm/getParameter:getParameter", f"the program looks up {args.token}"
        return {"insecureValue": f"ami of {args.args['name']} in {args.args['region']}"}, []


def resource_id(name: str) -> int:
    """The id that the cloud gives a resource; the same in every run, so that runs can be compared."""
    return zlib.crc32(name.encode())


def public_ip(server: str) -> str:
    """The address that the cloud gives a server."""
    kind, number = server.split("-")
    # One of AWS is no server's: the NAT gateway's.
    return f"203.0.113.{(10 if kind == 'app' else 200) + int(number)}" if number.isdigit() else "203.0.113.250"


def host_key(server: str) -> str:
    """The host key that a server made for itself."""
    return f"ssh-ed25519 AAAAC3-{server}"


class _Monitor(mocks.MockMonitor):
    def __init__(self, cloud: Cloud, program: Program) -> None:
        super().__init__(cloud)
        self.program = program

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802, ANN401 - the engine's name and message
        response = super().RegisterResource(request)  # type: ignore[no-untyped-call] # as Pulumi wrote it
        if request.type != "pulumi:pulumi:Stack":
            registration = Registration(
                urn=response.urn,
                name=request.name,
                type=request.type,
                inputs=_value(MessageToDict(request.object)),
                parent=request.parent,
                dependencies=frozenset(request.dependencies),
                property_dependencies={name: tuple(found.urns) for name, found in request.propertyDependencies.items()},
                protect=request.protect,
                ignored=tuple(request.ignoreChanges),
                secret_outputs=frozenset(request.additionalSecretOutputs),
                deleted_with=request.deletedWith,
            )
            if request.custom:
                self.program.resources[request.name] = registration
            else:
                self.program.components.append(registration)
        return response

    def RegisterResourceOutputs(self, request: Any) -> Any:  # noqa: N802, ANN401 - the engine's name and message
        if "::pulumi:pulumi:Stack::" in request.urn:
            self.program.outputs |= _value(MessageToDict(request.outputs))
        return super().RegisterResourceOutputs(request)  # type: ignore[no-untyped-call] # as Pulumi wrote it


def run(
    config: Mapping[str, object],
    *,
    preview: bool = False,
    program: Program | None = None,
    main: Callable[[], None] | None = None,
) -> Program:
    """Run the program with this configuration, as `pulumi up`, or as `pulumi preview` of a stack that isn't there yet.

    `program` is filled while it runs, so that it can be looked at after an error. `main` runs in place of the whole.

    Raises:
        pulumi.RunError: the program's own.
    """
    program = program or Program()
    asyncio.run(_run(config, _Monitor(Cloud(preview=preview), program), main or _main, preview=preview))
    return program


async def _run(config: Mapping[str, object], monitor: _Monitor, main: Callable[[], None], *, preview: bool) -> None:
    mocks.set_mocks(monitor.mocks, PROJECT, STACK, preview=preview, monitor=monitor)
    set_all_config(as_pulumi(config))
    # `set_mocks` has made a root of its own; this makes another, waits for all that the program asks for, and raises
    # what goes wrong in there.
    ROOT.set(None)
    await run_in_stack(main)


def _main() -> None:
    runpy.run_path(str(PROGRAM))


def texts(value: object) -> Iterator[str]:
    """Every text in a value that isn't inside a secret."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def plain(value: Any) -> Any:  # noqa: ANN401 - any value
    """The value without the marks of secrets."""
    if isinstance(value, Secret):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def _value(value: Any) -> Any:  # noqa: ANN401 - any value
    if isinstance(value, list):
        return [_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get(_SIGNATURE) == _SECRET:
        return Secret(_value(value["value"]))
    return {key: _value(item) for key, item in value.items()}
