"""The application: its account, its sandbox, its secrets, and how it reaches the database (guide, 4.1 to 4.6)."""

import re

from uds.verify.check import APP, Problems, check
from uds.verify.server import Server

_APPLICATION = "uds apply STACK {server} application"
_HOME = "/usr/local/application"

# systemd's own measure, from 0 (nothing is exposed) to 10.
_EXPOSURE = 2.0


@check("4.1", "The application's account is locked", _APPLICATION, APP)
def application_account_is_locked(server: Server) -> Problems:
    """No password, no shell, no group but its own."""
    user = server.host.user("application")
    if not user.exists:
        yield "there is no account application"
        return
    if not user.password.startswith(("!", "*")):
        yield "it has a password" if user.password else "it needs no password"
    if not user.shell.endswith(("/false", "/nologin")):
        yield f"it has the shell {user.shell}"
    if user.groups != ["application"]:
        yield f"its groups are {', '.join(user.groups)}"


@check("4.1", "The application runs, as that account and in its sandbox", _APPLICATION, APP)
def application_is_in_its_sandbox(server: Server) -> Problems:
    """The unit as systemd runs it now."""
    if server.settings.application.release is None:
        return
    text = server.read(
        "systemctl show application -p ActiveState -p User -p NoNewPrivileges -p ProtectSystem -p MainPID"
    )
    unit = dict(line.partition("=")[::2] for line in text.splitlines())
    wanted = {"ActiveState": "active", "User": "application", "NoNewPrivileges": "yes", "ProtectSystem": "strict"}
    for name, value in wanted.items():
        if unit.get(name) != value:
            yield f"{name} is {unit.get(name)}, not {value}"
    if unit.get("MainPID", "0") != "0":
        owner = server.read(f"stat -c %U /proc/{unit['MainPID']}").strip()
        if owner != "application":
            yield f"it runs as {owner}"
    exposure = re.search(
        r"Overall exposure level for \S+: ([\d.]+)", server.read("systemd-analyze security application")
    )
    if not exposure or float(exposure[1]) > _EXPOSURE:
        yield f"its exposure is {exposure[1] if exposure else 'unknown'}, over {_EXPOSURE} (systemd-analyze security)"


@check("4.5", "The application's configuration and keys are its own", _APPLICATION, APP)
def configuration_is_private(server: Server) -> Problems:
    """Folders 0700 and files 0400, of the application alone. The rest it can't change."""
    listed = server.read(f"find {_HOME}/config {_HOME}/ssl -printf '%y %m %u %p\\n'")
    for kind, mode, owner, path in (line.split(" ", 3) for line in listed.splitlines()):
        if owner != "application" or mode != ("700" if kind == "d" else "400"):
            yield f"{path} belongs to {owner} with {mode}"
    for path in server.read(f"find {_HOME} -xdev -perm /022 -not -type l").splitlines():
        yield f"{path} can be changed by others"


@check("4.6", "The database proves who it is, to the application's server", "uds apply STACK db-1 mysql", APP)
def database_proves_itself(server: Server) -> Problems:
    """A TLS handshake from here, checked with the stack's own authority."""
    address, port = server.settings.database_address, server.settings.database.port
    answer = server.host.run(
        f"timeout 15 openssl s_client -starttls mysql -connect {address}:{port} -CAfile {_HOME}/config/database-ca.pem"
        f" -verify_return_error -verify_ip {address} </dev/null 2>&1"
    ).stdout
    if "Verification: OK" not in answer and "Verify return code: 0" not in answer:
        reason = re.search(r"(verify error:.*|.*error.*|.*refused.*)", answer)
        yield f"no verified TLS with {address}:{port}: {reason[0] if reason else 'no answer'}"
    elif not re.search(r"(TLSv1\.[23])", answer):
        yield "the TLS is older than 1.2"
