"""Who may log in, and how: passwords, keys, one-time codes, root (guide, 3.4 to 3.8)."""

from collections.abc import Iterator

from components.backup import PUSH_ACCOUNT
from components.settings import DEPLOY_USER
from uds import ssh
from uds.verify.check import ACCOUNTS, HARDENING, Problems, check, difference
from uds.verify.server import Server

# Asks the library that PAM asks, with the settings that PAM has, and changes nothing.
_ASK_PWQUALITY = """
import ctypes, sys
library = ctypes.CDLL("libpwquality.so.1")
library.pwquality_default_settings.restype = ctypes.c_void_p
settings, detail = ctypes.c_void_p(library.pwquality_default_settings()), ctypes.c_void_p()
if library.pwquality_read_config(settings, None, ctypes.byref(detail)):
    sys.exit("its configuration can't be read")
for password in sys.argv[1:]:
    verdict = library.pwquality_check(settings, password.encode(), None, b"somebody", ctypes.byref(detail))
    print("refused" if verdict < 0 else "taken", password)
"""
# Examples only, nobody's: each misses one of the guide's rules, the last none (3.4).
_BAD = ("Zq7!rmvKw", "zq7!rmvkwt", "ZQ7!RMVKWt", "Zqx!rmvKwt", "Zq7xrmvKwt", "Password1!")
_GOOD = "Zq7!rmvKwt"

# An address that nobody has (RFC 5737): no source of the stack's can be it.
_ELSEWHERE = "192.0.2.1"


def sshd(server: Server, user: str = "somebody", address: str = _ELSEWHERE) -> dict[str, str]:
    """sshd's effective settings for a connection."""
    text = server.read(f"sshd -T -C user={user},host={address},addr={address}")
    return {key: value for key, _, value in (line.partition(" ") for line in text.splitlines())}


def _members(server: Server, group: str) -> set[str]:
    found = server.host.run("getent group %s", group).stdout.strip().rpartition(":")[2]
    return set(filter(None, found.split(",")))


@check("3.4", "Weak passwords are refused", HARDENING)
def weak_passwords_are_refused(server: Server) -> Problems:
    """By the same library, settings and dictionary that a change of a password goes through."""
    words = (*_BAD, _GOOD)
    answer = server.host.run("python3 -c %s" + " %s" * len(words), _ASK_PWQUALITY, *words)
    if answer.failed:
        yield f"the rules for passwords can't be asked: {answer.stderr.strip().splitlines()[-1]}"
        return
    wanted = {f"refused {word}" for word in _BAD} | {f"taken {_GOOD}"}
    yield from difference("passwords", answer.stdout.splitlines(), wanted)
    stack = [line.split() for line in server.read("cat /etc/pam.d/common-password").splitlines()]
    if not any(line[:1] == ["password"] and "pam_pwquality.so" in line for line in stack):
        yield "PAM does not ask pam_pwquality when a password changes (/etc/pam.d/common-password)"


@check("3.5", "SSH takes keys only, and a code from people", HARDENING)
def ssh_takes_keys_only(server: Server) -> Problems:
    """What sshd says that it would do, for somebody from anywhere and for the automation from anywhere."""
    for user in ("somebody", DEPLOY_USER):
        settings = sshd(server, user)
        wanted = {
            "passwordauthentication": "no",
            "permitemptypasswords": "no",
            "authenticationmethods": "publickey,keyboard-interactive:pam",
            "authorizedkeysfile": "/etc/ssh/authorized_keys.d/%u",
            "allowgroups": "ssh-users",
        }
        for name, value in wanted.items():
            if settings.get(name) != value:
                yield f"{name} is {settings.get(name)} for {user} from anywhere, not {value}"


@check("3.5", "Exactly the stack's people may log in", ACCOUNTS)
def nobody_else_may_log_in(server: Server) -> Problems:
    """The group that sshd asks for, the keys that it reads, and the accounts that have a shell."""
    people = set(server.settings.admins) | {DEPLOY_USER}
    machines = {PUSH_ACCOUNT} if server.role == "backup" else set()
    yield from difference("group ssh-users", _members(server, "ssh-users"), people | machines)
    yield from difference("authorized keys", server.read("ls /etc/ssh/authorized_keys.d").split(), _key_files(server))
    shells = [line.split(":") for line in server.read("getent passwd").splitlines()]
    for name, _, uid, *_rest, shell in shells:
        if int(uid) == 0 and name != "root":
            yield f"account {name} is another root"
        if 1000 <= int(uid) < 60000 and name not in people and not shell.endswith(("/nologin", "/false")):
            yield f"account {name} has the shell {shell}, and is none of the stack's people"


def _key_files(server: Server) -> Iterator[str]:
    folder = "/etc/ssh/authorized_keys.d/"
    for files in server.files.values():
        yield from (file.path.removeprefix(folder) for file in files if file.path.startswith(folder))


@check("3.5", "Nobody becomes root without a password", HARDENING)
def sudo_asks_for_a_password(server: Server) -> Problems:
    """As sudo itself reads its files, for each who may use it."""
    yield from difference("group sudo", _members(server, "sudo"), {DEPLOY_USER, *server.settings.admins})
    for user in sorted(_members(server, "sudo") | {DEPLOY_USER}):
        allowed = server.host.run("sudo -l -U %s", user).stdout
        if "NOPASSWD" in allowed or "!authenticate" in allowed:
            yield f"{user} may use sudo without a password"
    for path in server.host.run(
        "grep -rlE '^[^#]*(NOPASSWD|!authenticate)' /etc/sudoers /etc/sudoers.d"
    ).stdout.split():
        yield f"{path} asks for no password"


@check("3.6", "No agent and no tunnel goes through", HARDENING)
def nothing_is_forwarded(server: Server) -> Problems:
    """The bastion forwards to the private servers' SSH; the others forward nothing."""
    settings = sshd(server)
    for name in ("allowagentforwarding", "allowstreamlocalforwarding", "permittunnel", "x11forwarding", "gatewayports"):
        if settings.get(name) != "no":
            yield f"{name} is {settings.get(name)}, not no"
    private = {f"{ssh.address(facts)}:22" for facts in server.outputs["servers"].values() if ssh.is_private(facts)}
    if server.name == "app-1":
        yield from difference("permitopen", settings.get("permitopen", "").split(), private)
        if settings.get("allowtcpforwarding") != "local":
            yield f"allowtcpforwarding is {settings.get('allowtcpforwarding')}, not local"
    elif settings.get("allowtcpforwarding") != "no":
        yield f"allowtcpforwarding is {settings.get('allowtcpforwarding')}, not no"


@check("3.7", "Root can't log in", HARDENING)
def root_is_locked(server: Server) -> Problems:
    """No password that could be typed, no key, and sshd would refuse them."""
    password = server.read("getent shadow root").split(":")[1]
    if not password.startswith(("*", "!")):
        yield "root has a password" if password else "root needs no password"
    for path in ("/root/.ssh/authorized_keys", "/etc/ssh/authorized_keys.d/root"):
        if server.host.file(path).exists:
            yield f"{path} exists"
    if sshd(server, "root").get("permitrootlogin") != "no":
        yield "sshd lets root in"


@check("3.8", "Every person has a second factor, which only root can read", ACCOUNTS)
def people_have_a_second_factor(server: Server) -> Problems:
    """pam_google_authenticator's files and line. Without a file, or with a wrong code, nobody gets in."""
    folder = "/var/lib/google-authenticator"
    listed = server.read(f"stat -c '%n %a %U' {folder} {folder}/* 2>/dev/null; true").splitlines()
    found = {line.split(" ")[0]: line.partition(" ")[2] for line in listed}
    if found.pop(folder, None) != "700 root":
        yield f"{folder} is not root's alone"
    admins = {f"{folder}/{name}" for name in server.settings.admins}
    yield from difference("second factor", found, admins)
    for path, access in found.items():
        if access not in {"400 root", "600 root"}:
            yield f"{path} is open: {access}"
    lines = [line.split() for line in server.read("cat /etc/pam.d/sshd").splitlines()]
    asked = [line for line in lines if line[:1] == ["auth"]]
    if not asked or asked[0][1] != "required" or asked[0][2] != "pam_google_authenticator.so" or "nullok" in asked[0]:
        yield "PAM does not insist on a code (/etc/pam.d/sshd)"
