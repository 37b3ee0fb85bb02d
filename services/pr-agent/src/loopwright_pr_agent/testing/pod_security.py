"""The PodSecurity level ``restricted``, as far as a pod made here could break it.

https://kubernetes.io/docs/concepts/security/pod-security-standards/, read by hand; a real API server judges the same in tests/cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VOLUMES = frozenset({"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"})


def restricted_faults(spec: Mapping[str, Any]) -> list[str]:
    """What ``restricted`` forbids in a pod's spec; empty when it admits the pod."""
    faults = [f"{name} is on" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    pod = spec.get("securityContext") or {}
    for volume in spec.get("volumes") or ():
        faults += [f"volume {volume['name']} is a {kind}" for kind in volume if kind != "name" and kind not in VOLUMES]
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ()), *(spec.get("ephemeralContainers") or ())]
    for container in containers:
        own, name = container.get("securityContext") or {}, container["name"]
        if own.get("privileged"):
            faults.append(f"{name} is privileged")
        if own.get("allowPrivilegeEscalation") is not False:
            faults.append(f"{name} may gain privileges")
        if (own.get("runAsNonRoot", pod.get("runAsNonRoot"))) is not True:
            faults.append(f"{name} may run as root")
        if own.get("runAsUser", pod.get("runAsUser")) == 0:
            faults.append(f"{name} runs as root")
        capabilities = own.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or ()):
            faults.append(f"{name} keeps capabilities")
        if set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
            faults.append(f"{name} adds capabilities")
        seccomp = (own.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type")
        if seccomp not in ("RuntimeDefault", "Localhost"):
            faults.append(f"{name} has no seccomp profile")
        if own.get("procMount", "Default") != "Default":
            faults.append(f"{name} has an unmasked /proc")
        faults += [f"{name} takes port {port['hostPort']} of the node" for port in container.get("ports") or () if port.get("hostPort")]
    return faults
