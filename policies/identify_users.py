"""Identify users that can access the server."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping

from pulumi_policy import EnforcementLevel, PolicyResource, Severity

from policies.least_privilege import connections
from policies.policy import Config, Guideline, Option, Resource, Stack, Violations, each, given
from policies.resources import COMMAND, HAVE_USER_DATA, LINODE_INSTANCE, TELL_SERVERS, linked
from policies.user_data import Told, told

GUIDELINE = Guideline("Identify users that can access the server")

_KEY_HOLDERS = frozenset({"aws:ec2/keyPair:KeyPair", "linode:index/sshKey:SshKey"})
_AUTHORIZED = re.compile(r"/(authorized_keys(?:\.d/[^/]+)?)$")
_PUBLIC_KEY = re.compile(r"\b(ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-\S+|sk-\S+@openssh\.com) ([A-Za-z0-9+/=]{16,})")


def _sshd_says(text: str, setting: str, value: str) -> bool:
    """Whether a script writes this setting, with sed or echo."""
    return bool(re.search(rf"(?im)^(?!\s*#).*\b{setting}\s+{value}\b", text))


@GUIDELINE.rule(
    "ssh-passwords",
    "Nobody logs in with a password alone",
    section="3.5",
    severity=Severity.CRITICAL,
    types=TELL_SERVERS,
    steps="Set PasswordAuthentication no in a file that sshd reads first (sshd_config.d/00-...); ssh_pwauth: false.",
)
def _passwords(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    if data is None:
        return
    settings = _login_settings(data)
    if str(data.cloud_config.get("ssh_pwauth", "")).lower() in ("true", "yes", "1") and settings is None:
        yield "lets passwords in (ssh_pwauth)"
    # sshd's own default is yes.
    if settings is not None and settings.get("passwordauthentication", "yes").lower() != "no":
        yield "lets passwords in (PasswordAuthentication)"
    if settings is None and _sshd_says(data.script, "PasswordAuthentication", "yes"):
        yield "lets passwords in (PasswordAuthentication)"


def _login_settings(data: Told) -> dict[str, str] | None:
    """sshd's settings, if these decide on who logs in: a drop-in with a host key or a port leaves that to others."""
    settings = data.sshd()
    decisive = {"authenticationmethods", "passwordauthentication", "permitrootlogin", "allowgroups", "allowusers"}
    return settings if settings and settings.keys() & decisive else None


@GUIDELINE.rule(
    "ssh-root-login",
    "Nobody logs in as root",
    section="3.7",
    severity=Severity.HIGH,
    types=TELL_SERVERS,
    steps="Set PermitRootLogin no in sshd's configuration, and disable_root: true.",
)
def _root_login(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    if data is None:
        return
    settings = _login_settings(data)
    # sshd's own default lets root in with a key.
    if settings is not None and settings.get("permitrootlogin", "prohibit-password").lower() != "no":
        yield "lets root in (PermitRootLogin)"
    if settings is None and _sshd_says(data.script, "PermitRootLogin", "(?:yes|prohibit-password|without-password)"):
        yield "lets root in (PermitRootLogin)"
    if str(data.cloud_config.get("disable_root", "true")).lower() in ("false", "no", "0"):
        yield "lets root in (disable_root: false)"


@GUIDELINE.rule(
    "ssh-one-factor",
    "People log in with a key and a one-time code",
    section="3.8",
    severity=Severity.HIGH,
    types=TELL_SERVERS,
    steps="Set AuthenticationMethods publickey,keyboard-interactive:pam; pam_google_authenticator in /etc/pam.d/sshd.",
)
def _one_factor(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    settings = _login_settings(data) if data else None
    if settings is None:
        return
    methods = settings.get("authenticationmethods", "any").split()
    if any("," not in method for method in methods):
        yield "lets people in with one factor (AuthenticationMethods)"


@GUIDELINE.rule(
    "ssh-anyone",
    "sshd lets in the members of a group or named users, not whoever has an account",
    section="3.5",
    severity=Severity.MEDIUM,
    types=TELL_SERVERS,
    steps="Set AllowGroups (or AllowUsers) in sshd's configuration.",
)
def _anyone(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    settings = _login_settings(data) if data else None
    if settings and not settings.keys() & {"allowgroups", "allowusers"}:
        yield "lets in everyone who has an account (no AllowGroups)"


@GUIDELINE.rule(
    "root-password",
    "Root has no password",
    section="3.7",
    severity=Severity.HIGH,
    types=[LINODE_INSTANCE, *HAVE_USER_DATA],
    steps="Leave rootPass out and give authorizedKeys; lock root in the user data.",
)
def _root_password(resource: Resource, _config: Config) -> Violations:
    if given(resource.props, "rootPass"):
        yield "has a password for root (rootPass)"
    data = told(resource)
    if data is None:
        return
    changed = str(data.cloud_config.get("chpasswd") or "") + data.script
    users = [user for user in data.cloud_config.get("users") or [] if isinstance(user, Mapping)]
    roots = [user for user in users if user.get("name") == "root"]
    unlocked = any(user.get("lock_passwd") is False or "passwd" in user or "hashed_passwd" in user for user in roots)
    if unlocked or re.search(r"\broot:|\bname'?:\s*'?root\b|passwd\s+root\b", changed):
        yield "gives root a password in its user data"


@GUIDELINE.rule(
    "password-in-the-clear",
    "Accounts get hashed passwords, of a hash that resists guessing",
    section="3.4",
    severity=Severity.CRITICAL,
    types=HAVE_USER_DATA,
    steps="Use hashed_passwd with SHA-512 ($6$) or yescrypt ($y$), or no password at all.",
)
def _clear_password(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    if data is None:
        return
    config = data.cloud_config
    if config.get("password"):
        yield "has the default account's password in the clear"
    for user in config.get("users") or []:
        if not isinstance(user, Mapping):
            continue
        if user.get("plain_text_passwd"):
            yield "has an account's password in the clear (plain_text_passwd)"
        hashed = str(user.get("hashed_passwd") or user.get("passwd") or "")
        if hashed and not hashed.startswith(("!", "*", "$5$", "$6$", "$7$", "$y$", "$2b$", "$gy$")):
            yield "has an account's password in the clear, or with a hash that is guessed fast"
    changes = config.get("chpasswd") or {}
    listed = changes.get("list") if isinstance(changes, Mapping) else None
    lines = listed.splitlines() if isinstance(listed, str) else listed or []
    pairs = [str(line).partition(":")[2] for line in lines]
    pairs += [str(user.get("password") or "") for user in (changes.get("users") or []) if isinstance(changes, Mapping)]
    if any(value and not value.startswith(("$", "R", "RANDOM")) for value in pairs):
        yield "has a password in the clear (chpasswd)"


@GUIDELINE.rule(
    "weak-ssh-key",
    "SSH keys are strong: Ed25519, ECDSA, or RSA of 3072 bits and more",
    section="3.5",
    severity=Severity.HIGH,
    types=[*_KEY_HOLDERS, *HAVE_USER_DATA],
    steps="Make a new key: ssh-keygen -t ed25519.",
    options={"rsaBits": Option(3072, "The shortest RSA key")},
)
def _weak_key(resource: Resource, config: Config) -> Violations:
    for kind, body in _keys(resource):
        if kind == "ssh-dss":
            yield "has a DSA key"
        elif kind == "ssh-rsa" and (bits := _rsa_bits(body)) < config["rsaBits"]:
            yield f"has an RSA key of {bits} bits"


def _keys(resource: Resource) -> Iterator[tuple[str, str]]:
    """Every public key that a resource lets in: type and body."""
    props = resource.props
    if resource.resource_type in _KEY_HOLDERS:
        yield from _PUBLIC_KEY.findall(str(props.get("publicKey") or props.get("sshKey") or ""))
        return
    for found in each(props.get("authorizedKeys"), lambda key: _PUBLIC_KEY.findall(str(key))):
        yield from found
    data = told(resource)
    for text in _accounts(data).values() if data else ():
        yield from _PUBLIC_KEY.findall(text)


def _accounts(data: Told) -> dict[str, str]:
    """Accounts that user data makes or lets in, and the keys with which."""
    found: dict[str, str] = {}
    users = [user for user in data.cloud_config.get("users") or [] if isinstance(user, Mapping)]
    for user in users:
        keys = [str(key) for key in user.get("ssh_authorized_keys") or []]
        if keys:
            found[str(user.get("name"))] = "\n".join(keys)
    general = [str(key) for key in data.cloud_config.get("ssh_authorized_keys") or []]
    if general:
        found["the default account"] = "\n".join(general)
    for path, text in data.files.items():
        if _AUTHORIZED.search(path):
            found[path] = text
    return found


def _rsa_bits(body: str) -> int:
    """The length of an RSA key: its modulus is the third field (RFC 4253, section 6.6)."""
    try:
        data = base64.b64decode(body)
    except binascii.Error:
        return 0
    fields = []
    while len(data) >= 4:
        length = int.from_bytes(data[:4], "big")
        fields.append(data[4 : 4 + length])
        data = data[4 + length :]
    return int.from_bytes(fields[2], "big").bit_length() if len(fields) == 3 else 0


@GUIDELINE.rule(
    "shared-account",
    "An account is one person's or one machine's",
    section="3.5",
    severity=Severity.MEDIUM,
    types=HAVE_USER_DATA,
    steps="Make an account for each person, with that person's keys, and another for automation.",
    options={"maxKeys": Option(1, "How many keys one account may have in user data")},
)
def _shared_account(resource: Resource, config: Config) -> Violations:
    data = told(resource)
    for account, text in _accounts(data).items() if data else ():
        keys = set(_PUBLIC_KEY.findall(text))
        if len(keys) > config["maxKeys"]:
            yield f"{account} has {len(keys)} keys"


@GUIDELINE.rule(
    "shared-key",
    "A key belongs to one account",
    section="3.5",
    severity=Severity.MEDIUM,
    types=HAVE_USER_DATA,
    steps="Give every person and every machine a key of their own.",
)
def _shared_key(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    owners: dict[str, str] = {}
    for account, text in _accounts(data).items() if data else ():
        for _kind, body in _PUBLIC_KEY.findall(text):
            other = owners.setdefault(body, account)
            if other != account:
                yield f"{account} has the same key as {other}"


@GUIDELINE.stack_rule(
    "iam-user-shared",
    "A user of an AWS account is a person or a machine, not both",
    section="3.5",
    severity=Severity.MEDIUM,
    types=["aws:iam/user:User"],
    steps="Make one user for the person (login profile) and a role, or another user, for the machine (access key).",
)
def _shared_user(resource: PolicyResource, _config: Config, stack: Stack) -> Violations:
    uses = {
        other.resource_type
        for other in stack
        if other.resource_type in ("aws:iam/accessKey:AccessKey", "aws:iam/userLoginProfile:UserLoginProfile")
        and any(user.urn == resource.urn for user in linked(other, "user"))
    }
    if len(uses) == 2:
        yield "is used by a person (login profile) and by machines (access key)"


@GUIDELINE.rule(
    "iam-access-key",
    "Machines have roles, whose credentials change by themselves",
    section="3.5",
    severity=Severity.LOW,
    types=["aws:iam/accessKey:AccessKey"],
    steps="Use an instance profile, or OpenID Connect for what runs elsewhere.",
    level=EnforcementLevel.ADVISORY,
)
def _access_key(_resource: Resource, _config: Config) -> Violations:
    yield "is a key that stays the same until somebody changes it"


@GUIDELINE.rule(
    "iam-password-policy",
    "The passwords of an AWS account's users follow the guide",
    section="3.4",
    severity=Severity.MEDIUM,
    types=["aws:iam/accountPasswordPolicy:AccountPasswordPolicy"],
    steps="Set minimumPasswordLength, and require all kinds of characters.",
    options={"length": Option(10, "The shortest password")},
)
def _password_policy(resource: Resource, config: Config) -> Violations:
    if int(resource.props.get("minimumPasswordLength") or 0) < config["length"]:
        yield f"allows passwords of less than {config['length']} characters"
    for kind in ("LowercaseCharacters", "UppercaseCharacters", "Numbers", "Symbols"):
        if not resource.props.get(f"require{kind}"):
            yield f"doesn't set require{kind}"


@GUIDELINE.rule(
    "remote-command-by-password",
    "Automation proves itself with a key",
    section="3.5",
    severity=Severity.HIGH,
    types=[COMMAND, "command:remote:CopyToRemote"],
    steps="Set connection.privateKey (a secret) in place of connection.password.",
)
def _by_password(resource: Resource, _config: Config) -> Violations:
    for where, connection in connections(resource):
        if given(connection, "password"):
            yield f"{where} logs in with a password"
