"""`uds alert test`: one alert through every channel, from every server, and what each channel answered."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from uds import ssh
from uds.stack import OperatorError, Stack


@dataclass(frozen=True)
class Answer:
    """What a channel said to a server's alert."""

    server: str
    channel: str
    taken: bool
    words: str


def test(stack: Stack) -> list[Answer]:
    """Have every server's alert service send one, all at the same time.

    Raises:
        OperatorError: a server can't be reached, its service doesn't run, or the stack has no channel.
    """
    outputs = stack.outputs()
    password = stack.section("deploy")["sudoPassword"]
    names = sorted(outputs["servers"])
    with ssh.opened(stack, outputs) as command, ThreadPoolExecutor(len(names)) as pool:
        answers = [answer for found in pool.map(lambda name: _ask(command, name, password), names) for answer in found]
    if not answers:
        raise OperatorError(
            f"The stack {stack.name} has no channel: alerts go to its servers' journals only. "
            "Pulumi.yaml describes `alerts`: email, slack and pushover."
        )
    return answers


def _ask(command: Sequence[str], server: str, password: str) -> list[Answer]:
    done = ssh.as_root(command, server, password, "/usr/local/sbin/uds-alert --test")
    if done.returncode:
        raise OperatorError(f"{server}: {done.stderr.strip() or 'no answer'}")
    return [Answer(server, *answer) for answer in json.loads(done.stdout)["answers"]]
