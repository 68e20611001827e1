"""A rehearsal's first keys go into its configuration without Pulumi's command, which takes half a second for each.

All together that was an eighth of a first `make up`. (`pulumi config set-all` writes many at once, but takes them from
its command line, where other users can read them.) Pulumi decrypts them in the run that follows.
"""

import base64
import os
from dataclasses import dataclass
from functools import lru_cache

import yaml
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from rehearsal.workspace import Workspace
from uds.stack import Stack


@dataclass(frozen=True)
class FirstKeys(Stack):
    """The stack of a rehearsal, for as long as its keys are made."""

    def set(self, path: str, value: str, *, secret: bool) -> None:
        """Write one value, by a path such as `deploy.publicKey`, or `backup.recipients[0]` for a list of one."""
        section, _, key = path.partition(".")
        key, _, index = key.partition("[")
        # As Pulumi does: the last line end goes.
        text = value.removesuffix("\n")
        written = {"secure": self._encrypted(text)} if secret else text
        Workspace(self.name).set_section(section, {key: [written] if index else written})

    def _encrypted(self, text: str) -> str:
        """As Pulumi's passphrase provider does it.

        Source: https://github.com/pulumi/pulumi/blob/v3.274.1/sdk/go/common/resource/config/crypt.go
        """
        workspace = Workspace(self.name)
        salt = yaml.safe_load(workspace.stack_file.read_text())["encryptionsalt"].split(":")[1]
        nonce = os.urandom(12)
        sealed = AESGCM(_key(workspace.passphrase_file.read_text(), salt)).encrypt(nonce, text.encode(), None)
        return ":".join(("v1", base64.b64encode(nonce).decode(), base64.b64encode(sealed).decode()))


@lru_cache(maxsize=1)
def _key(passphrase: str, salt: str) -> bytes:
    return PBKDF2HMAC(SHA256(), 32, base64.b64decode(salt), 1_000_000).derive(passphrase.encode())
