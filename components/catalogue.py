"""What clouds and operating systems offer, and what they keep for themselves."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Image:
    """One supported operating system.

    `openssh` is the version in the image's archive. `linode` is Linode's own name for it, `aws` the public parameter
    (SSM) in which its maker keeps the number of the newest image.
    """

    openssh: tuple[int, int]
    linode: str
    aws: str


IMAGES: dict[str, Image] = {
    "debian13": Image(openssh=(10, 0), linode="linode/debian13", aws="/aws/service/debian/release/13/latest/amd64"),
    "debian12": Image(openssh=(9, 2), linode="linode/debian12", aws="/aws/service/debian/release/12/latest/amd64"),
    "ubuntu24.04": Image(
        openssh=(9, 6),
        linode="linode/ubuntu24.04",
        aws="/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
    ),
}


# As the vendors listed them on 2026-11-24. A new region is one word more here.
REGIONS: dict[str, frozenset[str]] = {
    "linode": frozenset(
        "ap-northeast ap-south ap-southeast ap-west au-mel br-gru ca-central de-fra-2 es-mad eu-central eu-west fr-par "
        "gb-lon id-cgk in-bom-2 in-maa it-mil jp-osa jp-tyo-3 nl-ams se-sto sg-sin-2 us-central us-east us-iad "
        "us-iad-2 us-lax us-mia us-ord us-sea us-southeast us-west".split()
    ),
    "aws": frozenset(
        "af-south-1 ap-east-1 ap-east-2 ap-northeast-1 ap-northeast-2 ap-northeast-3 ap-south-1 ap-south-2 "
        "ap-southeast-1 ap-southeast-2 ap-southeast-3 ap-southeast-4 ap-southeast-5 ap-southeast-6 ap-southeast-7 "
        "ca-central-1 ca-west-1 eu-central-1 eu-central-2 eu-north-1 eu-south-1 eu-south-2 eu-west-1 eu-west-2 "
        "eu-west-3 il-central-1 me-central-1 me-south-1 mx-central-1 sa-east-1 us-east-1 us-east-2 us-west-1 "
        "us-west-2".split()
    ),
}

# Where servers that the world reaches stand in a subnet of their own, because routes belong to a subnet.
SPLIT_NETWORKS: frozenset[str] = frozenset({"aws"})

# The smallest size that runs a role comfortably. Every size can be changed in place later.
DEFAULT_SIZES: dict[str, str] = {"linode": "g6-nanode-1", "aws": "t3.micro"}

# Accounts that the operating systems, their services or this project own: an admin of that name would take them over.
RESERVED_NAMES = frozenset(
    "root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc gnats nobody sshd messagebus "
    "mysql mariadb monit ntp chrony syslog tss landscape pollinate fwupd-refresh debian ubuntu admin ec2-user linode "
    "application backup-push postfix sudo adm ssh-users uds-admins shadow staff users deploy".split()
)
