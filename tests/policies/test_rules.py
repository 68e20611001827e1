"""Each policy alone: what it finds and what it leaves in peace, what it doesn't know, and how it is configured."""

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pulumi.runtime.rpc import UNKNOWN
from pulumi_policy import EnforcementLevel, ResourceValidationPolicy
from pulumi_policy.deserialize import (
    SPECIAL_SECRET_SIG,
    SPECIAL_SIG_KEY,
    deserialize_properties,
    serialize_properties,
)
from pulumi_policy.proxy import unknown_checking_proxy

from policies.documentation import page
from policies.pack import GUIDELINES, RULES, policies
from policies.policy import Rule
from tests.policies.examples import EXAMPLES, aws, command, ec2, firewall, inbound, linode, linode_resource
from tests.policies.support import Made, arguments, judge

ROOT = Path(__file__).parents[2]
CHECKED = [rule for rule in RULES if rule.check or rule.stack_check]
BAD = [(name, stack) for name, example in EXAMPLES.items() for stack in example.bad]
GOOD = [(name, stack) for name, example in EXAMPLES.items() for stack in example.good]
REASON = "agreed with the operators until spring"


def by_name(value: object) -> str | None:
    return value.name if isinstance(value, Rule) else value if isinstance(value, str) else None


def test_every_policy_has_a_bad_and_a_good_example() -> None:
    assert EXAMPLES.keys() == {rule.name for rule in CHECKED}
    assert all(example.bad and example.good for example in EXAMPLES.values())


@pytest.mark.parametrize(("name", "stack"), BAD, ids=by_name)
def test_a_bad_program_is_found(name: str, stack: list[Made]) -> None:
    messages = judge(stack, only=name).violations.get(name, [])
    assert messages
    own = next(rule for rule in RULES if rule.name == name)
    for message in messages:
        # Where, what, and how to mend it.
        assert message.split(":")[0] in {one.name for one in stack}
        assert own.steps in message
        assert f"(guide, {own.section})" in message


@pytest.mark.parametrize(("name", "stack"), GOOD, ids=by_name)
def test_a_good_program_is_left_in_peace(name: str, stack: list[Made]) -> None:
    verdict = judge(stack, only=name)
    assert not verdict.violations
    assert not verdict.undecided


@pytest.mark.parametrize("rule", CHECKED, ids=by_name)
def test_an_unknown_value_hides_nothing_else(rule: Rule) -> None:
    bad = EXAMPLES[rule.name].bad[0]
    subjects = [one for one in bad if one.type in rule.types]
    assert subjects
    for number, stack in enumerate(_with_unknowns(bad)):
        # Beside it stands the same with everything known, under other names.
        beside = [_renamed(one, f"known-{number}-") for one in bad]
        said = judge([*stack, *beside], only=rule.name).violations.get(rule.name, [])
        assert any(message.startswith(f"known-{number}-") for message in said)


@pytest.mark.parametrize("rule", CHECKED, ids=by_name)
def test_an_exception_is_granted_with_its_reason_and_for_that_resource_only(rule: Rule) -> None:
    bad = EXAMPLES[rule.name].bad[0]
    broken = {message.split(":")[0] for message in judge(bad, only=rule.name).violations[rule.name]}
    excepted = judge(bad, {rule.name: {"exceptions": dict.fromkeys(broken, REASON)}}, only=rule.name)
    assert not excepted.violations
    assert excepted.exceptions == [f"{rule.name}, because {REASON}: {name}" for name in sorted(broken)]
    other = judge(bad, {rule.name: {"exceptions": {"another": REASON}}}, only=rule.name)
    assert other.violations
    assert not other.exceptions


@pytest.mark.parametrize("rule", [rule for rule in CHECKED if rule.options], ids=by_name)
def test_an_option_changes_the_verdict(rule: Rule) -> None:
    example = EXAMPLES[rule.name]
    assert set(example.lenient) == set(rule.options), "each option has an example"
    assert not judge(example.bad[0], {rule.name: example.lenient}, only=rule.name).violations


# The texts


def test_names_and_texts_are_unique_and_complete() -> None:
    for texts in ([rule.name for rule in RULES], [rule.description for rule in RULES]):
        assert len(texts) == len(set(texts))
    for rule in RULES:
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)+", rule.name)
        assert re.fullmatch(r"[34](\.\d+)*", rule.section), "a section of the guide"
        assert rule.steps.endswith((".", ")"))
        assert not rule.description.endswith(".")


def test_every_guideline_of_the_guide_is_covered() -> None:
    # Cleansing user input is the application's own business.
    assert [guideline.name for guideline in GUIDELINES] == [
        "Use the least privilege possible",
        "Prevent direct access when it isn't required",
        "Automate security checks and constraints",
        "Send notifications for all activity",
        "Identify users that can access the server",
        "Encrypt all communications",
        "Keep it on the server",
    ]
    assert all(len(guideline.rules) >= 5 for guideline in GUIDELINES)


def test_every_policy_tells_the_engine_all_that_it_has() -> None:
    names = set()
    for policy in policies():
        names.add(policy.name)
        assert policy.severity is not None
        assert policy.remediation_steps
        assert policy.enforcement_level is not None
    assert {rule.name for rule in RULES} < names


def test_every_type_is_one_of_the_sdks() -> None:
    """A type with a typing mistake would never match anything."""
    for token in sorted({token for rule in RULES for token in rule.types}):
        package, module, resource = token.split(":")
        if package == "command":
            continue
        found = find_spec(f"pulumi_{package}")
        assert found
        assert found.submodule_search_locations
        folder = Path(found.submodule_search_locations[0])
        place = folder if package == "linode" else folder / module.split("/")[0]
        sources = [path.read_text() for path in place.glob(f"{_snake(resource)}*.py")]
        assert any(f"'{token}'" in source for source in sources), token


def test_the_page_of_the_policies_is_up_to_date() -> None:
    assert (ROOT / "docs/policies.md").read_text() == page()


# Values that are right beyond doubt

KEPT = ("vpcSecurityGroupIds", "size")
INSTANCE = ec2(rootBlockDevice={"volumeSize": 8}, metadataOptions={"httpPutResponseHopLimit": 3})
REMEDIES = [
    *((name, one) for name in ("imds-v1", "imds-hop-limit", "disk-not-encrypted") for one in (INSTANCE, ec2())),
    ("disk-not-encrypted", aws("ebs/Volume", "data", size=8)),
    ("disk-not-encrypted", linode_resource("Volume", "data", size=20)),
]


@pytest.mark.parametrize(("name", "one"), REMEDIES)
def test_a_remedy_mends_what_its_check_finds_and_nothing_else(name: str, one: Made) -> None:
    mended = _remedied(name, one)
    if mended is None:
        assert name not in judge([one], only=name).names
        return
    after = replace(one, props=mended)
    assert name in judge([one], only=name).names
    assert not judge([after], only=name).violations
    # What was there is there still.
    assert after.props.items() >= {key: value for key, value in one.props.items() if key in KEPT}.items()
    assert _volume_size(after) == _volume_size(one)
    assert _remedied(name, after) is None


def test_a_remedy_keeps_secrets_secret_and_leaves_alone_what_isnt_known() -> None:
    secret = {SPECIAL_SIG_KEY: SPECIAL_SECRET_SIG, "value": "#!/bin/sh"}
    mended = _remedied("imds-v1", ec2(userData=secret))
    assert mended is not None
    assert mended["userData"] == secret
    for name, key in (("imds-v1", "metadataOptions"), ("disk-not-encrypted", "rootBlockDevice")):
        assert _remedied(name, ec2(**{key: UNKNOWN})) is None


def test_standard_input_becomes_a_secret() -> None:
    mended = _remedied("stdin-is-secret", command(stdin="password"))
    assert mended is not None
    assert mended["stdin"] == {SPECIAL_SIG_KEY: SPECIAL_SECRET_SIG, "value": "password"}
    assert mended["create"] == "true"
    assert _remedied("stdin-is-secret", command()) is None


def test_an_exception_holds_for_remedies_too() -> None:
    one = command(stdin="password")
    assert _remedied("stdin-is-secret", one, {"exceptions": {one.name: REASON}}) is None


def test_only_what_a_check_cant_see_is_mended_unasked() -> None:
    assert [rule.name for rule in RULES if rule.level is EnforcementLevel.REMEDIATE] == ["stdin-is-secret"]


# Whole stacks of others


def test_a_careless_program_hears_of_all_its_faults_at_once() -> None:
    careless = [
        firewall(inbound("1-65535", "0.0.0.0/0", "::/0"), policy="ACCEPT"),
        linode(
            "db",
            "#!/bin/sh\napt-get install -y mysql-server\nexport DB_PASSWORD=Wombat8!\n",
            firewallId=None,
            rootPass="x",
        ),
        command(connection={"user": "root", "hostKey": None, "password": "x"}, create="mysql -psecret"),
    ]
    assert judge(careless).names >= {
        "firewall-opens-many-ports",
        "ssh-open-to-world",
        "database-port-open-to-world",
        "inbound-default-accept",
        "server-without-firewall",
        "no-security-updates",
        "database-server-not-protected",
        "database-server-without-backups",
        "server-without-alerts",
        "root-password",
        "secret-in-user-data",
        "remote-command-as-root",
        "remote-command-unpinned",
        "remote-command-by-password",
    }


def _remedied(name: str, one: Made, config: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """What the engine gets back."""
    policy = next(policy for policy in policies() if policy.name == name)
    assert isinstance(policy, ResourceValidationPolicy)
    args = arguments(one, config)
    args.props = unknown_checking_proxy(deserialize_properties(copy.deepcopy(dict(one.props)), True))
    answer: Any = policy.remediate(args)
    return None if answer is None else dict(serialize_properties(answer))


def _volume_size(one: Made) -> object:
    return one.props.get("rootBlockDevice", {}).get("volumeSize")


def _renamed(one: Made, prefix: str) -> Made:
    links = {key: tuple(prefix + name for name in names) for key, names in one.links.items()}
    return replace(one, name=prefix + one.name, links=links)


def _with_unknowns(stack: list[Made]) -> Iterator[list[Made]]:
    """The stack with each of its values in turn unknown."""
    for number, one in enumerate(stack):
        for path in _paths(one.props):
            props = copy.deepcopy(dict(one.props))
            place: Any = props
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = UNKNOWN
            yield [*stack[:number], replace(one, props=props), *stack[number + 1 :]]
    yield stack


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - JSON
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield (key,)
        for rest in _paths(item):
            yield (key, *rest)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
