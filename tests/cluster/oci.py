"""A folder as an OCI image archive (image-spec v1, one layer), without an engine and without a registry."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
TYPE = "application/vnd.oci.image"


def pack(name: str, root: Path, archive: Path, *, entrypoint: Sequence[str] = (), user: str = "") -> str:
    """Writes ``archive``, importable as ``name`` (with its tag); gives the manifest's digest.

    Everything in it belongs to root and carries no time, so that equal folders make equal images.
    """
    layer = _layer(root)
    platform_of = {"architecture": ARCHITECTURES[platform.machine()], "os": "linux"}
    settings = {"Entrypoint": list(entrypoint) or None, "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "WorkingDir": "/", "User": user}
    config = _json({**platform_of, "config": settings, "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]}, "history": [{}]})
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{TYPE}.manifest.v1+json",
            "config": _described(config, f"{TYPE}.config.v1+json"),
            "layers": [_described(layer, f"{TYPE}.layer.v1.tar")],
        }
    )
    labels = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rsplit(":", 1)[-1]}
    entry = {**_described(manifest, f"{TYPE}.manifest.v1+json"), "platform": platform_of, "annotations": labels}
    index = _json({"schemaVersion": 2, "mediaType": f"{TYPE}.index.v1+json", "manifests": [entry]})
    with tarfile.open(archive, "w") as made:
        _add(made, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(made, "index.json", index)
        for blob in (layer, config, manifest):
            _add(made, f"blobs/sha256/{_digest(blob).removeprefix('sha256:')}", blob)
    return _digest(manifest)


def _layer(root: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as layer:
        for path in sorted(root.rglob("*")):
            layer.add(path, arcname=str(path.relative_to(root)), recursive=False, filter=_anonymous)
    return buffer.getvalue()


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _described(content: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}
