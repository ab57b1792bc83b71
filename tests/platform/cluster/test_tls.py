"""A Ray dashboard with a self-signed certificate: refused in one line, then used, logs included."""

import sys
from pathlib import Path

import pytest

from mimic3d_platform import local
from mimic3d_platform.cluster.connect import Cluster, find_cluster
from mimic3d_platform.cluster.dashboard import Dashboard
from mimic3d_platform.errors import UserError
from tls_proxy import TlsProxy, self_signed


@pytest.mark.slow
def test_jobs_behind_tls(stack: local.StackStatus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = self_signed(tmp_path)
    known = find_cluster()
    with TlsProxy(known.url, certificate, key) as proxy:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", proxy.url)
        cluster = Cluster(proxy.url, known.token, known.token_source)
        with pytest.raises(
            UserError, match=r"certificate that is not trusted here: .* REQUESTS_CA_BUNDLE"
        ) as caught:
            Dashboard(cluster)
        assert "\n" not in str(caught.value)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        dashboard = Dashboard(cluster)
        assert dashboard.resources()["CPU"] == 2
        job = dashboard.submit_job(entrypoint=f"{sys.executable} -c 'print(6 * 7)'")
        assert "42" in "".join(dashboard.stream_log(job))
