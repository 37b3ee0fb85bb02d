"""The gateway's and ingest's HTTP API, as the commands use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx

TIMEOUT_SECONDS = 30.0


class ApiFailed(Exception):
    """The API said no, or did not answer. ``status`` is 0 when it did not answer."""

    def __init__(self, status: int, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors or []


class Api:
    """A client of one server. ``base_url`` without a path."""

    def __init__(self, base_url: str, token: str = "", timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.base_url = base_url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(base_url=self.base_url, headers=headers, timeout=timeout_seconds, trust_env=False)

    def get(self, path: str, **parameters: Any) -> Any:
        """The answer's JSON. Raises ApiFailed."""
        return self._ask("GET", path, params={key: value for key, value in parameters.items() if value not in (None, "")})

    def text(self, path: str) -> str:
        """The answer as text. Raises ApiFailed."""
        return self._send("GET", path).text

    def post(self, path: str, body: Any = None) -> Any:
        return self._ask("POST", path, json=body if body is not None else {})

    def put(self, path: str, body: Any, **parameters: Any) -> Any:
        return self._ask("PUT", path, json=body, params=parameters)

    def pages(self, path: str, limit: int, **parameters: Any) -> Iterator[Any]:
        """Up to ``limit`` items of a list, page by page."""
        cursor: str | None = None
        while limit > 0:
            page = self.get(path, cursor=cursor, limit=min(limit, 200), **parameters)
            yield from page["items"][:limit]
            limit -= len(page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        response = self._send(method, path, **more)
        return response.json() if response.content else None

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, **more)
        except httpx.HTTPError as error:
            raise ApiFailed(0, f"{self.base_url} does not answer ({type(error).__name__}). Is `loopwright up` running?") from error
        except (httpx.InvalidURL, UnicodeError) as error:  # of an id with a line break, or bytes that are no text
            raise ApiFailed(422, f"{self.base_url}{path} is not an address: {error}") from error
        if response.status_code < 400:
            return response
        try:
            problem = response.json()
            detail, errors = str(problem.get("detail") or problem.get("title")), problem.get("errors") or []
        except (ValueError, AttributeError):
            detail, errors = response.text[:500], []
        raise ApiFailed(response.status_code, detail, errors)
