"""Which isolation holds on this host, found by really running a hostile little program in each.

``python -m loopwright_pr_agent.sandbox.detect`` prints it, and what is found in a cluster where the settings lead to one: there the rights
and a Job are checked, and nothing is run. Exit 0 when one holds, 1 with the remedy when none does, 2 with settings that cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loopwright_pr_agent.sandbox import seccomp
from loopwright_pr_agent.sandbox.bubblewrap import BubblewrapSandbox, interpreter
from loopwright_pr_agent.sandbox.landlock import LandlockSandbox
from loopwright_pr_agent.sandbox.port import MIB, Limits, NoSandbox, RunRequest, Sandbox, SandboxError

if TYPE_CHECKING:
    # Only here: an ordinary user's plain Python runs the host's sandboxes, without the packages that settings and a cluster need.
    from loopwright_pr_agent.sandbox.kubernetes.api import JobsApi
    from loopwright_pr_agent.settings import PrAgentSettings

Choice = Literal["auto", "bubblewrap", "landlock"]  # of this host
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


async def find_in_cluster(settings: PrAgentSettings, api: JobsApi | None = None) -> Finding:
    """What a cluster says of Jobs by these settings."""
    from loopwright_common.clock import SystemClock

    from loopwright_pr_agent.sandbox.kubernetes.service import look  # the broker and its web server: a host's sandbox needs none of it

    try:
        isolation, facts = await look(settings, SystemClock(), api)
    except SandboxError as error:
        return Finding("kubernetes", False, str(error))
    return Finding(isolation, True, facts)


async def find_all(choice: Choice | Literal["kubernetes"], settings: PrAgentSettings, api: JobsApi | None = None) -> list[Finding]:
    """What was found of each isolation that the choice allows, those that hold first. Of a cluster, where there are settings for one."""
    found: list[Finding] = []
    if choice != "kubernetes":
        try:
            found = (await choose(choice))[1]
        except NoSandbox as error:
            found = [Finding("this host", False, str(error))]
    if choice == "kubernetes" or (choice == "auto" and settings.sandbox_namespace):
        found.append(await find_in_cluster(settings, api))
    return sorted(found, key=lambda finding: not finding.holds)


def main(argv: Sequence[str] | None = None, api: JobsApi | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loopwright_pr_agent.sandbox.detect", description="Which sandbox holds on this host.")
    parser.add_argument("sandbox", nargs="?", choices=("auto", "bubblewrap", "landlock", "kubernetes"), default="auto")
    choice = parser.parse_args(argv).sandbox
    from loopwright_common.settings import BadSetting, load

    from loopwright_pr_agent.settings import PrAgentSettings

    try:
        settings = load(PrAgentSettings)
    except BadSetting as error:
        print(error, file=sys.stderr)
        return 2
    findings = asyncio.run(find_all(choice, settings, api))
    holds = any(finding.holds for finding in findings)
    for finding in findings:
        line = f"{finding.isolation}: {'holds' if finding.holds else 'does not hold'}: {finding.reason}"
        print(line, file=sys.stdout if holds else sys.stderr)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
