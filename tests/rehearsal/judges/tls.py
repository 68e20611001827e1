# /// script
# requires-python = ">=3.11"
# dependencies = ["sslyze==6.3.1"]
# ///
"""Holds a TLS server to Mozilla's intermediate profile, by sslyze: prints the issues as JSON, name -> words.

A program of its own, since sslyze wants older libraries than the project does. Its lock is beside it.
"""

import argparse
import json
import socket
import threading

from sslyze import Scanner, ServerNetworkLocation, ServerScanRequest
from sslyze.mozilla_tls_profile.tls_config_checker import (
    SCAN_COMMANDS_NEEDED_BY_MOZILLA_CHECKER,
    MozillaTlsConfiguration,
    ServerNotCompliantWithTlsConfiguration,
    TlsConfigurationEnum,
    check_server_against_tls_configuration,
)

# The client's first packet (MySQL's protocol, "SSLRequest"): 32 bytes, the second packet; then its capabilities (among
# them TLS), the largest packet and a character set. What follows on the same connection is TLS.
_SSL_REQUEST = (
    bytes([32, 0, 0, 1])
    + (0x0008_8A05).to_bytes(4, "little")
    + (1 << 24).to_bytes(4, "little")
    + bytes([45])
    + bytes(23)
)


def past_the_greeting(address: str, port: int) -> int:
    """A local port where a MySQL server's TLS begins at once, which is what sslyze can talk to."""
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            server = socket.create_connection((address, port), 10)
            greeting = server.recv(4, socket.MSG_WAITALL)
            server.recv(int.from_bytes(greeting[:3], "little"), socket.MSG_WAITALL)
            server.sendall(_SSL_REQUEST)
            for pair in ((client, server), (server, client)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def issues(address: str, port: int) -> dict[str, str]:
    """Where the server is weaker than the profile."""
    scanner = Scanner()
    scanner.queue_scans(
        [
            ServerScanRequest(
                server_location=ServerNetworkLocation(hostname=address, port=port, ip_address=address),
                scan_commands=SCAN_COMMANDS_NEEDED_BY_MOZILLA_CHECKER,
            )
        ]
    )
    (result,) = scanner.get_results()
    profile = MozillaTlsConfiguration.get(TlsConfigurationEnum.MOZILLA_INTERMEDIATE)
    try:
        check_server_against_tls_configuration(result, profile)
    except ServerNotCompliantWithTlsConfiguration as found:
        return dict(found.issues)
    return {}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--mysql", action="store_true")
    given = parser.parse_args()
    address, port = given.address, given.port
    if given.mysql:
        address, port = "127.0.0.1", past_the_greeting(address, port)
    print(json.dumps(issues(address, port)))


if __name__ == "__main__":
    main()
