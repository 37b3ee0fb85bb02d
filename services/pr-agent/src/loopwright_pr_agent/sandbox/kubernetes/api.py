"""The few calls of the cluster that are used, with plain JSON in and out. Blocking; the sandbox calls them in threads.

What they need, and all they need, in the sandbox namespace: jobs and pods get, list, watch, create, delete; pods/log get.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from loopwright_pr_agent.sandbox.port import SandboxBroken

if TYPE_CHECKING:
    from kubernetes.client.api_client import ApiClient
    from kubernetes.client.rest import RESTResponse

Kind = Literal["jobs", "pods"]
GROUPS: Mapping[str, str] = {"jobs": "/apis/batch/v1", "pods": "/api/v1"}
RULES = (
    *((verb, "batch", "jobs", "") for verb in ("get", "list", "watch", "create", "delete")),
    *((verb, "", "pods", "") for verb in ("get", "list", "watch", "create", "delete")),
    ("get", "", "pods", "log"),
)
CALL_SECONDS = 30.0
LOG_BYTES_MAX = 16 * 1024
LISTED_MAX = 1_000
SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class ApiRefused(Exception):
    """The API server's no: its status, reason (``AlreadyExists``, ``NotFound``, ...) and words."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"status {status} {reason}: {message}")
        self.status, self.reason, self.message = status, reason, message


class ApiUnreachable(Exception):
    """The API server gave no answer, or one of its own trouble: ask again."""


class WatchExpired(Exception):
    """The version to watch from is no longer known (410): list again."""


@dataclass(frozen=True)
class Listed:
    """Objects, and the version of the collection they were read at."""

    items: list[dict[str, Any]]
    version: str


class JobsApi(Protocol):
    """One namespace. All raise ApiRefused and ApiUnreachable."""

    def create(self, kind: Kind, manifest: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]: ...

    def get_job(self, name: str) -> dict[str, Any] | None: ...

    def delete_job(self, name: str, uid: str) -> None:
        """Deletes the Job of that uid and, in the background, its pod. Nothing happens when it is not there or is another."""
        ...

    def list(self, kind: Kind, selector: str) -> Listed: ...

    def watch(self, kind: Kind, selector: str, version: str, seconds: float) -> bool:
        """Waits for a change after ``version``: True when there was one, False when ``seconds`` passed. Raises WatchExpired."""
        ...

    def log(self, pod: str) -> str:
        """The end of what the pod's runner said of its own state; empty where there is nothing yet."""
        ...

    def may(self, verb: str, group: str, resource: str, subresource: str) -> bool:
        """Whether this service's account has the permission."""
        ...


class ClusterApi:
    """A real cluster, by the official client."""

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self._client, self._namespace = client, namespace

    @classmethod
    def connect(cls, namespace: str) -> ClusterApi:
        """As the pod's service account, or by KUBECONFIG outside of a pod. Blocking. Raises SandboxBroken."""
        from kubernetes import client, config  # takes a second and 60 MB, which one machine does not pay

        configuration = client.Configuration()
        try:
            if SERVICE_ACCOUNT_TOKEN.exists() and "KUBECONFIG" not in os.environ:
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            else:
                config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except (config.ConfigException, OSError) as error:
            raise SandboxBroken(f"there is no way to a cluster: {error}; run in a pod with a service account, or set KUBECONFIG") from error
        return cls(client.ApiClient(configuration), namespace)

    def create(self, kind: Kind, manifest: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        query = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        return self._json("POST", self._path(kind), query, manifest)

    def get_job(self, name: str) -> dict[str, Any] | None:
        try:
            return self._json("GET", f"{self._path('jobs')}/{name}")
        except ApiRefused as error:
            if error.status == 404:
                return None
            raise

    def delete_job(self, name: str, uid: str) -> None:
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            self._json("DELETE", f"{self._path('jobs')}/{name}", {}, options)
        except ApiRefused as error:
            if error.status not in (404, 409):
                raise

    def list(self, kind: Kind, selector: str) -> Listed:
        said = self._json("GET", self._path(kind), {"labelSelector": selector, "limit": str(LISTED_MAX)})
        return Listed(said.get("items") or [], said["metadata"]["resourceVersion"])

    def watch(self, kind: Kind, selector: str, version: str, seconds: float) -> bool:
        query = {"labelSelector": selector, "watch": "true", "resourceVersion": version, "timeoutSeconds": str(max(1, int(seconds)))}
        response = self._call("GET", self._path(kind), query, seconds=seconds + CALL_SECONDS)
        try:
            for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    if status.get("code") == 410:
                        raise WatchExpired
                    raise ApiUnreachable(str(status.get("message", ""))[:300])
                if event["type"] != "BOOKMARK":
                    return True
            return False
        except (OSError, ValueError) as error:
            raise ApiUnreachable(f"the watch broke off: {error}") from error
        finally:
            response.response.close()  # one event is enough: what is there is read anew

    def log(self, pod: str) -> str:
        try:
            response = self._call("GET", f"{self._path('pods')}/{pod}/log", {"limitBytes": str(LOG_BYTES_MAX), "tailLines": "40"})
            return bytes(response.response.read()).decode("utf-8", "replace")
        except (ApiRefused, ApiUnreachable, OSError):
            return ""

    def may(self, verb: str, group: str, resource: str, subresource: str) -> bool:
        attributes = {"namespace": self._namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource}
        review = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes},
        }  # fmt: skip
        said = self._json("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {}, review)
        return bool(said.get("status", {}).get("allowed"))

    def _path(self, kind: Kind) -> str:
        return f"{GROUPS[kind]}/namespaces/{self._namespace}/{kind}"

    def _json(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        response = self._call(method, path, query or {}, body)
        try:
            said = json.loads(response.response.read())
        except (OSError, ValueError) as error:
            raise ApiUnreachable(f"the API server's answer cannot be read: {error}") from error
        return said if isinstance(said, dict) else {}

    def _call(
        self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None = None, seconds: float = CALL_SECONDS
    ) -> RESTResponse:
        import urllib3
        from kubernetes.client.exceptions import ApiException

        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        try:
            method, url, headers, sent, _ = self._client.param_serialize(
                method, path, query_params=list(query.items()), header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = self._client.call_api(method, url, headers, sent, _request_timeout=(10.0, seconds))
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise ApiUnreachable(f"the API server does not answer: {type(error).__name__}: {str(error)[:300]}") from error
        if response.status < 300:
            return response
        try:
            said = json.loads(response.response.read(1024**2))
            reason, message = str(said.get("reason", "")), str(said.get("message", ""))
        except (ValueError, OSError, AttributeError):
            reason, message = "", ""
        if response.status == 410:
            raise WatchExpired
        if response.status in (408, 429) or response.status >= 500:
            raise ApiUnreachable(f"the API server answers with status {response.status} {message[:300]}")
        raise ApiRefused(response.status, reason, message)


def _lines(response: RESTResponse) -> Any:
    left = b""
    for part in response.response.stream(4_096):
        left += part
        *lines, left = left.split(b"\n")
        yield from (line for line in lines if line.strip())
