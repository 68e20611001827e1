"""The same stock machines hardened by ansible with dev-sec's collection, which many would take in our place."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from rehearsal.bench.clock import run, seconds
from rehearsal.bench.figures import Figure
from rehearsal.image import Progress
from rehearsal.machines import MachineSpec
from rehearsal.network import PUBLIC, Nic
from rehearsal.realm import Realm
from uds import ssh
from uds.stack import OperatorError

TITLE = "Two servers by ansible with dev-sec's hardening"
HOSTS = ("app", "db")
PLAYBOOK = Path(__file__).with_suffix(".yml")
# A version, so that figures of different days can be compared; in an environment of its own, which uv keeps.
ANSIBLE = ("tool", "run", "--python", sys.executable, "--from", "ansible-core", "--with", "ansible==12.3.0")


def check(collection: Path) -> None:
    """Say early what would be found out late.

    Raises:
        OperatorError: this is no copy of the collection.
    """
    for role in ("os_hardening", "ssh_hardening"):
        if not (collection / "roles" / role).is_dir():
            raise OperatorError(f"{collection} is not dev-sec's collection devsec.hardening: it has no roles/{role}.")


def compare(collection: Path, image: str, up: float, nothing: float, progress: Progress) -> list[Figure]:
    """What it takes for two machines that are up already, beside our `make up` from nothing and our empty run."""
    with tempfile.TemporaryDirectory() as name, _booted(Path(name), image, progress):
        command = _prepare(Path(name), collection)
        # Once before: it gets and compiles ansible, and finds out what is wrong.
        _play([*command, "--syntax-check"], Path(name))
        first, again = [seconds(lambda: _play(command, Path(name))) for _ in range(2)]
    return figures(first, again, up, nothing)


def figures(first: float, again: float, up: float, nothing: float) -> list[Figure]:
    """The results, each in parts of theirs."""
    return [
        Figure("first run, on two booted servers", first),
        Figure("a second run, nothing to do", again),
        Figure("of the first, our `make up` from nothing takes", up / first, "times", "0.5 times"),
        Figure("of the second, our `pulumi up` with nothing to do takes", nothing / again, "times", "0.1 times"),
    ]


@contextmanager
def _booted(folder: Path, image: str, progress: Progress) -> Iterator[None]:
    """Machines as the cloud gives them, with a key for root; the folder has an SSH configuration that reaches them."""
    key = folder / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], folder, os.environ)
    public = key.with_suffix(".pub").read_text().strip()
    realm = Realm.open(folder)
    try:
        realm.start(progress)

        def boot(name: str) -> dict[str, str]:
            spec = MachineSpec(name, (Nic(PUBLIC, ()),), image=image, root_keys=(public,))
            machine = realm.power.create(spec, progress)
            # Whatever it says: some versions call a warning an error.
            realm.power.exec(machine.number, ["cloud-init", "status", "--wait"])
            # Ansible's modules need it; the clouds' own images have it, and ours is smaller.
            realm.power.exec(machine.number, ["sh", "-c", "apt-get -qq update && apt-get -qq -y install python3-apt"])
            host_key = realm.power.exec(machine.number, ["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout.strip()
            # As an application server it is reached directly.
            return {"role": "app", "publicIp": machine.addresses()[0], "hostKey": host_key}

        with ThreadPoolExecutor() as pool:
            servers = dict(zip(HOSTS, pool.map(boot, HOSTS), strict=True))
        options = (f"IdentityFile {key}", "IdentitiesOnly yes", "IdentityAgent none")
        ssh.write_config(folder, {"servers": servers, "sshUser": "root"}, *options)
        yield
    finally:
        realm.destroy()


def _prepare(folder: Path, collection: Path) -> list[str]:
    """Write what ansible reads, in place of the user's own, and give its command."""
    place = folder / "collections" / "ansible_collections" / "devsec"
    place.mkdir(parents=True)
    (place / "hardening").symlink_to(collection.absolute())
    settings = f"[defaults]\nhome = {folder}\ncollections_path = {folder / 'collections'}\n"
    (folder / "ansible.cfg").write_text(f"{settings}[ssh_connection]\nssh_common_args = -F {folder / 'config'}\n")
    return [os.environ["UV"], *ANSIBLE, "ansible-playbook", "--inventory", f"{','.join(HOSTS)},", str(PLAYBOOK)]


def _play(command: Sequence[str], folder: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OperatorError(f"ansible-playbook failed:\n{(done.stdout + done.stderr)[-4000:]}")
