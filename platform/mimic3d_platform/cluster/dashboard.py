"""The HTTP interface of a Ray cluster's head: Ray's job client, with time limits and errors of one line."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from mimic3d_platform.cluster.connect import Cluster, UnreachableError
from mimic3d_platform.cluster.ray_internals import CLIENT_LOGGERS
from mimic3d_platform.cluster.resources import Processors
from mimic3d_platform.errors import UserError, one_line

FIRST_TIMEOUT_S = 20.0
# The whole log of a long job is one response, which a busy head takes long to send.
REQUEST_TIMEOUT_S = 60.0
# While a job prints nothing, its status is requested this often.
STATUS_EVERY_S = 5.0
_TRY_LATER = (502, 503, 504)


class Dashboard(JobSubmissionClient):
    """Ray's job client for one cluster.

    Every request has a time limit, and its failures are raised as `UnreachableError` (no response, or a head
    that is restarting) or `UserError` (token refused, no Ray dashboard, request refused).

    Raises:
        UserError: on construction, if no Ray dashboard answers at the cluster's address.
    """

    def __init__(self, cluster: Cluster) -> None:
        for name in CLIENT_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        self.cluster = cluster
        self._timeout_s = FIRST_TIMEOUT_S
        try:
            # `requests` reads this variable itself; the client's web sockets need the path.
            authorities = os.environ.get("REQUESTS_CA_BUNDLE") or True
            super().__init__(cluster.url, headers=cluster.headers, verify=authorities)
        except UserError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError):  # No version number in the response.
            raise UserError(self._not_ray()) from None
        self._timeout_s = REQUEST_TIMEOUT_S

    def resources(self) -> dict[str, float]:
        """Returns the total resources of all living nodes, such as `{"CPU": 8.0, "GPU": 2.0}`."""
        response = self._do_request("GET", "/api/v0/nodes?limit=10000&detail=1")
        nodes = response.json()["data"]["result"]["result"] if response.status_code == 200 else []
        total: dict[str, float] = {}
        for node in nodes:
            if node["state"] == "ALIVE":
                for name, amount in node["resources_total"].items():
                    total[name] = total.get(name, 0.0) + amount
        return total

    def require(self, workers: int) -> None:
        """Checks that the cluster has a GPU for each worker, or a CPU where it has no GPU.

        Raises:
            UserError: the cluster is too small.
        """
        have = Processors.of(self.resources())
        if workers > have.count:
            raise UserError(
                f"{workers} workers need as many {have.kind}s, the cluster at {self.cluster.url} has "
                f"{have.count}{' and no GPU' if have.kind == 'CPU' else ''}: lower --workers or add nodes"
            )

    def get_job_info(self, job_id: str) -> JobDetails:
        """Returns what the cluster knows of a job.

        Raises:
            UserError: it does not know the job.
        """
        try:
            return super().get_job_info(job_id)
        except RuntimeError:  # Status 404.
            raise UserError(
                f"Ray at {self.cluster.url} does not know the job {job_id}: was its head restarted? Submit "
                "it again, and its run resumes from its last checkpoint"
            ) from None

    def stream_log(self, job_id: str, skip: int = 0) -> Iterator[str]:
        """Yields a job's output from character `skip` on as it is written, until the job ends.

        The text may be empty: a sign that the job runs and prints nothing. Ray streams over a web socket and
        always from the start of the log; while the socket is silent, requests of the job's status tell a
        quiet job from a lost connection.

        Raises:
            UnreachableError: the head does not answer, or the web socket cannot be opened or breaks.
            UserError: the cluster does not know the job.
        """
        loop = asyncio.new_event_loop()
        chunks = self.tail_job_logs(job_id)
        received = 0
        try:
            while True:
                waiting = loop.create_task(anext(chunks, None))
                while not loop.run_until_complete(asyncio.wait({waiting}, timeout=STATUS_EVERY_S))[0]:
                    if self.get_job_info(job_id).status.is_terminal():
                        yield self.get_job_logs(job_id)[max(skip, received) :]
                        return
                    yield ""
                text = waiting.result()
                if text is None:
                    return
                yield text[max(skip - received, 0) :]
                received += len(text)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            if isinstance(error, aiohttp.ClientResponseError) and error.status == 404:
                self.get_job_info(job_id)  # Raises where the cluster does not know the job.
            reason = one_line(error, 200)
            raise UnreachableError(
                f"the log of {job_id} cannot be streamed from {self.cluster.url} ({reason}): "
                f"`mimic3d jobs logs {job_id}` shows what it has printed"
            ) from None
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
                loop.run_until_complete(asyncio.wait({task}))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _do_request(
        self,
        method: str,
        endpoint: str,
        *,
        data: bytes | None = None,
        json_data: dict[str, object] | None = None,
        **options: Any,  # Of `requests.request`.
    ) -> requests.Response:
        """Sends a request with a time limit; returns the response if its status is below 400 or 404."""
        url, limit = self.cluster.url, self._timeout_s
        options.setdefault("timeout", limit)
        try:
            response = super()._do_request(method, endpoint, data=data, json_data=json_data, **options)
        except AuthenticationError as error:
            raise UserError(self._refused(str(error))) from None
        except requests.exceptions.InvalidURL:
            raise UserError(f"{url} is not a URL: give --address http://HEAD:8265") from None
        except requests.exceptions.SSLError:
            raise UserError(
                f"Ray at {url} has a certificate that is not trusted here: name the file of its CA in "
                "REQUESTS_CA_BUNDLE"
            ) from None
        except requests.exceptions.RequestException as error:
            late = isinstance(error, requests.exceptions.Timeout)
            reason = f"nothing within {limit:.0f} s" if late else "no connection"
            raise UnreachableError(
                f"no Ray cluster answers at {url} ({reason}): check --address, and that its dashboard "
                "can be reached from here"
            ) from None
        status = response.status_code
        if status in _TRY_LATER:
            raise UnreachableError(f"Ray at {url} is not ready (status {status}): try again later")
        if status >= 400 and status != 404:
            reason = " ".join(response.text.split())[-300:]
            raise UserError(f"Ray at {url} refuses the request (status {status}): {reason}")
        return response

    def _refused(self, reason: str) -> str:
        if "Missing authentication token" in reason:
            return (
                f"Ray at {self.cluster.url} wants a token and none was given: set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH"
            )
        if "Invalid authentication token" in reason:
            return f"Ray at {self.cluster.url} refuses the token of {self.cluster.token_source}: correct it"
        return self._not_ray()

    def _not_ray(self) -> str:
        return f"what answers at {self.cluster.url} is no Ray dashboard: give --address http://HEAD:8265"
