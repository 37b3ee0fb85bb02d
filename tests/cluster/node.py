"""One Kubernetes node on this machine: etcd, the control plane, containerd, a kubelet, DNS, and network policies that are enforced.

It lives in a network namespace and a mount namespace of its own, joined to the host by one pair of links, so that it neither sees nor
changes the host's network. From the host the API server is https://10.77.0.1:6443 and a NodePort is 10.77.0.1:<port>.

    node = Node(home)
    node.up(archives)       about half a minute
    node.kubeconfig         for kubectl, helm and the client
    node.restart_kubelet()
    node.down()

Needs root, Debian's packages named in PACKAGES, and the programs of ``tests.cluster.binaries``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.cluster.oci import pack

PACKAGES = (
    "etcd-server",
    "containerd",
    "runc",
    "containernetworking-plugins",
    "iptables",
    "ipset",
    "conntrack",
    "ethtool",
    "socat",
    "openssl",
)
NETNS = "loopwright-node"
NODE_IP, HOST_IP = "10.77.0.1", "10.77.0.2"
POD_CIDR, SERVICE_CIDR, API_SERVICE, DNS_SERVICE = "10.88.0.0/16", "10.96.0.0/16", "10.96.0.1", "10.96.0.10"
NAME = "node"
VOLUMES = 40
PAUSE = "localhost/pause:1"
DNS_IMAGE = "localhost/coredns:1"
START_SECONDS = 180.0


class NodeFailed(Exception):
    """The node did not come up; the message names the part and the end of its log."""


class Node:
    """A node whose state is below ``home``; it is there until ``down``, whoever started it."""

    def __init__(self, home: Path, programs: Path) -> None:
        self.home = home
        self.programs = programs
        self.run = home / "run"
        self.logs = home / "logs"
        self.pki = home / "pki"
        self.kubeconfig = self.pki / "admin.kubeconfig"

    # -- coming and going

    def up(self, archives: Sequence[Path] = ()) -> None:
        """Starts everything anew; returns when the node is Ready and DNS answers. Raises NodeFailed."""
        self.down()
        for folder in (self.run, self.logs, self.pki, self.home / "cni" / "conf"):
            folder.mkdir(parents=True, exist_ok=True)
        self._certificates()
        self._configuration()
        self._namespaces()
        try:
            self._control_plane()
            self._runtime([*self._own_images(), *archives])
            self.start_kubelet()
            self._wait("the node", self.is_ready, "kubelet")
            self._start("kube-proxy", self._program("kube-proxy"), "--config", self._file("kube-proxy.yaml"))
            self._start(
                "kube-router",
                self._program("kube-router"),
                "--run-firewall=true",
                "--run-router=false",
                "--run-service-proxy=false",
                f"--kubeconfig={self.pki / 'admin.kubeconfig'}",
                f"--hostname-override={NAME}",
                f"--service-cluster-ip-range={SERVICE_CIDR}",
                "--iptables-sync-period=30s",
                "--metrics-port=0",
                environment={"NODE_NAME": NAME},
            )
            self._apply(_cluster_objects(self.home / "volumes"))
            self._wait(
                "DNS",
                lambda: self.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=1s") is not None,
                "kubelet",
            )
        except NodeFailed:
            raise
        except (OSError, subprocess.SubprocessError) as error:
            raise NodeFailed(str(error)) from error

    def down(self) -> None:
        """Ends everything that ``up`` started, in an order that leaves nothing behind, and forgets its state."""
        for name in ("kubelet", "kube-router", "kube-proxy"):
            self._stop(name)
        if (self.run / "containerd.sock").exists():
            self._end_containers()
        for name in ("containerd", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd", "holder"):
            self._stop(name)
        subprocess.run(["ip", "netns", "delete", NETNS], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", "loopwright0"], capture_output=True, check=False)
        for name in Path("/run/netns").glob("cni-*"):  # pods' names, which led somewhere in the node's mount namespace only
            if not name.is_mount():
                name.unlink(missing_ok=True)
        for group in Path("/sys/fs/cgroup").glob("*/kubepods"):
            for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()
        if self.home.exists():
            _unmount_below(self.home)
            shutil.rmtree(self.home, ignore_errors=True)

    def start_kubelet(self) -> None:
        self._start(
            "kubelet",
            self._program("kubelet"),
            f"--config={self._file('kubelet.yaml')}",
            f"--kubeconfig={self.pki / 'node.kubeconfig'}",
            f"--hostname-override={NAME}",
            f"--node-ip={NODE_IP}",
            f"--root-dir={self.home / 'kubelet'}",
            f"--cert-dir={self.home / 'kubelet-pki'}",
        )

    def restart_kubelet(self) -> None:
        """As a node's kubelet restarts in life: the pods go on meanwhile. Returns when it reports again."""
        self._stop("kubelet")
        self.start_kubelet()
        self._wait("the kubelet", lambda: self._inside("curl", "-sf", "http://127.0.0.1:10248/healthz") is not None, "kubelet")

    def is_ready(self) -> bool:
        said = self.kubectl("get", "node", NAME, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}")
        return said == "True"

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str | None:
        """kubectl's output; None when it failed."""
        command = [self._program("kubectl"), "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None

    # -- the parts

    def _control_plane(self) -> None:
        pki = self.pki
        self._start(
            "etcd",
            "etcd",
            f"--data-dir={self.home / 'etcd'}",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",  # a test cluster's state need not outlive a power cut
        )
        self._start(
            "kube-apiserver",
            self._program("kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0",
            "--secure-port=6443",
            f"--advertise-address={NODE_IP}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--anonymous-auth=false",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--cert-dir={pki}",
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
            f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki / 'accounts.pub'}",
            f"--service-account-signing-key-file={pki / 'accounts.key'}",
            "--allow-privileged=true",
        )
        self._wait("the API server", lambda: self.kubectl("get", "--raw", "/readyz") is not None, "kube-apiserver")
        self._start(
            "kube-controller-manager",
            self._program("kube-controller-manager"),
            *(f"--{flag}kubeconfig={pki / 'controllers.kubeconfig'}" for flag in ("", "authentication-", "authorization-")),
            f"--service-account-private-key-file={pki / 'accounts.key'}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--cluster-signing-cert-file={pki / 'ca.crt'}",
            f"--cluster-signing-key-file={pki / 'ca.key'}",
            "--use-service-account-credentials=true",
            "--allocate-node-cidrs=true",
            f"--cluster-cidr={POD_CIDR}",
            "--node-cidr-mask-size=24",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.home / 'controllers-pki'}",
            # A pod whose node is silent is given up in seconds, so that tests of failures need not wait minutes.
            "--node-monitor-grace-period=20s",
        )
        self._start(
            "kube-scheduler",
            self._program("kube-scheduler"),
            *(f"--{flag}kubeconfig={pki / 'scheduler.kubeconfig'}" for flag in ("", "authentication-", "authorization-")),
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.home / 'scheduler-pki'}",
        )
        self._wait(
            "the default service account", lambda: self.kubectl("get", "serviceaccount", "default") is not None, "kube-controller-manager"
        )

    def _runtime(self, archives: Sequence[Path]) -> None:
        self._start("containerd", "containerd", "-c", self._file("containerd.toml"))
        self._wait("containerd", lambda: self._inside("ctr", "-a", str(self.run / "containerd.sock"), "version") is not None, "containerd")
        for archive in archives:
            self.load(archive)

    def load(self, archive: Path) -> None:
        """Imports an image archive, as pulling would. Raises NodeFailed."""
        command = ["ctr", "-a", str(self.run / "containerd.sock"), "-n", "k8s.io", "images", "import", str(archive)]
        done = subprocess.run(self._nsenter(command), capture_output=True, text=True, check=False)
        if done.returncode:
            raise NodeFailed(f"{archive} could not be imported: {done.stderr[-500:]}")

    def _own_images(self) -> list[Path]:
        folder = self.home / "images"
        shutil.rmtree(folder, ignore_errors=True)
        pause, dns = folder / "pause", folder / "dns"
        for root in (pause, dns):
            root.mkdir(parents=True)
        shutil.copy(self.programs / "pause", pause / "pause")
        shutil.copy(self.programs / "coredns", dns / "coredns")
        made = []
        for name, root, entrypoint in ((PAUSE, pause, "/pause"), (DNS_IMAGE, dns, "/coredns")):
            archive = folder / f"{root.name}.tar"
            pack(name, root, archive, entrypoint=[entrypoint])
            made.append(archive)
        return made

    # -- namespaces and processes

    def _namespaces(self) -> None:
        """The network namespace, its link to the host, and a process that keeps the mount namespace."""
        _run("ip", "netns", "add", NETNS)
        _run("ip", "link", "add", "loopwright0", "type", "veth", "peer", "name", "eth0", "netns", NETNS)
        _run("ip", "address", "add", f"{HOST_IP}/24", "dev", "loopwright0")
        _run("ip", "link", "set", "loopwright0", "up")
        inside = ["nsenter", f"--net=/run/netns/{NETNS}"]
        _run(*inside, "ip", "link", "set", "lo", "up")
        _run(*inside, "ip", "address", "add", f"{NODE_IP}/24", "dev", "eth0")
        _run(*inside, "ip", "link", "set", "eth0", "up")
        _run(*inside, "ip", "route", "add", "default", "via", HOST_IP)
        _run(*inside, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        # A pod's packets to another pod pass the bridge: the firewall has to see them there.
        subprocess.run([*inside, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"], capture_output=True, check=False)
        # What leaves the node for the host takes the node's address, as on any network that knows nothing of pods.
        _run(*inside, "iptables", "-t", "nat", "-A", "POSTROUTING", "-s", POD_CIDR, "-o", "eth0", "-j", "MASQUERADE")
        holder = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "mount --make-rshared / && exec sleep infinity"]
        # With no part of our output: whoever reads that through a pipe would wait for as long as the node is there.
        nothing = subprocess.DEVNULL
        process = subprocess.Popen([*inside, *holder], start_new_session=True, stdin=nothing, stdout=nothing, stderr=nothing)
        (self.run / "holder.pid").write_text(str(process.pid))
        self._wait("the mount namespace", lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == "sleep", "")

    def _nsenter(self, command: Sequence[str]) -> list[str]:
        holder = (self.run / "holder.pid").read_text()
        return ["nsenter", f"--target={holder}", "--mount", "--net", "--", *command]

    def _inside(self, *command: str) -> str | None:
        done = subprocess.run(self._nsenter(command), capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None

    def _start(self, name: str, *command: str, environment: dict[str, str] | None = None) -> None:
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                self._nsenter(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"} | (environment or {}),
            )
        (self.run / f"{name}.pid").write_text(str(process.pid))

    def _stop(self, name: str, seconds: float = 10.0) -> None:
        file = self.run / f"{name}.pid"
        if not file.exists():
            return
        pid = int(file.read_text())
        for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 2.0)):
            if not _alive(pid):
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            until = time.monotonic() + patience
            while _alive(pid) and time.monotonic() < until:
                time.sleep(0.05)
        file.unlink(missing_ok=True)

    def _end_containers(self) -> None:
        ctr = ["ctr", "-a", str(self.run / "containerd.sock"), "-n", "k8s.io"]
        for task in (self._inside(*ctr, "tasks", "ls", "-q") or "").split():
            self._inside(*ctr, "tasks", "kill", "-s", "SIGKILL", task)
        time.sleep(0.5)
        for container in (self._inside(*ctr, "containers", "ls", "-q") or "").split():
            self._inside(*ctr, "tasks", "rm", "-f", container)
            self._inside(*ctr, "containers", "rm", container)

    def _wait(self, what: str, there: Callable[[], bool], part: str) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if part and not _alive(int((self.run / f"{part}.pid").read_text())):
                raise NodeFailed(f"{part} ended: {self._tail(part)}")
            if there():
                return
            time.sleep(0.3)
        raise NodeFailed(f"{what} was not there after {START_SECONDS:.0f} s: {self._tail(part)}")

    def _tail(self, part: str) -> str:
        file = self.logs / f"{part}.log"
        return file.read_text(errors="replace")[-2_000:] if file.exists() else ""

    def _program(self, name: str) -> str:
        return str(self.programs / name)

    def _file(self, name: str) -> str:
        return str(self.home / name)

    def _apply(self, objects: Sequence[dict[str, object]]) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        if self.kubectl("apply", "-f", "-", stdin=text) is None:
            raise NodeFailed("the cluster's own objects were refused")

    # -- files

    def _certificates(self) -> None:
        pki = self.pki
        _run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(pki / "ca.key"))
        _run(
            "openssl",
            "req",
            "-x509",
            "-new",
            "-key",
            str(pki / "ca.key"),
            "-subj",
            "/CN=loopwright-test",
            "-days",
            "30",
            "-out",
            str(pki / "ca.crt"),
        )
        _run("openssl", "genrsa", "-out", str(pki / "accounts.key"), "2048")
        _run("openssl", "rsa", "-in", str(pki / "accounts.key"), "-pubout", "-out", str(pki / "accounts.pub"))
        names = f"IP:127.0.0.1,IP:{NODE_IP},IP:{API_SERVICE},DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
        for name, subject, alternative in (
            ("apiserver", "/CN=kube-apiserver", names),
            ("apiserver-kubelet", "/O=system:masters/CN=apiserver-kubelet", ""),
            ("admin", "/O=system:masters/CN=admin", ""),
            ("controllers", "/CN=system:kube-controller-manager", ""),
            ("scheduler", "/CN=system:kube-scheduler", ""),
            ("proxy", "/CN=system:kube-proxy", ""),
            ("node", f"/O=system:nodes/CN=system:node:{NAME}", f"IP:{NODE_IP},DNS:{NAME}"),
        ):
            self._certificate(name, subject, alternative)
        for name in ("admin", "controllers", "scheduler", "proxy", "node"):
            (pki / f"{name}.kubeconfig").write_text(json.dumps(_kubeconfig(pki, name)))

    def _certificate(self, name: str, subject: str, alternative: str) -> None:
        pki = self.pki
        key, request, extensions = pki / f"{name}.key", pki / f"{name}.csr", pki / f"{name}.ext"
        extensions.write_text("extendedKeyUsage=serverAuth,clientAuth\n" + (f"subjectAltName={alternative}\n" if alternative else ""))
        _run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key))
        _run("openssl", "req", "-new", "-key", str(key), "-subj", subject, "-out", str(request))
        authority = ["-CA", str(pki / "ca.crt"), "-CAkey", str(pki / "ca.key"), "-CAcreateserial", "-days", "30"]
        _run("openssl", "x509", "-req", "-in", str(request), *authority, "-extfile", str(extensions), "-out", str(pki / f"{name}.crt"))

    def _configuration(self) -> None:
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True}
        addresses = {
            "type": "host-local",
            "subnet": "10.88.0.0/24",
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.run / "addresses"),
        }
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [{**bridge, "ipam": addresses}, ports]}
        (self.home / "cni" / "conf" / "10-pods.conflist").write_text(json.dumps(network))
        (self.home / "resolv.conf").write_text(f"nameserver {DNS_SERVICE}\n")
        (self.home / "containerd.toml").write_text(_containerd(self.home, self.run))
        (self.home / "kubelet.yaml").write_text(json.dumps(_kubelet(self)))
        conntrack = {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
        proxy = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": POD_CIDR,
            "hostnameOverride": NAME,
            "clientConnection": {"kubeconfig": str(self.pki / "proxy.kubeconfig")},
            "conntrack": conntrack,  # the kernel's own limits stay: they are the host's
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
        }
        (self.home / "kube-proxy.yaml").write_text(json.dumps(proxy))
        for number in range(VOLUMES):
            place = self.home / "volumes" / str(number)
            place.mkdir(parents=True, exist_ok=True)
            place.chmod(0o777)


def _kubeconfig(pki: Path, name: str) -> dict[str, object]:
    cluster = {"server": f"https://{NODE_IP}:6443", "certificate-authority": str(pki / "ca.crt")}
    user = {"client-certificate": str(pki / f"{name}.crt"), "client-key": str(pki / f"{name}.key")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "node", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "node", "context": {"cluster": "node", "user": name}}],
        "current-context": "node",
    }


def _containerd(home: Path, run: Path) -> str:
    return f"""
version = 2
root = "{home / "containerd"}"
state = "{run / "containerd"}"
[grpc]
  address = "{run / "containerd.sock"}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{home / "cni" / "conf"}"
"""


def _kubelet(node: Node) -> dict[str, object]:
    pki = node.pki
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": "/",
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{node.run / 'containerd.sock'}",
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": str(pki / "ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / "node.crt"),
        "tlsPrivateKeyFile": str(pki / "node.key"),
        "address": "0.0.0.0",
        "healthzBindAddress": "127.0.0.1",
        "resolvConf": str(node.home / "resolv.conf"),
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE],
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "enforceNodeAllocatable": ["pods"],
        "podLogsDir": str(node.home / "pod-logs"),
        "podPidsLimit": 1024,  # what a cluster's operator sets against fork bombs; the sandbox's own limit is lower
        "imageGCHighThresholdPercent": 100,  # images have no registry to come back from
        "serializeImagePulls": False,
        "syncFrequency": "10s",
    }


def _cluster_objects(volumes: Path) -> list[dict[str, object]]:
    """DNS, and volumes that a claim of any class can bind: what a managed cluster has."""
    labels = {"k8s-app": "kube-dns"}
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    corefile = ".:53 {\n  errors\n  health\n  ready\n  kubernetes cluster.local in-addr.arpa\n  cache 5\n}\n"
    container = {
        "name": "coredns",
        "image": DNS_IMAGE,
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [{"containerPort": 53, "protocol": "UDP", "name": "dns"}, {"containerPort": 53, "protocol": "TCP", "name": "dns-tcp"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 2},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
    }
    meta = {"name": "coredns", "namespace": "kube-system"}
    pod = {
        "serviceAccountName": "coredns",
        "dnsPolicy": "Default",
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }
    objects: list[dict[str, object]] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "coredns"}, "rules": rules},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"},
            "subjects": [{"kind": "ServiceAccount", **meta}],
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": corefile}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
            "spec": {
                "selector": labels,
                "clusterIP": DNS_SERVICE,
                "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}],
            },
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
    ]
    here = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}]}
    for number in range(VOLUMES):
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": f"volume-{number}"},
                "spec": {
                    "capacity": {"storage": "100Gi"},
                    "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Retain",
                    "storageClassName": "standard",
                    "local": {"path": str(volumes / str(number))},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [here]}},
                },
            }
        )
    return objects


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NodeFailed(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # ours, when it is a child: a dead one must not look alive
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _unmount_below(folder: Path) -> None:
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in sorted((place for place in places if place.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", place], capture_output=True, check=False)
