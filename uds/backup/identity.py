"""The operator's age identity, and what it opens. Neither it nor anything clear is written to a file here."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

import pyrage

from uds.stack import OperatorError

# https://age-encryption.org/v1, binary and armoured: the identity is itself a file of that kind, with a passphrase.
_ENCRYPTED = (b"age-encryption.org/v1\n", b"-----BEGIN AGE ENCRYPTED FILE-----")


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Identities:
    """The keys that open backups."""

    def __init__(self, identities: Sequence[pyrage.x25519.Identity], file: Path) -> None:
        """Use `load`."""
        self.identities = identities
        self._file = file

    @classmethod
    def load(cls, file: Path, passphrase: Callable[[], str]) -> "Identities":
        """The identities in a file: one a line, as age-keygen writes them; encrypted with a passphrase, or not.

        Raises:
            OperatorError: there is no such file, the passphrase doesn't open it, or something else is in it.
        """
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            raise OperatorError(
                f"The identity that opens backups is missing: {file}. It is on the machine where `uds init` made it, "
                "and in your own safe copy of that file."
            ) from None
        if text.startswith(_ENCRYPTED):
            text = _decrypted(text, passphrase(), file)
        lines = [line.strip() for line in text.decode(errors="replace").splitlines()]
        try:
            found = [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
        except pyrage.IdentityError:
            found = []
        if not found:
            raise OperatorError(f"{file} is no age identity.")
        return cls(found, file)

    @property
    def recipients(self) -> list[str]:
        """The public keys that belong to them."""
        return [str(identity.to_public()) for identity in self.identities]

    def decrypt(self, source: _Source, target: IO[bytes], name: str) -> None:
        """Write what is in an encrypted stream to `target`. Nothing is written that isn't authentic, piece by piece.

        Raises:
            OperatorError: it is for other keys, or damaged; with `name` in it.
            BrokenPipeError: the target takes no more.
        """
        try:
            pyrage.decrypt_io(source, target, self.identities)
        except pyrage.DecryptError as error:
            if "No matching keys" in str(error):
                mine = ", ".join(self.recipients)
                raise OperatorError(
                    f"{name} was not encrypted for the identity in {self._file} ({mine}), or its beginning is damaged."
                ) from None
            raise OperatorError(f"{name} is damaged, or no encrypted file: {error}.") from None
        except BrokenPipeError:
            raise
        except OSError as error:
            # What pyrage calls a piece that isn't authentic, or missing.
            if error.errno is not None:
                raise
            raise OperatorError(f"{name} is damaged or cut off: {error}.") from None


def _decrypted(text: bytes, passphrase: str, file: Path) -> bytes:
    # pyrage refuses what would take 16 times as long as its own files, by a guess at this machine's speed from 2 ms of
    # it: another process at that moment, and the guess is far too low.
    for _ in range(100):
        try:
            found: bytes = pyrage.passphrase.decrypt(text, passphrase)
        except pyrage.DecryptError as error:
            if "Excessive work" not in str(error):
                raise OperatorError(f"The passphrase does not open {file}.") from None
        else:
            return found
    raise OperatorError(f"This machine is too slow, or too busy, to open {file}.")
