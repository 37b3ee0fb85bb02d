"""Brings everything the checkout needs: uv, a virtual environment with the locked packages, the embedding model, a sandbox, a browser.

    python3 tools/setup.py            what `make up` and `make demo` need
    python3 tools/setup.py --tests    also what `make test` and `make check` need
    python3 tools/setup.py --uv       prints where uv is, after bringing it

Standard library only: it runs before anything is installed. A second call takes a moment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
MODEL = CACHE / "models" / "minilm-int8"
UV_VERSION = "0.13.9"
PYTHON_LEAST = (3, 11)
SERVICES = sorted(f"services/{path.parent.name}" for path in ROOT.glob("services/*/pyproject.toml"))
PACKAGES = ["libs/common", "libs/repositories", *SERVICES, "cli"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CI = os.environ.get("CI", "") not in ("", "0", "false")


def say(text: str) -> None:
    print(f"\033[2m·\033[0m {text}" if sys.stderr.isatty() else f"· {text}", file=sys.stderr, flush=True)


def stop(text: str) -> None:
    print(f"✗ {text}", file=sys.stderr)
    sys.exit(1)


def complain(text: str) -> None:
    """Something is missing that much works without. In CI that is an error: what is not tested there must not look tested."""
    if CI:
        stop(text)
    say(text)


def run(*command: str | Path, quiet: bool = False, show: bool = True, **environment: str) -> bool:
    """Runs a command in the checkout; whether it succeeded. Its output is shown; ``quiet``: of failures only; not ``show``: never."""
    arguments = [str(part) for part in command]
    capture = quiet or not show
    try:
        done = subprocess.run(arguments, cwd=ROOT, env=os.environ | environment, capture_output=capture, text=True, check=False)
    except OSError as error:
        if show:
            print(error, file=sys.stderr)
        return False
    if done.returncode and quiet and show:
        print((done.stdout or "") + (done.stderr or ""), file=sys.stderr)
    return done.returncode == 0


def find_uv() -> Path | None:
    for candidate in (CACHE / "uv" / "bin" / "uv", shutil.which("uv")):
        # Asked, not only looked for: version managers put a uv on the PATH that only says that there is none.
        if candidate and Path(candidate).exists() and run(candidate, "--version", show=False):
            return Path(candidate)
    return None


def bring_uv() -> Path:
    """uv, installed into the checkout by whatever pip there is."""
    if found := find_uv():
        return found
    say(f"installing uv {UV_VERSION} into .cache/uv")
    target = CACHE / "uv"
    wanted = f"uv=={UV_VERSION}"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", target, wanted)
    ways = [
        lambda: run(*pip, show=False),
        lambda: _uv_by_venv(target, wanted),
        lambda: _apt("python3-venv") and _uv_by_venv(target, wanted),
    ]
    for way in ways:
        if way() and (found := find_uv()):
            return found
    stop("uv could not be installed: this Python has neither pip nor venv. As root, type: apt-get install python3-venv")
    raise AssertionError


def _uv_by_venv(target: Path, wanted: str) -> bool:
    shutil.rmtree(target, ignore_errors=True)
    if not run(sys.executable, "-m", "venv", target, show=False):
        shutil.rmtree(target, ignore_errors=True)
        return False
    return run(target / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted, quiet=True)


def _apt(*packages: str) -> bool:
    """Installs Debian packages when we are root and this is Debian; whether it did."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    say(f"installing the Debian package{'s' if len(packages) > 1 else ''} {', '.join(packages)}")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    install = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages)
    if run(*install, quiet=True, **environment):
        return True
    return run("apt-get", "update", "-qq", quiet=True) and run(*install, quiet=True, **environment)


def fingerprint() -> str:
    """What the environment is made from: when it changes, the environment is made again."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {sysconfig.get_platform()} {ROOT}".encode())
    for path in [ROOT / "requirements.lock", *(ROOT / package / "pyproject.toml" for package in PACKAGES), Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def bring_environment() -> None:
    stamp = VENV / "loopwright.stamp"
    wanted = fingerprint()
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    uv = bring_uv()
    if not PYTHON.exists() or not run(PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))", quiet=True):
        say(f"making .venv with Python {sys.version.split()[0]}")
        if not run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, VENV):
            stop("the virtual environment could not be made")
    say("installing the locked packages (about 200 MB the first time)")
    loudness = [] if sys.stderr.isatty() else ["--quiet"]  # uv's progress is for people
    if not run(uv, "pip", "install", *loudness, "--python", PYTHON, "--require-hashes", "-r", "requirements.lock"):
        stop("the packages of requirements.lock could not be installed; is there a network?")
    say("installing Loopwright's own packages from this checkout")
    editable = [part for package in PACKAGES for part in ("-e", f"./{package}")]
    if not run(uv, "pip", "install", "--quiet", "--python", PYTHON, "--no-deps", "--no-build-isolation", *editable):
        stop("Loopwright's own packages could not be installed")
    stamp.write_text(wanted)


def bring_model() -> None:
    if (MODEL / "manifest.json").exists():
        return
    say("building the embedding model (MiniLM, 23 MB)")
    uv = find_uv()
    path = f"{uv.parent}{os.pathsep}{os.environ.get('PATH', '')}" if uv else os.environ.get("PATH", "")
    if not run(PYTHON, "-m", "loopwright_cluster.embedding.model_build", "--out", MODEL, PATH=path):
        complain("the model could not be built: grouping by meaning runs degraded, and says so. The next start tries again.")


def bring_sandbox() -> None:
    """One of the two isolations must hold; bubblewrap is brought where it is missing and can be."""
    detect = (PYTHON, "-m", "loopwright_pr_agent.sandbox.detect")
    stamp = CACHE / "sandbox.stamp"
    boot = Path("/proc/sys/kernel/random/boot_id")
    now = boot.read_text().strip() if boot.exists() else "unknown"
    if stamp.exists() and stamp.read_text() == now:
        return
    if not run(*detect, show=False) and not (shutil.which("bwrap") is None and _apt("bubblewrap") and run(*detect, show=False)):
        run(*detect)  # says why
        complain("no sandbox holds on this host: changes will be refused until one does. As root, type: apt-get install bubblewrap")
        return
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(now)


def bring_test_parts() -> None:
    """A browser, a PostgreSQL and promtool for the tests. In CI a missing one is an error; elsewhere its tests are skipped, saying so."""
    missing = []
    if not any(shutil.which(browser) for browser in BROWSERS):
        missing.append("chromium")
    if not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        missing.append("postgresql")
    if shutil.which("promtool") is None:
        missing.append("prometheus")  # promtool checks the alerts and panels
    if missing and not _apt(*missing):
        complain(f"{' and '.join(missing)} would be needed for all tests. As root, type: apt-get install {' '.join(missing)}")


def main() -> None:
    if sys.version_info < PYTHON_LEAST:
        stop(f"Python {sys.version.split()[0]} is too old: 3.11 or newer is needed.")
    if shutil.which("git") is None and not _apt("git"):
        stop("git is needed. As root, type: apt-get install git")
    if "--uv" in sys.argv[1:]:
        print(bring_uv())
        return
    started = time.monotonic()
    bring_environment()
    bring_model()
    bring_sandbox()
    if "--tests" in sys.argv[1:]:
        bring_test_parts()
    if time.monotonic() - started > 5:
        say(f"set up in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
