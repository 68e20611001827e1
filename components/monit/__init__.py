"""Alerts and watching (guide, 3.10): who logs in, what changes and what fails is told at once, and nothing is lost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pulumi

from components.files import ServerFile, read_tree
from components.monit import watch
from components.server import Server
from components.settings import Settings

# tzdata: alerts have the local time too.
PACKAGES = ("aide", "monit", "tzdata")

_FOLDER = Path(__file__).parent


def server_files(watches: Mapping[str, str]) -> list[ServerFile]:
    """Programs, units and monit's own files."""
    watched = sorted({"server": watch.server(), **watches}.items())
    return [
        *read_tree(_FOLDER / "files", {}),
        *(ServerFile(f"/etc/monit/conf.d/{name}", 0o600, text) for name, text in watched),
    ]


def configuration(settings: Settings, server: str, automation: Mapping[str, Sequence[str]]) -> str:
    """What the service `uds-alerts` gets to know, as JSON: a secret."""
    alerts = settings.alerts
    values: dict[str, object] = {
        "server": server,
        "timezone": alerts.timezone,
        "allowedSources": [str(source) for source in alerts.allowed_sources],
        "automation": {user: list(sources) for user, sources in automation.items()},
        "caCertificate": alerts.ca_certificate,
    }
    if alerts.email:
        values["email"] = {
            "host": alerts.email.host,
            "port": alerts.email.port,
            "security": alerts.email.security,
            "user": alerts.email.user,
            "password": alerts.email.password.get_secret_value(),
            "sender": alerts.email.sender,
            "recipients": list(alerts.email.recipients),
        }
    if alerts.slack:
        values["slack"] = {"webhook": alerts.slack.webhook.get_secret_value()}
    if alerts.pushover:
        values["pushover"] = {
            "token": alerts.pushover.token.get_secret_value(),
            "user": alerts.pushover.user.get_secret_value(),
        }
    return json.dumps(values, indent=1) + "\n"


class Monit(pulumi.ComponentResource):
    """Alerts and watching on a server. The last thing that a role puts there: what comes later would be missed."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        server: Server,
        automation: pulumi.Input[Mapping[str, Sequence[str]]],
        watches: Mapping[str, str],
        *,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Watch `server`, which has `PACKAGES`.

        `automation` are machines' accounts and the networks (CIDR) from which their logins raise no alert; `watches` is
        monit's text, by name, for what this role has more than others.
        """
        super().__init__("uds:monit:Monit", name, None, opts)
        server.apply(
            name,
            (_FOLDER / "apply.sh").read_text(),
            files=server_files(watches),
            data={
                "alerts.json": pulumi.Output.from_input(automation).apply(
                    lambda known: configuration(settings, server.name, known)
                )
            },
            after=server.applied,
            parent=self,
        )
        self.register_outputs({})
