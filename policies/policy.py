"""What a policy is here: one rule of the guide, and how it becomes a CrossGuard policy.

A rule looks at one resource at a time, whole-stack rules too: so a value that a preview doesn't know yet hides this
rule on this resource and nothing else, and an exception is always about one resource.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, Protocol, TypeAlias, TypedDict, TypeVar, Unpack

from pulumi_policy import (
    EnforcementLevel,
    Policy,
    PolicyComplianceFramework,
    PolicyConfigSchema,
    PolicyResource,
    PolicyResourceOptions,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    Severity,
    StackValidationArgs,
    StackValidationPolicy,
)
from pulumi_policy.proxy import UnknownValueError

GUIDE = "https://fusionauth.io/learn/expert-advice/security/guide-to-user-data-security"

T = TypeVar("T")

Properties: TypeAlias = Mapping[str, Any]
"""Raises UnknownValueError where a value is read that a preview doesn't know."""

Config: TypeAlias = Mapping[str, Any]
"""A rule's options, with their defaults."""

Stack: TypeAlias = Sequence[PolicyResource]


class Resource(Protocol):
    """What the engine tells of a resource, to rules of resources and of stacks alike."""

    resource_type: str
    props: Properties
    urn: str
    name: str
    opts: PolicyResourceOptions


Violations: TypeAlias = Iterator[str]
Check: TypeAlias = Callable[[Resource, Config], Violations]
StackCheck: TypeAlias = Callable[[PolicyResource, Config, Stack], Violations]
Remedy: TypeAlias = Callable[[ResourceValidationArgs], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Option:
    """A setting of a rule: its JSON schema type, default and meaning."""

    default: Any
    meaning: str

    def schema(self) -> dict[str, Any]:
        """As CrossGuard wants it."""
        base: dict[str, Any] = {"description": self.meaning, "default": self.default}
        if isinstance(self.default, list):
            return base | {"type": "array", "items": {"type": "integer" if _numbers(self.default) else "string"}}
        return base | {"type": "integer" if isinstance(self.default, int) else "string"}


def _numbers(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, int) for value in values)


_EXCEPTIONS = {
    "description": "Resources (by name) that may break this rule, each with the reason, which every run prints",
    "type": "object",
    "additionalProperties": {"type": "string", "minLength": 10},
    "default": {},
}


@dataclass
class Run:
    """What the pack keeps to the end of a run, to say it once: what about -> resources."""

    exceptions: dict[str, list[str]] = field(default_factory=dict)
    undecided: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """One rule.

    `name` is for configurations and never changes. `section` is the guide's. `steps` say how to mend it. `types` are
    the resource types (tokens) that it looks at. `remedy` gives properties that are right beyond doubt; it is asked at
    the level "remediate" only. Without a check, it is all that there is to the rule.
    """

    name: str
    description: str
    guideline: str
    section: str
    severity: Severity
    steps: str
    types: Collection[str]
    check: Check | None = None
    stack_check: StackCheck | None = None
    remedy: Remedy | None = None
    level: EnforcementLevel = EnforcementLevel.MANDATORY
    options: Mapping[str, Option] = field(default_factory=dict)

    def policy(self, run: Run) -> Policy:
        """As CrossGuard takes it."""
        common: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "enforcement_level": self.level,
            "config_schema": PolicyConfigSchema(
                {**{name: option.schema() for name, option in self.options.items()}, "exceptions": _EXCEPTIONS}
            ),
            "severity": self.severity,
            "framework": PolicyComplianceFramework(
                name="Guide to User Data Security", version="2018", reference=self.section, specification=self.guideline
            ),
            "remediation_steps": self.steps,
            "url": GUIDE,
        }
        if self.stack_check:
            return StackValidationPolicy(validate=self._validate_stack(self.stack_check, run), **common)
        validate = self._validate(self.check, run) if self.check else None
        remedy: Any = self._remediate()  # the SDK's type leaves out that the answer may come at once
        return ResourceValidationPolicy(validate=validate, remediate=remedy, **common)

    def _validate(self, check: Check, run: Run) -> Callable[[ResourceValidationArgs, ReportViolation], None]:
        def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
            if args.resource_type in self.types:
                config = self._config(args.get_config())
                self._report(args, check(args, config), config, report, run)

        return validate

    def _validate_stack(self, check: StackCheck, run: Run) -> Callable[[StackValidationArgs, ReportViolation], None]:
        def validate(args: StackValidationArgs, report: ReportViolation) -> None:
            config = self._config(args.get_config())
            for resource in args.resources:
                if resource.resource_type in self.types:
                    self._report(resource, check(resource, config, args.resources), config, report, run)

        return validate

    def _remediate(self) -> Remedy | None:
        remedy = self.remedy
        if remedy is None:
            return None

        def remediate(args: ResourceValidationArgs) -> Mapping[str, Any] | None:
            excepted = args.name in self._config(args.get_config())["exceptions"]
            return remedy(args) if args.resource_type in self.types and not excepted else None

        return remediate

    def _config(self, given: Config | None) -> Config:
        # The engine fills in defaults; others that evaluate the policy don't.
        return {name: option.default for name, option in self.options.items()} | {"exceptions": {}} | dict(given or {})

    def _report(
        self,
        resource: Resource,
        violations: Iterable[str],
        config: Config,
        report: ReportViolation,
        run: Run,
    ) -> None:
        reason = config["exceptions"].get(resource.name)
        try:
            for text in violations:
                if reason is None:
                    report(f"{resource.name}: {text}.\n{self.steps} (guide, {self.section})", resource.urn)
                else:
                    _remember(run.exceptions, f"{self.name}, because {reason}", resource)
        except UnknownValueError:
            # Not the engine's way, which would say it in a paragraph for each rule on each resource.
            _remember(run.undecided, self.name, resource)


def _remember(memory: dict[str, list[str]], what: str, resource: Resource) -> None:
    names = memory.setdefault(what, [])
    if resource.name not in names:
        names.append(resource.name)


class Terms(TypedDict):
    """What a rule says besides its check: see `Rule`."""

    section: str
    severity: Severity
    types: Collection[str]
    steps: str
    level: NotRequired[EnforcementLevel]
    remedy: NotRequired[Remedy]
    options: NotRequired[Mapping[str, Option]]


@dataclass
class Guideline:
    """One of the guide's core guidelines, and the rules that hold a stack to it."""

    name: str
    rules: list[Rule] = field(default_factory=list)

    def rule(self, name: str, description: str, **terms: Unpack[Terms]) -> Callable[[Check], Check]:
        """Make a check of one resource a rule of this guideline."""

        def add(check: Check) -> Check:
            self.rules.append(Rule(name, description, self.name, check=check, **terms))
            return check

        return add

    def stack_rule(self, name: str, description: str, **terms: Unpack[Terms]) -> Callable[[StackCheck], StackCheck]:
        """Make a check that also looks at the rest of the stack a rule of this guideline."""

        def add(check: StackCheck) -> StackCheck:
            self.rules.append(Rule(name, description, self.name, stack_check=check, **terms))
            return check

        return add


def each(values: Sequence[Any] | None, read: Callable[[Any], T]) -> Iterator[T]:
    """`read` of each value; one that isn't known yet is complained of only after all others had their turn."""
    unknown: UnknownValueError | None = None
    for index in range(len(values or ())):
        try:
            result = read((values or ())[index])
        except UnknownValueError as error:
            unknown = error
        else:
            yield result
    if unknown:
        raise unknown


def given(props: Properties, key: str) -> bool:
    """Whether there is such a value, known or not."""
    try:
        return props.get(key) is not None
    except UnknownValueError:
        return True


def mended(args: ResourceValidationArgs, **changes: object) -> Mapping[str, Any]:
    """A remedy's answer: the resource's properties with some changed. What is secret or unknown stays so."""
    return {**args.props["__target"], **changes}
