"""All rules, as CrossGuard policies."""

from pulumi_policy import (
    EnforcementLevel,
    Policy,
    ReportViolation,
    Severity,
    StackValidationArgs,
    StackValidationPolicy,
)

from policies import (
    automate_checks,
    encrypt,
    identify_users,
    keep_on_server,
    least_privilege,
    notify,
    prevent_direct_access,
)
from policies.policy import Run

NAME = "user-data-security"

GUIDELINES = (
    least_privilege.GUIDELINE,
    prevent_direct_access.GUIDELINE,
    automate_checks.GUIDELINE,
    notify.GUIDELINE,
    identify_users.GUIDELINE,
    encrypt.GUIDELINE,
    keep_on_server.GUIDELINE,
)
RULES = tuple(rule for guideline in GUIDELINES for rule in guideline.rules)

EXCEPTIONS = "exceptions-in-use"
UNDECIDED = "checks-undecided"


def policies() -> list[Policy]:
    """The pack. It remembers what it has to say at the end of the stack: one run, one pack."""
    run = Run()
    return [
        *(rule.policy(run) for rule in RULES),
        _closing(
            EXCEPTIONS,
            "Exceptions that this run made use of, with their reasons",
            "Review whether each exception is still needed, and remove those that aren't.",
            run.exceptions,
        ),
        _closing(
            UNDECIDED,
            "Checks that wait for values which a preview can't know; `pulumi up` decides them",
            "Nothing is to be done. What is known from the start, such as a fixed address, is checked earlier.",
            run.undecided,
        ),
    ]


def _closing(name: str, description: str, steps: str, memory: dict[str, list[str]]) -> Policy:
    """Says in one paragraph what was kept. Last, since the engine asks in this order."""

    def validate(_args: StackValidationArgs, report: ReportViolation) -> None:
        if memory:
            report("\n".join(f"{what}: {', '.join(names)}" for what, names in memory.items()), None)
        memory.clear()

    return StackValidationPolicy(
        name,
        description,
        validate,
        enforcement_level=EnforcementLevel.ADVISORY,
        severity=Severity.LOW,
        remediation_steps=steps,
    )
