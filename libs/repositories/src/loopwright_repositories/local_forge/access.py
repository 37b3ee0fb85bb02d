"""Who is asking: Bearer for programs, Basic (any user name, the token as password) for git and browsers."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from loopwright_repositories.local_forge.problems import Problem
from loopwright_repositories.local_forge.settings import Access, ForgeSettings, Tokens

CHALLENGE = {"WWW-Authenticate": 'Basic realm="loopwright forge", charset="UTF-8"'}
AUTHORIZATION_CHARACTERS_MAX = 2_048
_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})


def access_of(headers: Headers, tokens: Tokens, settings: ForgeSettings) -> Access:
    """What the request's token may do. Raises Problem 401 when a token is sent and unknown."""
    authorization = headers.get("authorization", "")
    if not authorization:
        return Access.READ if settings.anonymous_read else Access.NONE
    access = tokens.access_of(_token(authorization))
    if access is Access.NONE:
        raise Problem(401, "this token is not known here; see LOOPWRIGHT_FORGE_*_TOKEN", CHALLENGE)
    return access


def require(access: Access, needed: Access) -> None:
    """Raises Problem 401 or 403 when ``access`` does not reach ``needed``."""
    if access >= needed:
        return
    if access is Access.NONE:
        raise Problem(401, f"send a token with the {needed.name.lower()} scope as Bearer, or as the password of Basic", CHALLENGE)
    raise Problem(403, f"this needs a token with the {needed.name.lower()} scope; yours has {access.name.lower()}")


def check_host(headers: Headers, settings: ForgeSettings) -> None:
    """Refuses a request that names a host we are not: a web page elsewhere may point its own name at loopback (DNS rebinding)."""
    named = urlsplit("//" + headers.get("host", "")).hostname or ""
    ours = {urlsplit(settings.base_url).hostname or "", settings.host, *_LOOPBACK_NAMES}
    ours |= {name.strip().lower() for name in settings.allowed_hosts.split(",") if name.strip()}
    if named not in ours:
        remedy = "set LOOPWRIGHT_FORGE_PUBLIC_URL to the name people use, or add it to LOOPWRIGHT_FORGE_ALLOWED_HOSTS"
        raise Problem(403, f"this forge is not {named[:100]!r}; {remedy}")


def _token(authorization: str) -> str:
    scheme, _, value = authorization[:AUTHORIZATION_CHARACTERS_MAX].partition(" ")
    if scheme.lower() in ("bearer", "token"):
        return value.strip()
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(value.strip(), validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise Problem(401, "the Basic credential is not base64 of user:token", CHALLENGE) from error
        user, _, password = pair.partition(":")
        return password or user
    raise Problem(401, "send the token as Bearer, or as the password of Basic", CHALLENGE)
