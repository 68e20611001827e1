"""The people who may log in: a key and a one-time code for SSH, a password for sudo (guide, 3.5 and 3.8)."""

from collections.abc import Mapping
from pathlib import Path

import pulumi

from components.files import ServerFile
from components.server import Server
from components.settings import AdminSettings, Settings

_APPLY = Path(__file__).parent / "apply.sh"


def admin_files(admins: Mapping[str, AdminSettings]) -> tuple[list[ServerFile], dict[str, str]]:
    """What a server gets to know of its admins: files to install, and secret data for the script."""
    files = []
    data = {"admins": "".join(f"{name}\n" for name in sorted(admins))}
    for name, admin in admins.items():
        keys = "".join(f"{key}\n" for key in admin.public_keys)
        files.append(ServerFile(f"/etc/ssh/authorized_keys.d/{name}", 0o644, keys))
        data[f"{name}.password-hash"] = admin.password_hash.get_secret_value() + "\n"
        data[f"{name}.one-time-codes"] = one_time_codes(admin)
    return files, data


def one_time_codes(admin: AdminSettings) -> str:
    """The file of pam_google_authenticator (its FILEFORMAT): three tries in 30 s, and a code works once."""
    options = ['" RATE_LIMIT 3 30', '" WINDOW_SIZE 3', '" DISALLOW_REUSE', '" TOTP_AUTH']
    codes = [code.get_secret_value() for code in admin.scratch_codes]
    return "\n".join([admin.totp_secret.get_secret_value(), *options, *codes]) + "\n"


class Accounts(pulumi.ComponentResource):
    """The admins' accounts on a server: added, changed and removed in place."""

    def __init__(
        self, name: str, settings: Settings, server: Server, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Make the stack's admins exactly the people who may log in to `server`."""
        super().__init__("uds:accounts:Accounts", name, None, opts)
        files, data = admin_files(settings.admins)
        # The group, PAM and the password rules come with the hardening.
        server.apply(name, _APPLY.read_text(), files=files, data=data, parent=self)
        self.register_outputs({})
