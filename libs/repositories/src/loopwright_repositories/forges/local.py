"""The Forge port over HTTP to the ``local`` forge (``python -m loopwright_repositories.local_forge``)."""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from loopwright_repositories.errors import ForgeConflict, ForgeNotFound, ForgeRefused, ForgeUnavailable
from loopwright_repositories.forges.port import (
    CheckConclusion,
    CheckStatus,
    ForgeCheckRun,
    ForgeComment,
    ForgePullRequest,
    ForgeRepository,
    Person,
    PullRequestState,
    SyncedBranch,
)
from loopwright_repositories.git import GitCredential

TIMEOUT_SECONDS = 30.0
SYNC_TIMEOUT_SECONDS = 660.0  # an import may clone a large repository; the server's own limit is ten minutes
M = TypeVar("M", bound=BaseModel)


class LocalForge:
    """A client of one local forge. ``token`` needs the scope of what is asked: read, write or merge."""

    kind = "local"

    def __init__(self, url: str, token: SecretStr | None, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._url = url.rstrip("/")
        self._token = token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token is not None else {}
        self._http = httpx.AsyncClient(
            base_url=self._url, headers=headers, timeout=TIMEOUT_SECONDS, transport=transport, trust_env=False, follow_redirects=False
        )

    async def __aenter__(self) -> LocalForge:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    @property
    def credential(self) -> GitCredential | None:
        return GitCredential(self._token) if self._token is not None else None

    def clone_url(self, repository: str) -> str:
        return f"{self._url}/git/{repository}.git"

    async def ensure_repository(self, repository: str, *, source: str = "", default_branch: str = "main") -> ForgeRepository:
        wish = {"name": repository, "source": source, "default_branch": default_branch}
        return await self._one(ForgeRepository, "POST", "/api/v1/repos", wish, timeout=SYNC_TIMEOUT_SECONDS)

    async def sync_repository(self, repository: str) -> tuple[SyncedBranch, ...]:
        answer = await self._ask("POST", f"/api/v1/repos/{repository}/sync", {}, timeout=SYNC_TIMEOUT_SECONDS)
        return tuple(_read(SyncedBranch, item) for item in answer["branches"])

    async def open_pull_request(
        self, repository: str, *, head: str, base: str, title: str, body: str, draft: bool = True
    ) -> ForgePullRequest:
        wish = {"head": head, "base": base, "title": title, "body": body, "draft": draft}
        return await self._one(ForgePullRequest, "POST", f"/api/v1/repos/{repository}/pulls", wish)

    async def get_pull_request(self, repository: str, number: int) -> ForgePullRequest:
        return await self._one(ForgePullRequest, "GET", f"/api/v1/repos/{repository}/pulls/{int(number)}")

    async def find_pull_request(self, repository: str, head: str, state: PullRequestState | None = None) -> ForgePullRequest | None:
        found = await self._list(repository, {"head": head, "limit": "1", **({"state": state} if state else {})})
        return found[0] if found else None

    async def list_pull_requests(
        self, repository: str, state: PullRequestState | None = None, limit: int = 100
    ) -> tuple[ForgePullRequest, ...]:
        return await self._list(repository, {"limit": str(limit), **({"state": state} if state else {})})

    async def update_pull_request(
        self, repository: str, number: int, *, title: str | None = None, body: str | None = None
    ) -> ForgePullRequest:
        wish = {key: value for key, value in (("title", title), ("body", body)) if value is not None}
        return await self._one(ForgePullRequest, "PATCH", f"/api/v1/repos/{repository}/pulls/{int(number)}", wish)

    async def mark_ready(self, repository: str, number: int) -> ForgePullRequest:
        return await self._one(ForgePullRequest, "PATCH", f"/api/v1/repos/{repository}/pulls/{int(number)}", {"draft": False})

    async def diff(self, repository: str, number: int) -> str:
        answer = await self._ask("GET", f"/api/v1/repos/{repository}/pulls/{int(number)}/diff")
        return str(answer["diff"])

    async def comment(self, repository: str, number: int, body: str, *, author: str = "loopwright", key: str = "") -> ForgeComment:
        wish = {"body": body, "author": author, "key": key}
        return await self._one(ForgeComment, "POST", f"/api/v1/repos/{repository}/pulls/{int(number)}/comments", wish)

    async def list_comments(self, repository: str, number: int) -> tuple[ForgeComment, ...]:
        answer = await self._ask("GET", f"/api/v1/repos/{repository}/pulls/{int(number)}/comments")
        return tuple(_read(ForgeComment, item) for item in answer["comments"])

    async def set_check_run(
        self,
        repository: str,
        commit: str,
        name: str,
        *,
        status: CheckStatus,
        conclusion: CheckConclusion | None = None,
        summary: str = "",
    ) -> ForgeCheckRun:
        wish = {"name": name, "status": status, "conclusion": conclusion, "summary": summary}
        return await self._one(ForgeCheckRun, "POST", f"/api/v1/repos/{repository}/commits/{commit}/check-runs", wish)

    async def list_check_runs(self, repository: str, commit: str) -> tuple[ForgeCheckRun, ...]:
        answer = await self._ask("GET", f"/api/v1/repos/{repository}/commits/{commit}/check-runs")
        return tuple(_read(ForgeCheckRun, item) for item in answer["check_runs"])

    async def merge(
        self, repository: str, number: int, *, person: Person, expected_head: str | None = None, message: str = ""
    ) -> ForgePullRequest:
        wish = {"person": person.model_dump(), "expected_head": expected_head, "message": message}
        return await self._one(ForgePullRequest, "POST", f"/api/v1/repos/{repository}/pulls/{int(number)}/merge", wish)

    async def close(self, repository: str, number: int, *, closed_by: str, comment: str = "") -> ForgePullRequest:
        wish = {"closed_by": closed_by, "comment": comment}
        return await self._one(ForgePullRequest, "POST", f"/api/v1/repos/{repository}/pulls/{int(number)}/close", wish)

    async def _list(self, repository: str, query: dict[str, str]) -> tuple[ForgePullRequest, ...]:
        answer = await self._ask("GET", f"/api/v1/repos/{repository}/pulls", query=query)
        return tuple(_read(ForgePullRequest, item) for item in answer["pulls"])

    async def _one(
        self, model: type[M], method: str, path: str, wish: dict[str, Any] | None = None, *, timeout: float = TIMEOUT_SECONDS
    ) -> M:
        return _read(model, await self._ask(method, path, wish, timeout=timeout))

    async def _ask(
        self,
        method: str,
        path: str,
        wish: dict[str, Any] | None = None,
        *,
        query: dict[str, str] | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> dict[str, Any]:
        try:
            answer = await self._http.request(method, path, json=wish, params=query, timeout=timeout)
        except httpx.InvalidURL as error:
            raise ForgeRefused(f"{method} {path[:120]!r} is not a path on a forge: {error}") from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ForgeUnavailable(f"the local forge at {self._url} does not answer {method} {path}: {reason}") from error
        if answer.status_code >= 400:
            raise _failure(method, path, answer)
        try:
            said = answer.json()
        except ValueError as error:
            raise ForgeUnavailable(f"the local forge at {self._url} answered {method} {path} with something other than JSON") from error
        if not isinstance(said, dict):
            raise ForgeUnavailable(f"the local forge at {self._url} answered {method} {path} with a {type(said).__name__}")
        return said


def _read(model: type[M], item: Any) -> M:
    try:
        return model.model_validate(item)
    except ValidationError as error:
        raise ForgeRefused(f"the local forge's answer is not a {model.__name__}: {error.errors(include_url=False)[:1]}") from error


def _failure(method: str, path: str, answer: httpx.Response) -> Exception:
    try:
        detail = str(answer.json().get("detail", ""))[:1_000]
    except (ValueError, AttributeError):
        detail = answer.text[:200]
    message = f"local forge: {method} {path}: {answer.status_code} {detail}"
    if answer.status_code == 404:
        return ForgeNotFound(message)
    if answer.status_code == 409:
        return ForgeConflict(message)
    if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
        return ForgeUnavailable(message)
    return ForgeRefused(message)
