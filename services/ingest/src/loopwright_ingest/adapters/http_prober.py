"""Asks an address over HTTP, guarded: configuration may come from somebody who should not reach the cloud's metadata."""

from __future__ import annotations

import asyncio
import contextlib
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
            headers={"User-Agent": "loopwright-health-check", "Accept-Encoding": "identity"},
            # No connection is kept: one that the other side closed meanwhile would look like a failure.
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=0),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, url: str, timeout: timedelta) -> ProbeAnswer:
        """What the address answered. Never raises for what the network does."""
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                address, refusal = await self._resolve(url)
                if refusal:
                    return ProbeAnswer(None, "", refusal)
                # The address that was checked is the one that is asked: the name may stand for another one a moment later.
                asked = httpx.URL(url)
                request = self._client.build_request(
                    "GET",
                    asked.copy_with(host=address, userinfo=b""),
                    headers={"Host": asked.netloc.decode("ascii")},
                    timeout=timeout.total_seconds(),
                    extensions={"sni_hostname": asked.host},
                )
                async with contextlib.aclosing(await self._client.send(request, stream=True)) as response:
                    body = b""
                    async for chunk in response.aiter_raw(EXCERPT_BYTES):  # not decompressed: it may be a bomb
                        body += chunk
                        if len(body) >= EXCERPT_BYTES:
                            break
                    return ProbeAnswer(response.status_code, body[:EXCERPT_BYTES].decode("utf-8", errors="replace").replace("\x00", ""))
        except TimeoutError:
            return ProbeAnswer(None, "", f"no answer in {timeout.total_seconds():g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return ProbeAnswer(None, "", f"no answer ({type(error).__name__})")

    async def _resolve(self, url: str) -> tuple[str, str]:
        """(the address to ask, why it may not be asked). Every address a name stands for must be allowed."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return "", "the address is not http or https"
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), type=socket.SOCK_STREAM)
        for *_, address in found:
            ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
            if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
                ip = ip.ipv4_mapped
            # Link-local holds the clouds' metadata services (169.254.169.254): never.
            # ::1 is loopback, though Python also calls it reserved.
            if ip.is_link_local or ip.is_multicast or ip.is_unspecified or (ip.is_reserved and not ip.is_loopback):
                return "", f"{ip} may not be asked"
            if not self._allow_private and (ip.is_private or ip.is_loopback):
                return "", f"{ip} is private, and LOOPWRIGHT_INGEST_PROBE_PRIVATE_ADDRESSES is off"
        # IPv4 first: a service on localhost often listens on 127.0.0.1 alone.
        return str(min(found, key=lambda item: item[0] != socket.AF_INET)[-1][0]), ""
