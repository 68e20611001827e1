"""The plugin's process, as Pulumi starts it: `python -m rehearsal.linode ENGINE`."""

import argparse

from rehearsal.linode.resources import resources
from rehearsal.linode_plugin import NAME
from rehearsal.provider.base import StandIn, serve, workspace


def main() -> None:
    """Serve until the engine ends it."""
    arguments = argparse.ArgumentParser(description="Linode in a rehearsal, for Pulumi")
    arguments.add_argument("engine", help="address of the Pulumi engine")
    # Pulumi adds its logging options when it runs verbosely.
    known, _ = arguments.parse_known_args()
    serve(known.engine, "6.8.0", StandIn(resources(workspace(NAME))))


if __name__ == "__main__":
    main()
