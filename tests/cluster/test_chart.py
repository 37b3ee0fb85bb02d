"""The chart, rendered: each manifest fits Kubernetes' schemas and PodSecurity restricted; the policies open the architecture's flows."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.cluster.manifests import (
    CHART,
    NAMESPACE,
    RELEASE,
    Manifest,
    Network,
    NotRendered,
    Pod,
    helm,
    named,
    pods,
    render,
    violations,
)

EXAMPLES = CHART / "examples"
SANDBOXES = f"{NAMESPACE}-sandboxes"
SERVICES = ("gateway", "ingest", "cluster", "investigator", "pr-agent", "measure")
EVERYTHING: dict[str, Any] = {
    "vectors": {"mode": "bundled"},
    "global": {"imageRegistry": "mirror.example.org:5000", "imagePullSecrets": ["mirror"], "storageClass": "fast"},
    "defaults": {
        "podAnnotations": {"a": "b"}, "podLabels": {"team": "sre"}, "annotations": {"c": "d"}, "nodeSelector": {"pool": "loop"},
        "tolerations": [{"key": "x", "operator": "Exists"}], "affinity": {"podAntiAffinity": {}}, "priorityClassName": "high",
        "runtimeClassName": "runc", "extraEnv": [{"name": "TZ", "value": "UTC"}], "extraEnvFrom": [{"configMapRef": {"name": "more"}}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}], "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "serviceAccount": {"annotations": {"e": "f"}}, "service": {"annotations": {"g": "h"}},
    },
    "gateway": {"autoscaling": {"enabled": True}, "allowedHosts": ["other.example.org"]},
    "ingest": {"autoscaling": {"enabled": True}},
    "cluster": {"replicas": 3},
    "investigator": {
        "autoscaling": {"enabled": True, "kind": "keda"}, "settings": {"concurrency": 4, "model_usd_per_day_max": 2.5},
        "model": {"baseUrl": "https://models.example.org/v1", "name": "m", "existingSecret": "model"},
    },
    "prAgent": {
        "autoscaling": {"enabled": False}, "model": {"baseUrl": "https://models.example.org/v1", "name": "m", "existingSecret": "model"},
        "networkPolicy": {"egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]},
    },
    "sandbox": {
        "runtimeClassName": "gvisor", "priorityClassName": "low", "nodeSelector": {"pool": "sandboxes"}, "imagePullSecrets": ["mirror"],
        "tolerations": [{"key": "sandboxes", "operator": "Exists"}],
    },
    "secrets": {"keep": True},
    "ingress": {
        "enabled": True, "className": "nginx", "annotations": {"i": "j"}, "gatewayHost": "inbox.example.org",
        "ingestHost": "signals.example.org", "forgeHost": "forge.example.org", "tlsSecret": "tls",
    },
    "httpRoute": {
        "enabled": True, "parentRefs": [{"name": "public"}], "gatewayHost": "inbox.example.net", "ingestHost": "signals.example.net",
        "forgeHost": "forge.example.net",
    },
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "edgeFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
        "natsMonitoringFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}],
        "apiServer": {"cidrs": ["203.0.113.7/32"]},
        "modelEgress": [{"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}], "ports": [{"port": 443}]}],
    },
    "telemetry": {"otlpEndpoint": "http://collector.monitoring.svc:4318"},
    "monitoring": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}},
    "extraObjects": ["apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-more\ndata: {}"],
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], tuple[Path, ...]]] = {
    "defaults": ({}, ()),
    "production": ({}, (EXAMPLES / "production.yaml",)),
    "openshift": ({}, (EXAMPLES / "openshift.yaml",)),
    "scaled": ({}, (EXAMPLES / "scaled.yaml",)),
    "everything": (EVERYTHING, ()),
    "no volumes": (
        {
            "bundled": {"nats": {"persistence": {"enabled": False}}, "postgresql": {"persistence": {"enabled": False}}},
            "cluster": {"persistence": {"enabled": False}},
            "forge": {"persistence": {"enabled": False}},
            "networkPolicy": {"enabled": False},
        },
        (),
    ),
}
# What other projects define: the fields we use, by their documentation. Kubernetes' own are checked by its published schemas.
FOREIGN = {
    "monitoring.coreos.com/v1/ServiceMonitor": {"selector": dict, "endpoints": list},
    "monitoring.coreos.com/v1/PrometheusRule": {"groups": list},
    "keda.sh/v1alpha1/ScaledObject": {
        "scaleTargetRef": dict, "minReplicaCount": int, "maxReplicaCount": int, "pollingInterval": int, "cooldownPeriod": int,
        "triggers": list,
    },
    "gateway.networking.k8s.io/v1/HTTPRoute": {"parentRefs": list, "hostnames": list, "rules": list},
}  # fmt: skip
TRIGGER = {"natsServerMonitoringEndpoint", "account", "stream", "consumer", "lagThreshold", "activationLagThreshold"}


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Manifest]]:
    return {case: render(values, *files) for case, (values, files) in CASES.items()}


def oldest() -> str:
    """The least version Chart.yaml admits."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    return re.search(r">=(\d+\.\d+)", chart["kubeVersion"])[1]  # type: ignore[index]


def test_helm_finds_nothing_to_complain_of() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


@pytest.mark.parametrize("version", [oldest(), "1.32", "1.36", "1.37"])
@pytest.mark.parametrize("case", CASES)
def test_every_manifest_fits_the_schemas_of_every_supported_kubernetes(case: str, version: str) -> None:
    values, files = CASES[case]
    for item in render(values, *files, kube_version=f"{version}.0"):
        where = f"{item['apiVersion']}/{item['kind']} {item['metadata']['name']}"
        if (shape := FOREIGN.get(f"{item['apiVersion']}/{item['kind']}")) is not None:
            assert set(item["spec"]) <= set(shape), where
            assert all(isinstance(value, shape[key]) for key, value in item["spec"].items()), where
            for trigger in item["spec"].get("triggers", ()):
                assert trigger["type"] == "nats-jetstream"
                assert set(trigger["metadata"]) == TRIGGER
                assert all(isinstance(value, str) for value in trigger["metadata"].values())
        else:
            try:
                kubernetes_validate.validate(item, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                pytest.fail(f"{where}: {'.'.join(map(str, error.path))}: {error.message}")


def test_the_schemas_refuse_what_is_wrong(rendered: dict[str, list[Manifest]]) -> None:
    item = copy.deepcopy(named(rendered["defaults"], "Deployment", "-gateway"))
    item["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(item, "1.36", strict=True)


@pytest.mark.parametrize("case", CASES)
def test_every_pod_keeps_pod_security_restricted(case: str, rendered: dict[str, list[Manifest]]) -> None:
    found = list(pods(rendered[case]))
    assert {f"{RELEASE}-loopwright-{service}" for service in SERVICES} <= {pod.name.split()[1] for pod in found}
    assert {pod.name: violations(pod) for pod in found if violations(pod)} == {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "hostPath"),
        ({"securityContext": {}}, "may run as root"),
        ({"securityContext": {"runAsNonRoot": True}}, "seccomp"),
        ({"securityContext": {"runAsNonRoot": True, "runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}}}, "runAsUser is 0"),
        ({"containers": [{"name": "c"}]}, "allowPrivilegeEscalation"),
        ({"containers": [{"name": "c", "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}}]}, "are added"),
        ({"containers": [{"name": "c", "securityContext": {"capabilities": {"drop": ["NET_RAW"]}}}]}, "not dropped"),
        ({"containers": [{"name": "c", "securityContext": {"privileged": True}}]}, "privileged"),
        ({"initContainers": [{"name": "c", "ports": [{"hostPort": 80}]}]}, "hostPort"),
    ],
)
def test_the_check_finds_what_breaks_restricted(change: dict[str, Any], told: str, rendered: dict[str, list[Manifest]]) -> None:
    good = next(pods(rendered["defaults"]))
    assert any(told in found for found in violations(Pod("p", NAMESPACE, {}, good.spec | change)))


@pytest.mark.parametrize("case", CASES)
def test_every_container_is_bounded_and_cannot_change_its_image(case: str, rendered: dict[str, list[Manifest]]) -> None:
    for pod in pods(rendered[case]):
        for container in pod.containers:
            where = f"{pod.name} {container['name']}"
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, where
            assert {"memory", "ephemeral-storage"} <= set(container["resources"]["limits"]), where
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["requests"]), where
        for volume in pod.spec.get("volumes") or []:
            if "emptyDir" in volume and volume["name"] != "more":
                assert volume["emptyDir"].get("sizeLimit"), f"{pod.name} {volume['name']}"


@pytest.mark.parametrize("case", CASES)
def test_only_pr_agent_has_a_token_and_only_for_jobs_in_the_sandbox_namespace(case: str, rendered: dict[str, list[Manifest]]) -> None:
    manifests = rendered[case]
    with_token = [pod.name for pod in pods(manifests) if pod.spec["automountServiceAccountToken"] is not False]
    assert with_token == [f"Deployment {RELEASE}-loopwright-pr-agent"]
    assert not [item for item in manifests if item["kind"].startswith("Cluster")]
    role = named(manifests, "Role", "-sandbox")
    assert role["metadata"]["namespace"] == SANDBOXES
    rights = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    verbs = ("get", "list", "watch", "create", "delete")
    wanted = {("batch", "jobs", verb) for verb in verbs} | {("", "pods", verb) for verb in verbs} | {("", "pods/log", "get")}
    assert rights == wanted
    assert [item["metadata"]["name"] for item in manifests if item["kind"] == "Role"] == [role["metadata"]["name"]]
    binding = named(manifests, "RoleBinding", "-sandbox")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": f"{RELEASE}-loopwright-pr-agent", "namespace": NAMESPACE}]


def secrets_of(pod: Pod) -> set[tuple[str, str]]:
    """Each Secret and key that a pod is given."""
    found = set()
    for volume in pod.spec.get("volumes") or []:
        for source in [volume, *(volume.get("projected") or {}).get("sources", [])]:
            if (secret := source.get("secret")) is not None:
                name = secret.get("secretName") or secret.get("name")
                found |= {(name.removeprefix(f"{RELEASE}-loopwright-"), item["key"]) for item in secret["items"]}
    for container in pod.containers:
        for variable in container.get("env") or []:
            if (key := (variable.get("valueFrom") or {}).get("secretKeyRef")) is not None:
                found.add((key["name"].removeprefix(f"{RELEASE}-loopwright-"), key["key"]))
    return found


def test_each_pod_is_given_the_secrets_of_its_task_and_no_others(rendered: dict[str, list[Manifest]]) -> None:
    bus = ("nats-auth", "password")
    wanted = {
        "gateway": {bus, ("database", "url"), ("operator", "token")},
        "ingest": {bus, ("actor", "secret")},
        "cluster": {bus},
        "investigator": {bus, ("forge-tokens", "read")},
        "measure": {bus, ("forge-tokens", "read")},
        "pr-agent": {bus, ("broker", "secret"), *(("forge-tokens", scope) for scope in ("read", "write", "merge"))},
        "forge": {("forge-tokens", scope) for scope in ("read", "write", "merge")},
        "nats": {bus},
        "postgresql": {("database", "password")},
        "migration": {("database", "url")},
        "test": {("operator", "token")},
    }
    found = {pod.labels["app.kubernetes.io/component"]: secrets_of(pod) for pod in pods(rendered["defaults"])}
    assert found == wanted


# ---- who talks to whom ----

OUTSIDE = Pod("the internet", "", address="93.184.216.34")
METADATA = Pod("the metadata address", "", address="169.254.169.254")
API_SERVER = Pod("the API server", "", address="203.0.113.7")
MODEL = Pod("the model", "", address="198.51.100.9")
PORTS = (53, 80, 443, 4222, 4318, 5432, 5353, 6333, 6443, 8080, 8222, 8400, 8401, 8402, 8403, 8404, 8405, 8406, 8414)


def world(manifests: list[Manifest]) -> list[Pod]:
    """Every pod of the release under its component's name, and some around it."""
    ours = [Pod(pod.labels["app.kubernetes.io/component"], pod.namespace, pod.labels, pod.spec) for pod in pods(manifests)]
    around = [
        Pod("sandbox", SANDBOXES, {"app.kubernetes.io/component": "sandbox-job"}),
        Pod("stranger", "other", {"app": "shop"}),
        Pod("neighbour", NAMESPACE, {"app": "shop"}),
        Pod("ingress", "ingress", {"app": "nginx"}),
        Pod("prometheus", "monitoring", {"app": "prometheus"}),
        Pod("keda", "keda", {"app": "keda-operator"}),
        Pod("dns", "kube-system", {"k8s-app": "kube-dns"}),
        Pod("kube-system", "kube-system", {"k8s-app": "something-else"}),
        OUTSIDE, METADATA, API_SERVER, MODEL,
    ]  # fmt: skip
    return ours + around


def flows(manifests: list[Manifest]) -> set[tuple[str, str, int]]:
    """All that the policies let through to or from one of ours: source, target, port."""
    namespaces = (NAMESPACE, SANDBOXES, "other", "ingress", "monitoring", "keda", "kube-system")
    network = Network.of(manifests, *namespaces)
    everybody = world(manifests)
    ours = {pod.name for pod in pods(manifests)}
    assert ours
    inside = {pod.labels["app.kubernetes.io/component"] for pod in pods(manifests)} | {"sandbox"}
    found = set()
    for source in everybody:
        for target in everybody:
            if source is target or not ({source.name, target.name} & inside):
                continue
            for port in PORTS:
                if network.allows(source, target, port) or (port == 53 and network.allows(source, target, port, "UDP")):
                    found.add((source.name, target.name, port))
    return found


def architecture(vectors: bool) -> set[tuple[str, str, int]]:
    """The flows that docs/ARCHITECTURE.md draws: all meet on the bus; one goes to the database, three to the forge, Jobs to the broker."""
    ports = dict(zip(SERVICES, range(8400, 8406), strict=True))
    found = {(service, "nats", 4222) for service in SERVICES}
    found |= {("gateway", "postgresql", 5432), ("migration", "postgresql", 5432), ("sandbox", "pr-agent", 8414)}
    found |= {(service, "forge", 8406) for service in ("investigator", "pr-agent", "measure")}
    found |= {(name, "dns", 53) for name in (*SERVICES, "forge", "migration", "test")}
    found |= {("test", service, port) for service, port in ports.items()} | {("test", "forge", 8406)}
    return found | ({("cluster", "qdrant", 6333)} if vectors else set())


def test_the_policies_open_the_architectures_flows_and_nothing_else(rendered: dict[str, list[Manifest]]) -> None:
    found = flows(rendered["everything"])
    wanted = architecture(vectors=True)
    wanted |= {("ingress", "gateway", 8400), ("ingress", "ingest", 8401), ("ingress", "forge", 8406), ("keda", "nats", 8222)}
    wanted |= {("prometheus", service, port) for service, port in zip(SERVICES, range(8400, 8406), strict=True)}
    wanted |= {("pr-agent", "the API server", port) for port in (443, 6443)}
    wanted |= {(service, "the model", 443) for service in ("investigator", "pr-agent")}
    # No place was named for the collector: each service may go to its port, wherever it is, but nothing of ours listens there.
    assert {flow for flow in found if flow[2] != 4318} - wanted == set()
    assert wanted - found == set()
    assert {source for source, _, port in found if port == 4318} == set(SERVICES)


def test_by_default_anybody_may_knock_at_the_edge_and_the_api_server_is_found_by_its_ports(rendered: dict[str, list[Manifest]]) -> None:
    found = flows(rendered["defaults"])
    at_the_edge = {(source, target) for source, target, port in found if (target, port) in (("gateway", 8400), ("ingest", 8401))}
    outsiders = {"stranger", "neighbour", "ingress", "prometheus", "keda", "dns", "kube-system", "sandbox", "test"}
    outsiders |= {OUTSIDE.name, METADATA.name, API_SERVER.name, MODEL.name}
    knocking = {source for source, _ in at_the_edge}
    assert knocking - {"pr-agent"} == outsiders - {"sandbox"}, "a sandbox may not"
    others = {flow for flow in found if (flow[1], flow[2]) not in (("gateway", 8400), ("ingest", 8401))}
    apart = {flow for flow in others if not (flow[0] == "pr-agent" and flow[2] in (443, 6443))}
    assert apart == {flow for flow in architecture(vectors=False) if (flow[1], flow[2]) not in (("gateway", 8400), ("ingest", 8401))}


@pytest.mark.parametrize("case", ["defaults", "everything", "production", "scaled", "openshift"])
def test_a_sandbox_reaches_the_broker_and_nothing_else_and_nothing_reaches_it(case: str, rendered: dict[str, list[Manifest]]) -> None:
    found = flows(rendered[case])
    assert {flow for flow in found if "sandbox" in flow[:2]} == {("sandbox", "pr-agent", 8414)}


def test_servers_without_services_are_open_to_the_migration_alone() -> None:
    """As in a restore. An empty list of peers would open them to all; and the upgrade that brings the gateway begins with its Job."""
    names = ("gateway", "ingest", "cluster", "investigator", "prAgent", "measure")
    servers = render({name: {"enabled": False} for name in names} | {"tests": {"enabled": False}})
    migration = [item for item in render() if item["kind"] == "Job"]
    policies = named(render(), "NetworkPolicy", "-migration")
    found = {flow for flow in flows([*servers, *migration, policies]) if "sandbox" not in flow[:2]}  # its namespace is pr-agent's
    assert found == {("migration", "postgresql", 5432), ("migration", "dns", 53), ("forge", "dns", 53)}


def test_the_evaluation_tells_policies_apart(rendered: dict[str, list[Manifest]]) -> None:
    """Without policies everything passes; with one ingress rule more, exactly that flow is added."""
    open_world = [item for item in rendered["everything"] if item["kind"] != "NetworkPolicy"]
    assert len(flows(open_world)) > 1_000
    changed = copy.deepcopy(rendered["everything"])
    rule = {
        "from": [
            {"namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["other"]}]}}
        ]
    }
    named(changed, "NetworkPolicy", "-nats")["spec"]["ingress"].append(rule | {"ports": [{"port": 4222, "endPort": 4223}]})
    assert flows(changed) - flows(rendered["everything"]) == {("stranger", "nats", 4222)}


# ---- what the values do ----


def environment(pod: Manifest) -> dict[str, str]:
    container = pod["spec"]["template"]["spec"]["containers"][0]
    names = [variable["name"] for variable in container["env"]]
    assert len(names) == len(set(names)), "a name stands twice: server-side apply refuses that"
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


@pytest.mark.parametrize("case", CASES)
def test_no_variable_stands_twice(case: str, rendered: dict[str, list[Manifest]]) -> None:
    for item in rendered[case]:
        if item["kind"] in ("Deployment", "StatefulSet"):
            environment(item)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"gateway": {"replicaz": 2}}, "replicaz"),
        ({"prAgent": {"settings": {"concurency": 2}}}, "concurency"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"vectors": {"mode": "internal"}}, "mode"),
        ({"bundled": {"nats": {"enabled": False}}}, "external.nats.url"),
        ({"bundled": {"postgresql": {"enabled": False}}}, "external.postgresql.existingSecret"),
        (
            {"bundled": {"forge": {"enabled": False}}, "external": {"forge": {"url": "https://f.example.org"}}},
            "secrets.forge.existingSecret",
        ),
        ({"vectors": {"mode": "external"}}, "external.qdrant.url"),
        ({"cluster": {"replicas": 2}}, "replicas is 2"),
        ({"cluster": {"autoscaling": {"enabled": True}}}, "cannot have autoscaling"),
        ({"measure": {"autoscaling": {"enabled": True, "kind": "keda"}}}, "autoscaling.triggers"),
        ({"sandbox": {"namespace": NAMESPACE}}, "beside your secrets"),
        ({"ingress": {"enabled": True}}, "ingress.gatewayHost"),
        ({"httpRoute": {"enabled": True}}, "parentRefs"),
        ({"investigator": {"model": {"baseUrl": "https://m.example.org"}}}, "investigator.model.name"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_remedy(values: dict[str, Any], told: str) -> None:
    with pytest.raises(NotRendered, match=re.escape(told)):
        render(values)


def test_a_services_own_values_win_over_the_defaults_false_and_zero_too() -> None:
    values = {
        "defaults": {"pdb": {"enabled": True}, "drainSeconds": 30, "podLabels": {"a": "1", "b": "1"}},
        "gateway": {"pdb": {"enabled": False}, "drainSeconds": 0, "podLabels": {"b": "2"}},
    }
    manifests = render(values)
    gateway, ingest = (named(manifests, "Deployment", f"-{name}") for name in ("gateway", "ingest"))
    budgets = {item["metadata"]["name"] for item in manifests if item["kind"] == "PodDisruptionBudget"}
    assert budgets == {f"{RELEASE}-loopwright-ingest"}
    assert environment(gateway)["LOOPWRIGHT_GATEWAY_DRAIN_SECONDS"] == "0"
    assert gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 20 + 5  # its own five seconds of leaving
    assert environment(ingest)["LOOPWRIGHT_INGEST_DRAIN_SECONDS"] == "30"
    assert ingest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 30 + 20 + 5
    labels = gateway["spec"]["template"]["metadata"]["labels"]
    assert (labels["a"], labels["b"]) == ("1", "2")


def test_settings_reach_the_process_by_their_names() -> None:
    settings = {"concurrency": 4, "model_usd_per_day_max": 2.5, "model_usd_per_million_input": 0}
    found = environment(named(render({"investigator": {"settings": settings}}), "Deployment", "-investigator"))
    assert found["LOOPWRIGHT_INVESTIGATOR_CONCURRENCY"] == "4"
    assert found["LOOPWRIGHT_INVESTIGATOR_MODEL_USD_PER_DAY_MAX"] == "2.5"
    assert found["LOOPWRIGHT_INVESTIGATOR_MODEL_USD_PER_MILLION_INPUT"] == "0"
    large = environment(named(render({"prAgent": {"settings": {"run_memory_bytes_max": 34_359_738_368}}}), "Deployment", "-pr-agent"))
    assert large["LOOPWRIGHT_PR_AGENT_RUN_MEMORY_BYTES_MAX"] == "34359738368"


def test_the_vector_switch_moves_the_cluster_service_between_a_volume_and_replicas(rendered: dict[str, list[Manifest]]) -> None:
    embedded = named(rendered["defaults"], "StatefulSet", "-cluster")
    assert embedded["spec"]["volumeClaimTemplates"]
    assert "LOOPWRIGHT_CLUSTER_QDRANT_URL" not in environment(embedded)
    bundled = named(rendered["everything"], "Deployment", "-cluster")
    assert bundled["spec"]["replicas"] == 3
    assert environment(bundled)["LOOPWRIGHT_CLUSTER_QDRANT_URL"] == f"http://{RELEASE}-loopwright-qdrant:6333"
    external = environment(named(rendered["production"], "Deployment", "-cluster"))
    assert external["LOOPWRIGHT_CLUSTER_QDRANT_URL"] == "https://qdrant.qdrant.svc:6333"
    assert external["SSL_CERT_FILE"].startswith("/run/secrets/")


def test_production_uses_nothing_bundled_and_generates_no_secret(rendered: dict[str, list[Manifest]]) -> None:
    manifests = rendered["production"]
    assert not [item for item in manifests if item["kind"] == "Secret"]
    assert {item["metadata"]["name"] for item in manifests if item["kind"] == "StatefulSet"} == {f"{RELEASE}-loopwright-forge"}
    gateway = environment(named(manifests, "Deployment", "-gateway"))
    assert gateway["LOOPWRIGHT_NATS_URL"].count("tls://") == 3
    assert gateway["LOOPWRIGHT_NATS_REPLICAS"] == "3"
    assert gateway["LOOPWRIGHT_NATS_CA_FILE"].startswith("/run/secrets/")
    assert gateway["PGSSLROOTCERT"].startswith("/run/secrets/")
    assert gateway["LOOPWRIGHT_GATEWAY_SECURE_COOKIES"] == "true"
    assert gateway["LOOPWRIGHT_GATEWAY_INGEST_PUBLIC_URL"] == "https://signals.example.org"
    assert "loopwright.example.org" in gateway["LOOPWRIGHT_GATEWAY_ALLOWED_HOSTS"].split(",")
    assert {container["image"] for pod in pods(manifests) for container in pod.containers} == {f"loopwright/loopwright@sha256:{'0' * 64}"}


def test_openshift_gets_no_user_and_no_group(rendered: dict[str, list[Manifest]]) -> None:
    for pod in pods(rendered["openshift"]):
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(pod.spec["securityContext"]), pod.name
    assert environment(named(rendered["openshift"], "Deployment", "-pr-agent"))["LOOPWRIGHT_PR_AGENT_SANDBOX_UID"] == "null"


def test_every_image_comes_from_the_registry_that_is_named(rendered: dict[str, list[Manifest]]) -> None:
    found = {container["image"] for pod in pods(rendered["everything"]) for container in pod.containers}
    assert found, "no images"
    assert all(image.startswith("mirror.example.org:5000/") for image in found), found
    assert "mirror.example.org:5000/library/nats" in {image.rpartition(":")[0] for image in found}
    pull = [{"name": "mirror"}]
    assert all(pod.spec["imagePullSecrets"] == pull for pod in pods(rendered["everything"]))


def test_the_sandbox_namespace_enforces_restricted_and_is_bounded(rendered: dict[str, list[Manifest]]) -> None:
    manifests = rendered["defaults"]
    namespace = next(item for item in manifests if item["kind"] == "Namespace")
    assert namespace["metadata"]["name"] == SANDBOXES
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for kind in ("ResourceQuota", "LimitRange"):
        assert named(manifests, kind, "-sandbox")["metadata"]["namespace"] == SANDBOXES


def test_the_migration_is_a_hook_of_upgrades_and_each_gateway_pod_waits_for_the_database(rendered: dict[str, list[Manifest]]) -> None:
    job = named(rendered["defaults"], "Job", "-migration")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
    (first,) = named(rendered["defaults"], "Deployment", "-gateway")["spec"]["template"]["spec"]["initContainers"]
    assert first["command"] == ["python", "-m", "loopwright_gateway.migrate", "--wait", "300"]


def test_dashboards_and_alerts_are_those_of_the_files(rendered: dict[str, list[Manifest]]) -> None:
    files = sorted((CHART / "files" / "dashboards").glob("*.json"))
    found = {
        name: content
        for item in rendered["everything"]
        if item["kind"] == "ConfigMap" and "-dashboard-" in item["metadata"]["name"]
        for name, content in item["data"].items()
    }
    assert set(found) == {file.name for file in files}
    assert {name: json.loads(content) for name, content in found.items()} == {file.name: json.loads(file.read_text()) for file in files}
    (rule,) = (item for item in rendered["everything"] if item["kind"] == "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())


def test_what_the_bus_may_hold_fits_its_volume() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    server = values["bundled"]["nats"]
    assert server["persistence"]["size"].endswith("Gi")
    size = int(server["persistence"]["size"].removesuffix("Gi")) * 1024**3
    assert values["nats"]["streamBytes"] < server["fileStoreBytes"] < size


def test_secrets_are_kept_at_uninstall_only_when_that_is_asked_for(rendered: dict[str, list[Manifest]]) -> None:
    for case, kept in (("defaults", None), ("everything", "keep")):
        secrets = [item for item in rendered[case] if item["kind"] == "Secret"]
        assert secrets
        assert {(item["metadata"].get("annotations") or {}).get("helm.sh/resource-policy") for item in secrets} == {kept}


def quantity(text: str | int) -> float:
    """A Kubernetes quantity as a number: cores or bytes."""
    factors = {"Gi": 1024**3, "Mi": 1024**2, "Ki": 1024, "m": 0.001}
    unit = next((unit for unit in factors if str(text).endswith(unit)), "")
    return float(str(text).removesuffix(unit)) * factors.get(unit, 1.0)


def test_the_documentation_says_what_the_defaults_ask_of_a_cluster(rendered: dict[str, list[Manifest]]) -> None:
    asked = {"cpu": 0.0, "memory": 0.0}
    for item in rendered["defaults"]:
        if item["kind"] in ("Deployment", "StatefulSet"):
            for container in item["spec"]["template"]["spec"]["containers"]:
                for name in asked:
                    asked[name] += item["spec"]["replicas"] * quantity(container["resources"]["requests"][name])
    text = (CHART.parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
    assert f"asks for {asked['cpu']:.1f} cores and {asked['memory'] / 1024**3:.1f} GiB" in text
