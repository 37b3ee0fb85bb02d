"""What the chart renders, read without a cluster: pods against PodSecurity restricted, and who may talk to whom."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.binaries import bring

CHART = Path(__file__).resolve().parents[2] / "helm" / "loopwright"
RELEASE, NAMESPACE = "lw", "loop"
Manifest = dict[str, Any]


class NotRendered(Exception):
    """Helm refused the values; the message is Helm's."""


def helm(*arguments: str, stdin: str = "") -> str:
    command = [str(bring("helm") / "helm"), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise NotRendered(done.stderr + done.stdout)
    return done.stdout


def render(values: Mapping[str, Any] | None = None, *files: Path, kube_version: str = "1.36.0") -> list[Manifest]:
    """All objects, hooks included, of a release of these values. Raises NotRendered."""
    chosen = [part for file in files for part in ("--values", str(file))] + ["--values", "-"]
    text = helm(
        "template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--kube-version", kube_version, *chosen, stdin=json.dumps(values or {})
    )
    return [document for document in yaml.safe_load_all(text) if document]


def named(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    found = [item for item in manifests if item["kind"] == kind and item["metadata"]["name"] == f"{RELEASE}-loopwright{name}"]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


@dataclass(frozen=True)
class Pod:
    """A pod, or the template of one."""

    name: str
    namespace: str
    labels: dict[str, str] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    address: str = "10.244.0.9"

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [container for kind in ("initContainers", "containers", "ephemeralContainers") for container in self.spec.get(kind) or []]


def pods(manifests: Iterable[Manifest]) -> Iterator[Pod]:
    """Every pod there will be."""
    for item in manifests:
        name, namespace = f"{item['kind']} {item['metadata']['name']}", item["metadata"].get("namespace", NAMESPACE)
        if item["kind"] == "Pod":
            yield Pod(name, namespace, item["metadata"].get("labels", {}), item["spec"])
        elif "template" in (item.get("spec") or {}):
            template = item["spec"]["template"]
            yield Pod(name, namespace, template["metadata"].get("labels", {}), template["spec"])
        elif item["kind"] == "CronJob":
            raise AssertionError("a CronJob's pods are not looked at here")


# Pod Security Standards, https://kubernetes.io/docs/concepts/security/pod-security-standards/ : restricted includes baseline.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip


def violations(pod: Pod) -> list[str]:
    """What of PodSecurity restricted (1.36) a pod breaks, each as "where: what"."""
    found: list[str] = []
    spec, own = pod.spec, pod.spec.get("securityContext") or {}
    found += [f"pod: {name}" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    for volume in spec.get("volumes") or []:
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            found.append(f"volume {volume['name']}: {', '.join(sorted(kinds - VOLUMES))}")
    found += [f"pod: sysctl {item['name']}" for item in own.get("sysctls") or [] if item["name"] not in SYSCTLS]
    found += _context("pod", own)
    for container in pod.containers:
        where = f"container {container['name']}"
        context = container.get("securityContext") or {}
        found += _context(where, context)
        if context.get("privileged"):
            found.append(f"{where}: privileged")
        if context.get("allowPrivilegeEscalation") is not False:
            found.append(f"{where}: allowPrivilegeEscalation is not false")
        if context.get("procMount", "Default") != "Default":
            found.append(f"{where}: procMount")
        capabilities = context.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or []):
            found.append(f"{where}: capabilities are not dropped")
        if set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
            found.append(f"{where}: capabilities are added")
        if not context.get("runAsNonRoot", own.get("runAsNonRoot")):
            found.append(f"{where}: may run as root")
        profile = context.get("seccompProfile") or own.get("seccompProfile") or {}
        if profile.get("type") not in ("RuntimeDefault", "Localhost"):
            found.append(f"{where}: seccomp {profile.get('type')}")
        found += [f"{where}: hostPort" for port in container.get("ports") or [] if port.get("hostPort")]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            handler = container.get(probe) or {}
            found += [f"{where}: {probe} names a host" for kind in ("httpGet", "tcpSocket") if (handler.get(kind) or {}).get("host")]
    return found


def _context(where: str, context: Mapping[str, Any]) -> list[str]:
    found = []
    if context.get("runAsNonRoot") is False:
        found.append(f"{where}: runAsNonRoot is false")
    if context.get("runAsUser") == 0:
        found.append(f"{where}: runAsUser is 0")
    if (context.get("seccompProfile") or {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
        found.append(f"{where}: seccomp {context['seccompProfile']['type']}")
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        found.append(f"{where}: seLinuxOptions")
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
        found.append(f"{where}: appArmorProfile")
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        found.append(f"{where}: hostProcess")
    return found


@dataclass(frozen=True)
class Network:
    """NetworkPolicies as networking.k8s.io/v1 says they are: what selects a pod isolates it, and what any of them allows is allowed."""

    policies: tuple[Manifest, ...]
    namespaces: Mapping[str, dict[str, str]]  # name -> labels

    @classmethod
    def of(cls, manifests: Iterable[Manifest], *namespaces: str) -> Network:
        labels = {name: {"kubernetes.io/metadata.name": name} for name in namespaces}
        return cls(tuple(item for item in manifests if item["kind"] == "NetworkPolicy"), labels)

    def allows(self, source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
        """Whether a connection passes the policies of both its ends. A pod without a namespace is an address outside the cluster."""
        return self._passes(source, "Egress", target, port, protocol) and self._passes(target, "Ingress", source, port, protocol)

    def _passes(self, pod: Pod, direction: str, other: Pod, port: int, protocol: str) -> bool:
        if not pod.namespace:
            return True
        rules, isolated = [], False
        for policy in self.policies:
            spec = policy["spec"]
            types = spec.get("policyTypes") or (["Ingress", "Egress"] if "egress" in spec else ["Ingress"])
            here = policy["metadata"].get("namespace", NAMESPACE) == pod.namespace and direction in types
            if here and matches(spec.get("podSelector") or {}, pod.labels):
                isolated = True
                rules += [(policy, rule) for rule in spec.get(direction.lower()) or []]
        peers = "to" if direction == "Egress" else "from"
        return not isolated or any(
            self._peers(rule.get(peers), policy, other) and _ports(rule.get("ports"), port, protocol) for policy, rule in rules
        )

    def _peers(self, peers: list[dict[str, Any]] | None, policy: Manifest, other: Pod) -> bool:
        return not peers or any(self._peer(peer, policy["metadata"].get("namespace", NAMESPACE), other) for peer in peers)

    def _peer(self, peer: dict[str, Any], home: str, other: Pod) -> bool:
        if "ipBlock" in peer:
            address = ipaddress.ip_address(other.address)
            inside = address in ipaddress.ip_network(peer["ipBlock"]["cidr"])
            return inside and not any(address in ipaddress.ip_network(hole) for hole in peer["ipBlock"].get("except") or [])
        if not other.namespace:
            return False
        if "namespaceSelector" in peer:
            if not matches(peer["namespaceSelector"] or {}, self.namespaces[other.namespace]):
                return False
        elif other.namespace != home:
            return False
        return matches(peer.get("podSelector") or {}, other.labels)


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A LabelSelector; an empty one takes all. Raises AssertionError for an operator the API does not have."""
    for item in selector.get("matchExpressions") or []:
        key, operator, values = item["key"], item["operator"], item.get("values") or []
        assert operator in ("In", "NotIn", "Exists", "DoesNotExist"), operator
        has = {"In": labels.get(key) in values, "NotIn": labels.get(key) not in values, "Exists": key in labels}
        if not has.get(operator, key not in labels):
            return False
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())


def _ports(ports: list[dict[str, Any]] | None, port: int, protocol: str) -> bool:
    return not ports or any(
        item.get("protocol", "TCP") == protocol and ("port" not in item or item["port"] <= port <= item.get("endPort", item["port"]))
        for item in ports
    )
