"""Alerts and watching (guide, 3.10)."""

from uds.verify.check import Problems, check
from uds.verify.server import Server

_MONIT = "uds apply STACK {server} monit"
_UNITS = ("uds-alerts.socket", "uds-alerts.service", "uds-changes.service", "monit.service")


@check("3.10", "Logins, changes and failures raise alerts", _MONIT)
def alerts_are_raised(server: Server) -> Problems:
    """Whatever has a part in it runs, and will after a reboot; its secrets are root's."""
    for unit in _UNITS:
        if not server.host.service(unit).is_running:
            yield f"{unit} does not run"
        if not server.host.service(unit).is_enabled:
            yield f"{unit} is not enabled"
    access = server.read("stat -c '%a %U' /etc/uds/alerts.json").strip()
    if access != "600 root":
        yield f"/etc/uds/alerts.json is open: {access}"


@check("3.10", "monit watches all, and all is well", "uds ssh STACK {server} --sudo -- monit status")
def all_is_watched(server: Server) -> Problems:
    """What monit itself says of everything in its files."""
    told = server.read("monit -B summary")
    status = {line.split()[0]: " ".join(line.split()[1:-1]) for line in told.splitlines()[2:] if line.split()}
    for file in server.files.get("monit", ()):
        if file.path.startswith("/etc/monit/conf.d/"):
            for line in file.content.splitlines():
                if line.startswith("check "):
                    name = line.split()[2]
                    # Before the first round it says "Initializing".
                    if not status.get(name, "").startswith(("OK", "Initializing")):
                        yield f"monit says of {name}: {status.get(name, 'nothing')}"
