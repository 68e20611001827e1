"""Asks the application once, on this server, whether it is well. Says on standard output why it isn't.

Arguments: the port, the file of the certificate that must be served, the path to ask for.

The certificate is for the public name, which need not lead here yet. So the connection is to the loopback address, and
trusts nothing but that one certificate: whoever answers has its key.
"""

import http.client
import ssl
import sys


def ask(port: int, certificate_file: str, path: str) -> str:
    """What is wrong, or nothing."""
    with open(certificate_file) as file:  # noqa: PTH123 - nothing is imported that isn't needed: it runs often
        pem = file.read()
    end = "-----END CERTIFICATE-----"
    own = pem[: pem.index(end) + len(end)]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=own)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # Whatever name it is for: it must be this very certificate.
    context.check_hostname = False
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
    try:
        connection.connect()
        if connection.sock.getpeercert(True) != ssl.PEM_cert_to_DER_cert(own):
            return "another certificate is served than the one that is installed"
        connection.request("GET", path)
        response = connection.getresponse()
        status = response.status
        # Its end, so that the application doesn't see a visitor who runs away.
        response.read(1024 * 1024)
    except (OSError, http.client.HTTPException) as error:
        return f"HTTPS on port {port}: {error or type(error).__name__}"
    finally:
        connection.close()
    return "" if status < 400 else f"{path} answers with status {status}"


if __name__ == "__main__":
    problem = ask(int(sys.argv[1]), sys.argv[2], sys.argv[3])
    print(problem)
    sys.exit(1 if problem else 0)
