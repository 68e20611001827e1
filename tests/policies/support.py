"""Evaluates policies in this process, as the engine does: each one on each resource, then on the stack."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pulumi_policy import (
    Policy,
    PolicyCustomTimeouts,
    PolicyResource,
    PolicyResourceOptions,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)
from pulumi_policy.proxy import unknown_checking_proxy

from policies.pack import EXCEPTIONS, UNDECIDED, policies
from tests.unit.program import Program, plain

Config = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Made:
    """A resource of an example. `links` are property -> names of the resources that it is made of."""

    type: str
    name: str
    props: Mapping[str, Any] = field(default_factory=dict)
    links: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    protect: bool = False
    ignored: tuple[str, ...] = ()
    parent: str | None = None


@dataclass
class Verdict:
    """What the pack said: policy -> its messages, for policies that found something."""

    said: dict[str, list[str]] = field(default_factory=dict)

    @property
    def violations(self) -> dict[str, list[str]]:
        return {name: texts for name, texts in self.said.items() if name not in (EXCEPTIONS, UNDECIDED)}

    @property
    def names(self) -> set[str]:
        return set(self.violations)

    @property
    def undecided(self) -> dict[str, list[str]]:
        """The policies that met a value which isn't known yet, and on which resources."""
        lines = "\n".join(self.said.get(UNDECIDED, [])).splitlines()
        return {policy: names.split(", ") for policy, _, names in (line.partition(": ") for line in lines)}

    @property
    def exceptions(self) -> list[str]:
        return "\n".join(self.said.get(EXCEPTIONS, [])).splitlines()


def judge(resources: Iterable[Made], config: Config | None = None, *, only: str | None = None) -> Verdict:
    """What the pack, or one policy of it, says of these resources."""
    made, config, verdict = list(resources), config or {}, Verdict()
    for policy in policies():
        if only and policy.name not in (only, EXCEPTIONS, UNDECIDED):
            continue
        if isinstance(policy, ResourceValidationPolicy):
            if policy.has_validation():
                for one in made:
                    _ask(policy, arguments(one, config.get(policy.name)), verdict)
        elif isinstance(policy, StackValidationPolicy):
            _ask(policy, StackValidationArgs(_linked(made), config.get(policy.name)), verdict)
    return verdict


def arguments(one: Made, config: Mapping[str, Any] | None = None) -> ResourceValidationArgs:
    """A resource as a policy gets it."""
    props = unknown_checking_proxy(dict(one.props))
    return ResourceValidationArgs(one.type, props, one.name, one.name, _options(one), None, config)


def of_program(program: Program) -> list[Made]:
    """The resources of a run of our own program."""
    registered = [*program.components, *program.resources.values()]
    names = {one.urn: f"{one.type}::{one.name}" for one in registered}
    return [
        Made(
            one.type,
            one.name,
            plain(one.inputs),
            {key: tuple(names[urn] for urn in urns) for key, urns in one.property_dependencies.items()},
            one.protect,
            one.ignored,
            names.get(one.parent),
        )
        for one in registered
    ]


def _ask(policy: Policy, args: Any, verdict: Verdict) -> None:  # noqa: ANN401 - either kind's
    def report(message: str, urn: str | None = None) -> None:
        del urn
        verdict.said.setdefault(policy.name, []).append(message)

    # An error here, or a value that isn't known, would end the policy for the resource: none may get out.
    policy.validate(args, report)  # type: ignore[attr-defined] # either kind has it


def _options(one: Made) -> PolicyResourceOptions:
    return PolicyResourceOptions(one.protect, list(one.ignored), None, [], PolicyCustomTimeouts(0, 0, 0), [])


def _linked(made: Iterable[Made]) -> list[PolicyResource]:
    found = {
        f"{one.type}::{one.name}": (
            one,
            PolicyResource(
                one.type,
                unknown_checking_proxy(dict(one.props)),
                f"{one.type}::{one.name}",
                one.name,
                _options(one),
                None,
                None,
                [],
                {},
            ),
        )
        for one in made
    }
    by_name = {one.name: resource for one, resource in found.values()} | {urn: pair[1] for urn, pair in found.items()}
    for one, resource in found.values():
        resource.parent = by_name[one.parent] if one.parent else None
        resource.property_dependencies = {
            key: [by_name[name] for name in names if name in by_name] for key, names in one.links.items()
        }
    return [resource for _one, resource in found.values()]
