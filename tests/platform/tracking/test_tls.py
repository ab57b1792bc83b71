"""An MLflow with a self-signed certificate is refused in one line, and reached once the file is named."""

import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import tls_proxy
from mimic3d_platform.errors import UserError
from mimic3d_platform.tracking.server import check_tracking


class _Answer(http.server.BaseHTTPRequestHandler):
    """Answers the check of an MLflow server: it has no experiments."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def self_signed(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server on loopback, and the file of its certificate."""
    certificate, key = tls_proxy.self_signed(tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}", certificate
    server.shutdown()
    server.server_close()


def test_a_self_signed_certificate_has_to_be_named(
    self_signed: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, certificate = self_signed
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError, match="has a certificate that is not trusted here") as caught:
        check_tracking()
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    assert check_tracking() == address
