"""Asks an address over HTTP, guarded: configuration may come from somebody who should not reach the cloud's metadata."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from datetime import timedelta
from urllib.parse import urlsplit

import httpx

from loopwright_ingest.ports import ProbeAnswer

EXCERPT_BYTES = 2_048


class HttpProber:
    """Implements ports.Prober. Follows no redirects, sends no credentials, reads at most 2 KiB."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._client = httpx.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            headers={"User-Agent": "loopwright-health-check"},
            limits=httpx.Limits(max_connections=100),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, url: str, timeout: timedelta) -> ProbeAnswer:
        """What the address answered. Never raises for what the network does."""
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                if refusal := await self._refuse(url):
                    return ProbeAnswer(None, "", refusal)
                async with self._client.stream("GET", url, timeout=timeout.total_seconds()) as response:
                    body = b""
                    async for chunk in response.aiter_bytes(EXCERPT_BYTES):
                        body += chunk
                        if len(body) >= EXCERPT_BYTES:
                            break
                    return ProbeAnswer(response.status_code, body[:EXCERPT_BYTES].decode("utf-8", errors="replace").replace("\x00", ""))
        except TimeoutError:
            return ProbeAnswer(None, "", f"no answer in {timeout.total_seconds():g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            return ProbeAnswer(None, "", f"no answer ({type(error).__name__})")

    async def _refuse(self, url: str) -> str:
        """Why the address may not be asked; empty when it may. Every address a name stands for must be allowed."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return "the address is not http or https"
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), type=socket.SOCK_STREAM)
        for *_, address in found:
            ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
            if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
                ip = ip.ipv4_mapped
            # Link-local holds the clouds' metadata services (169.254.169.254): never.
            if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
                return f"{ip} may not be asked"
            if not self._allow_private and (ip.is_private or ip.is_loopback):
                return f"{ip} is private, and LOOPWRIGHT_INGEST_PROBE_PRIVATE_ADDRESSES is off"
        return ""
