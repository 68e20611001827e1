"""docs/policies.md, made from the pack: `python -m policies.documentation` prints it."""

from collections.abc import Iterator

from pulumi_policy import EnforcementLevel

from policies.pack import EXCEPTIONS, GUIDELINES, RULES, UNDECIDED
from policies.policy import Rule

_HEAD = f"""# Policies

<!-- Made by `uv run python -m policies.documentation > docs/policies.md`: change the policies, not this page. -->

{len(RULES)} rules, one module below [policies/](../policies) for each of the core guidelines of the 2018 Guide to User
Data Security. They know Linode, AWS and commands over SSH, and nothing of this project: they hold any stack to the
guide. (The guide's "Cleanse user input" is the application's own business: no infrastructure shows it.)

```sh
make preview STACK=linode                                 # here, with throw-away secrets
pulumi preview --policy-pack policies                     # your stack, before it changes
pulumi policy analyze --policy-pack policies --stack NAME # your stack as it is, from its state
```

A violation of a **mandatory** policy fails the run; of an advisory one, it is only told. From another project, name
this folder's path; after `uv sync` here it needs nothing else.

## Configuration

A JSON file, given with `--policy-pack-config FILE`, has the policies' names as its keys: a level ("disabled",
"advisory", "mandatory", "remediate"), or an object with `enforcementLevel`, the policy's own options, and exceptions by
the name of the resource, each with a reason of ten characters or more:

```json
{{
  "journal-lost-at-reboot": "disabled",
  "firewall-opens-many-ports": {{
    "maxPorts": 100,
    "exceptions": {{"media-firewall": "RTP needs its range of ports; reviewed in May"}}
  }}
}}
```

Each run prints the exceptions that it made use of, with their reasons (`{EXCEPTIONS}`). A preview of new servers
doesn't know their addresses and ids: what waits for these is listed (`{UNDECIDED}`) and hides no other check; give the
policies to `pulumi up` too. Policies with a *remedy* can also put a value right: at the level "remediate" they change
what is sent to the cloud, not your program. Only `stdin-is-secret` does so unasked. (With `--diff`, Pulumi prints what
isn't a secret, and so also what a remedy makes one.) `"all"` in the file sets every level, remedies' too.
"""


def page() -> str:
    """The whole page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _HEAD
    for guideline in GUIDELINES:
        yield f"## {guideline.name}\n"
        yield "| policy | what it asks for | how to mend it | guide | severity | level |"
        yield "|---|---|---|---|---|---|"
        yield from (_row(rule) for rule in guideline.rules)
        yield ""
    yield "## Options\n"
    yield "| policy | option | default | |"
    yield "|---|---|---|---|"
    for rule in RULES:
        for name, option in rule.options.items():
            default = str(option.default).replace("|", "\\|")
            yield f"| `{rule.name}` | `{name}` | `{default}` | {option.meaning} |"


def _row(rule: Rule) -> str:
    level = "**mandatory**" if rule.level is EnforcementLevel.MANDATORY else rule.level.value
    if rule.remedy and rule.check:
        level += ", has a remedy"
    cells = (f"`{rule.name}`", rule.description, rule.steps, rule.section, rule.severity.value, level)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(page(), end="")
