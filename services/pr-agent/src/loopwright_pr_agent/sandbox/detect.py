"""Which isolation holds on this host, found by really running a hostile little program in each.

``python -m loopwright_pr_agent.sandbox.detect`` prints it; exit 0 when one holds, 1 with the remedy when none does.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loopwright_pr_agent.sandbox import seccomp
from loopwright_pr_agent.sandbox.bubblewrap import BubblewrapSandbox, interpreter
from loopwright_pr_agent.sandbox.landlock import LandlockSandbox
from loopwright_pr_agent.sandbox.port import MIB, Limits, NoSandbox, RunRequest, Sandbox, SandboxError

Choice = Literal["auto", "bubblewrap", "landlock"]  # of this host; a cluster is not looked for here
REMEDY = (
    "Install bubblewrap (Debian, Ubuntu: apt install bubblewrap; Fedora: dnf install bubblewrap) and allow user namespaces "
    "(sysctl kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0; in a container: "
    "--security-opt seccomp=unconfined or --privileged), or use a kernel with Landlock (5.13 and later, lsm=landlock,...)."
)
# Ends with 0 only when each attempt is refused and the ordinary things work.
PROBE = """
import os, socket, sys
held = []
try:
    open(sys.argv[1]).read(); held.append("a file outside was read")
except OSError:
    pass
try:
    socket.create_connection(("127.0.0.1", 9), 1); held.append("a connection was made")
except ConnectionRefusedError:
    held.append("the network answered")
except OSError:
    pass
try:
    open(sys.argv[2], "w").close(); held.append("a file outside was written")
except OSError:
    pass
open("written", "w").write("ok")
if held:
    sys.exit("; ".join(held))
print("confined")
"""


@dataclass(frozen=True)
class Finding:
    """What was found of one isolation: it holds, or why not."""

    isolation: str
    holds: bool
    reason: str


async def probe(sandbox: Sandbox) -> Finding:
    """Runs the probe in a sandbox and says whether it holds."""
    with tempfile.TemporaryDirectory(prefix="loopwright-probe-") as folder:
        root = Path(folder)
        await asyncio.to_thread(_lay_out, root)
        argv = (interpreter(), "-I", "-c", PROBE, str(root / "canary"), str(root / "planted"))
        limits = Limits(wall_seconds=20, cpu_seconds=10, memory_bytes=512 * MIB, processes=32, output_bytes=MIB)
        try:
            result = await sandbox.run(RunRequest(argv, root / "workspace", limits=limits))
        except (SandboxError, OSError) as error:
            return Finding(sandbox.isolation, False, str(error))
        if not result.passed or await asyncio.to_thread((root / "planted").exists):
            return Finding(sandbox.isolation, False, f"it runs but does not confine: {result.outcome}, {result.output_tail.strip()[-300:]}")
        return Finding(sandbox.isolation, True, "; ".join(result.facts))


def _lay_out(root: Path) -> None:
    root.chmod(0o711)
    (root / "workspace").mkdir()
    (root / "canary").write_text("outside")


def candidates(choice: Choice = "auto") -> list[Sandbox]:
    """The adapters in the order of preference."""
    bubblewraps: list[Sandbox] = [BubblewrapSandbox(), BubblewrapSandbox(disable_userns=False)]
    landlock: list[Sandbox] = [LandlockSandbox()]
    return {"auto": bubblewraps + landlock, "bubblewrap": bubblewraps, "landlock": landlock}[choice]


async def choose(choice: Choice = "auto") -> tuple[Sandbox, list[Finding]]:
    """The first isolation that holds, with what was found on the way. Raises NoSandbox naming each reason and the remedy."""
    findings: list[Finding] = []
    if not seccomp.supported():
        raise NoSandbox("System call filters are made for x86_64 and aarch64 only; run pr-agent on such a machine.")
    for sandbox in candidates(choice):
        finding = await probe(sandbox)
        findings.append(finding)
        if finding.holds:
            return sandbox, findings
    reasons = " ".join(dict.fromkeys(f"{finding.isolation}: {finding.reason}." for finding in findings))
    raise NoSandbox(f"No sandbox holds on this host, so no code is run. {reasons} {REMEDY}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loopwright_pr_agent.sandbox.detect", description="Which sandbox holds on this host.")
    parser.add_argument("sandbox", nargs="?", choices=("auto", "bubblewrap", "landlock"), default="auto")
    arguments = parser.parse_args()
    try:
        _, findings = asyncio.run(choose(arguments.sandbox))
    except NoSandbox as error:
        print(error, file=sys.stderr)
        return 1
    for finding in findings:
        print(f"{finding.isolation}: {'holds' if finding.holds else 'does not hold'}: {finding.reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
