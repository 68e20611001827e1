"""Keep it on the server: secrets and data go nowhere that they needn't be."""

import re
from collections.abc import Mapping
from typing import Any

from pulumi_policy import EnforcementLevel, ResourceValidationArgs, Severity
from pulumi_policy.secret import Secret

from policies.policy import Config, Guideline, Option, Resource, Rule, Violations, each, given, mended
from policies.resources import COMMAND, FIREWALLS, HAVE_USER_DATA, MANAGED_DATABASES
from policies.secrets import names_a_secret, secrets_in
from policies.user_data import told

GUIDELINE = Guideline("Keep it on the server")

_LOCAL_COMMAND = "command:local:Command"
_COMMANDS = (COMMAND, _LOCAL_COMMAND)

# Kinds of resources with words that everyone in the account can read.
_LABELLED = (
    *HAVE_USER_DATA,
    *FIREWALLS,
    *MANAGED_DATABASES,
    "aws:s3/bucket:Bucket",
    "aws:ebs/volume:Volume",
    "aws:ec2/vpc:Vpc",
    "aws:iam/role:Role",
    "linode:index/volume:Volume",
    "linode:index/vpc:Vpc",
)


@GUIDELINE.rule(
    "secret-in-user-data",
    "User data, which every program on the server may be able to read, has no secret in it",
    section="4.5",
    severity=Severity.CRITICAL,
    types=HAVE_USER_DATA,
    steps="Bring the secret to the server over SSH after its first boot, in a file that only its user can read.",
    options={
        "hostKeys": Option(
            ["/etc/ssh/bootstrap_host_key"],
            "Files with a host key that pins the first contact only and is replaced then",
        )
    },
)
def _user_data(resource: Resource, config: Config) -> Violations:
    data = told(resource)
    if data is None:
        return
    text = data.text
    for path in config["hostKeys"]:
        # Cut out as it stands in the document, indented.
        for line in data.files.get(path, "").splitlines():
            text = text.replace(line, "")
    for what in secrets_in(text):
        yield f"has {what} in its user data"
    if given(data.cloud_config, "ssh_keys"):
        yield "has its lasting host key in its user data (ssh_keys)"


@GUIDELINE.rule(
    "secret-in-tags",
    "Names, tags and descriptions, which everyone in the account can read, have no secret in them",
    section="4.5",
    severity=Severity.HIGH,
    types=_LABELLED,
    steps="Remove it, and change the secret: it has been in the cloud's records.",
)
def _tags(resource: Resource, _config: Config) -> Violations:
    for key in ("label", "name", "description"):
        for what in secrets_in(str(resource.props.get(key) or "")):
            yield f"has {what} in its {key}"
    tags = resource.props.get("tags") or {}
    pairs = [f"{name}={tags[name]}" for name in tags] if isinstance(tags, Mapping) else list(each(tags, str))
    for pair in pairs:
        for what in secrets_in(pair):
            yield f"has {what} in its tags"


@GUIDELINE.rule(
    "secret-in-command",
    "A command has no secret in its text, which errors, process lists and the state show",
    section="4.5",
    severity=Severity.CRITICAL,
    types=_COMMANDS,
    steps="Send the secret on standard input (stdin, as a secret), and read it there.",
)
def _command(resource: Resource, _config: Config) -> Violations:
    for key in ("create", "update", "delete"):
        for what in secrets_in(str(resource.props.get(key) or "")):
            yield f"has {what} in {key}"
    for trigger in each(resource.props.get("triggers"), str):
        for what in secrets_in(trigger):
            yield f"has {what} in triggers"


@GUIDELINE.rule(
    "secret-in-environment",
    "A command gets no secret in its environment, which other programs can read",
    section="4.5",
    severity=Severity.HIGH,
    types=_COMMANDS,
    steps="Send the secret on standard input (stdin, as a secret), and read it there.",
)
def _environment(resource: Resource, _config: Config) -> Violations:
    environment = resource.props.get("environment") or {}
    for name in environment:
        if names_a_secret(name):
            yield f"has {name} in its environment"
    for text in each([*environment], lambda name: str(environment[name])):
        for what in secrets_in(text):
            yield f"has {what} in its environment"


def _secret_stdin(args: ResourceValidationArgs) -> Mapping[str, Any] | None:
    plain = args.props["__target"].get("stdin")
    return None if plain is None or isinstance(plain, Secret) else mended(args, stdin=Secret(plain))


GUIDELINE.rules.append(
    # A check can't see whether a value is a secret, a remedy can.
    Rule(
        "stdin-is-secret",
        "A command's standard input is a secret in Pulumi's state",
        GUIDELINE.name,
        section="4.5",
        severity=Severity.HIGH,
        types=_COMMANDS,
        steps="Wrap the value: pulumi.Output.secret(...). Until then, this policy does it.",
        level=EnforcementLevel.REMEDIATE,
        remedy=_secret_stdin,
    )
)


@GUIDELINE.rule(
    "command-output-in-log",
    "What a command prints isn't shown in the log when it works with secrets",
    section="4.5",
    severity=Severity.MEDIUM,
    types=_COMMANDS,
    steps='Set logging to "none", and additional_secret_outputs to stdout and stderr.',
)
def _output(resource: Resource, _config: Config) -> Violations:
    if given(resource.props, "stdin") and resource.props.get("logging") not in ("none", "stderr"):
        yield "takes standard input, and prints its output in the log"


@GUIDELINE.rule(
    "command-output-in-environment",
    "What a command printed isn't handed to the next one in its environment",
    section="4.5",
    severity=Severity.LOW,
    types=_COMMANDS,
    steps="Set addPreviousOutputInEnv to false.",
    level=EnforcementLevel.ADVISORY,
)
def _previous(resource: Resource, _config: Config) -> Violations:
    if given(resource.props, "stdin") and resource.props.get("addPreviousOutputInEnv") is not False:
        yield "would have its last output in its next environment"


@GUIDELINE.rule(
    "secret-in-plain-parameter",
    "A secret in the parameter store is stored as one",
    section="4.5",
    severity=Severity.HIGH,
    types=["aws:ssm/parameter:Parameter"],
    steps='Set type to "SecureString".',
)
def _parameter(resource: Resource, _config: Config) -> Violations:
    if resource.props.get("type") == "SecureString":
        return
    name = str(resource.props.get("name") or resource.name)
    if names_a_secret(re.sub(r".*/", "", name)):
        yield "is called a secret and stored as plain text"
    for what in secrets_in(str(resource.props.get("value") or "")):
        yield f"has {what} in plain text"
