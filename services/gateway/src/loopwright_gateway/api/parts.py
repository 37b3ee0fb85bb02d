"""What routes are given, and what they share: who is asking, how pages are named, which errors are documented."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import Depends, Header, Request
from loopwright_common.auth import TOKEN_LENGTH_MAX, bearer
from loopwright_common.bus import Bus
from loopwright_common.clock import Clock
from loopwright_common.problems import MEDIA_TYPE, Problem, ProblemError

from loopwright_gateway.catalogue import Catalogue
from loopwright_gateway.people import People
from loopwright_gateway.ports import Account, Accounts, Inbox, Store
from loopwright_gateway.settings import GatewaySettings

COOKIE = "loopwright_session"
ROLES = {"viewer": 0, "responder": 1, "admin": 2}
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Parts:
    """The running service, as routes see it."""

    settings: GatewaySettings
    store: Store
    inbox: Inbox
    people: People
    catalogue: Catalogue
    accounts: Accounts
    bus: Bus
    clock: Clock
    wait_committed: Callable[[float], Any]  # returns after the next commit, or after so many seconds


def parts(request: Request) -> Parts:
    """The parts of the running app. Raises a 503 problem before it has started."""
    found: Parts | None = getattr(request.app.state, "parts", None)
    if found is None:
        raise ProblemError(503, "The gateway is starting.", headers={"Retry-After": "1"})
    return found


PartsOf = Annotated[Parts, Depends(parts)]


async def caller(request: Request, parts: PartsOf) -> Account:
    """Who is asking, by bearer token or by session cookie. Raises 401, or 403 for a cookie's request from elsewhere."""
    token = bearer(request.headers)
    by_cookie = False
    if token is None:
        token = request.cookies.get(COOKIE, "")
        by_cookie = True
    account = await parts.accounts.find(token, parts.clock.now()) if 0 < len(token) <= TOKEN_LENGTH_MAX else None
    if account is None:
        raise ProblemError(
            401,
            "This needs a token: Authorization: Bearer <token>, or a session. The operator's token is in the data folder's secrets.",
            headers={"WWW-Authenticate": 'Bearer realm="loopwright"'},
        )
    if by_cookie and request.method not in SAFE_METHODS:
        check_origin(request)
    return account


def check_origin(request: Request) -> None:
    """A browser says where a request comes from: only our own pages may change something with its cookie."""
    origin = request.headers.get("origin", "")
    if not origin or urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
        raise ProblemError(403, "A request with a session cookie must come from the inbox's own pages (its Origin is another).")


Caller = Annotated[Account, Depends(caller)]


def _at_least(role: Literal["responder", "admin"]) -> Callable[[Account], Account]:
    def check(account: Caller) -> Account:
        if ROLES[account.role] < ROLES[role]:
            raise ProblemError(403, f"{account.name} is a {account.role}; this needs a {role}. An admin can make such a token.")
        return account

    return check


Responder = Annotated[Account, Depends(_at_least("responder"))]
Admin = Annotated[Account, Depends(_at_least("admin"))]


def actor(account: Account) -> str:
    """The account as timelines name it."""
    return f"person:{account.name}"


def version_seen(
    if_match: Annotated[str | None, Header(description='The version acted on, as "7"; 409 when it is stale.')] = None,
) -> int | None:
    """The version in an If-Match header (RFC 9110, section 13.1.1), or None."""
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().strip('"')
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ProblemError(422, 'If-Match must be the version of the report, as in "7".')
    return int(text)


Version = Annotated[int | None, Depends(version_seen)]


def encode_cursor(kind: str, after: list[Any] | None) -> str | None:
    """Where the next page begins, as an opaque text."""
    if after is None:
        return None
    return base64.urlsafe_b64encode(json.dumps([kind, *after]).encode()).decode().rstrip("=")


def decode_cursor(kind: str, cursor: str | None, types: tuple[type, ...]) -> list[Any] | None:
    """The other way round. Raises a 422 problem for what we did not make, or made for another order."""
    if not cursor:
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
        if not isinstance(found, list) or found[0] != kind or len(found) != len(types) + 1:
            raise ValueError
        after = found[1:]
        if not all(type(value) is kind_of for value, kind_of in zip(after, types, strict=True)):
            raise ValueError
        if any(isinstance(value, int) and abs(value) >= 2**62 for value in after):
            raise ValueError
        "".join(value for value in after if isinstance(value, str)).encode()  # no database takes half a surrogate pair
    except (ValueError, IndexError, UnicodeError) as error:
        raise ProblemError(422, "The cursor is not one of this list in this order: begin again without it.") from error
    return after


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documents the errors a route answers with."""
    words = {
        400: "The request is not HTTP or JSON as it should be.",
        401: "No token, or one that is not in force.",
        403: "The role does not suffice.",
        404: "It does not exist.",
        409: "The state or a limit does not allow it; detail says why.",
        413: "The body is over the limit.",
        422: "A field cannot be used; errors names it.",
        503: "A part that is needed does not answer; try again.",
    }
    schema = Problem.model_json_schema()
    # Written out: "#/$defs/FieldError" would lead nowhere inside the OpenAPI document.
    schema["properties"]["errors"]["items"] = schema.pop("$defs")["FieldError"]
    content = {MEDIA_TYPE: {"schema": schema}}
    return {status: {"description": words[status], "content": content} for status in statuses}


READ = problems(400, 401, 403, 404, 422, 503)
WRITE = problems(400, 401, 403, 404, 409, 413, 422, 503)
