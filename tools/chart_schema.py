"""Writes helm/loopwright/values.schema.json from values.yaml and the services' settings: ``python tools/chart_schema.py [--check]``.

values.yaml has each value, its default and, in the comment above it, what it is for; the tables below say what else it may be. A value
without a comment, or with a default that the tables do not explain, stops the writing. Settings are those of each service's class, but for
those that other values set.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent.parent / "helm" / "loopwright"
SCHEMA = CHART / "values.schema.json"
SERVICES = {  # key of its values -> its settings' module and class; None: the forge, whose settings are no service's
    "gateway": ("loopwright_gateway.settings", "GatewaySettings"),
    "ingest": ("loopwright_ingest.settings", "IngestSettings"),
    "cluster": ("loopwright_cluster.settings", "ClusterSettings"),
    "investigator": ("loopwright_investigator.settings", "InvestigatorSettings"),
    "prAgent": ("loopwright_pr_agent.settings", "PrAgentSettings"),
    "measure": ("loopwright_measure.settings", "MeasureSettings"),
    "forge": ("loopwright_repositories.local_forge.settings", "ForgeSettings"),
}
# Settings that other values decide: given twice, one of the two would be lost.
DECIDED = {
    "": {"host", "port", "drain_seconds", "log_level", "log_format", "otlp_endpoint"}
    | {"nats_url", "nats_user", "nats_password", "nats_store_bytes", "nats_replicas", "nats_ca_file"},
    "gateway": {"database_url", "migrate_at_start", "operator_token", "allowed_hosts", "secure_cookies", "ingest_public_url"},
    "ingest": {"actor_secret"},
    "cluster": {"embedding_model_dir", "index_dir", "qdrant_url", "qdrant_api_key"},
    "investigator": {"mirrors_dir", "forge_url", "forge_token", "model_base_url", "model_api_key", "model_name"},
    "prAgent": {"work_dir", "forge_url", "forge_read_token", "forge_write_token_file", "forge_merge_token_file"}
    | {"sandbox", "sandbox_namespace", "sandbox_image", "sandbox_image_pull_policy", "sandbox_image_pull_secrets"}
    | {"sandbox_runtime_class", "sandbox_priority_class", "sandbox_node_selector", "sandbox_tolerations"}
    | {"broker_host", "broker_port", "broker_url", "broker_secret", "model_base_url", "model_api_key", "model_name"},
    "measure": {"checkouts_dir", "forge_url", "forge_token"},
    "forge": {"data", "public_url", "allowed_hosts", "read_token", "write_token", "merge_token", "tokens_file", "webhook_secret"},
}

QUANTITY = {"type": ["string", "number"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"}
SIZE = {"type": "string", "pattern": r"^[1-9][0-9]*(\.[0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)$"}
WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
OBJECTS = {"type": "array", "items": {"type": "object"}}
NAMES = {"type": "array", "items": {"type": "string", "minLength": 1}}
PORT = {"type": "integer", "minimum": 1, "maximum": 65_535}
SECONDS = {"type": "integer", "minimum": 0, "maximum": 600}
ANYTHING = {"type": "object"}
URL = {"type": "string", "pattern": r"^(https?://[^\s]+)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}


def choice(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def at_least(least: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least}


def fields(*names: str) -> dict[str, Any]:
    """An object of Kubernetes' own with these fields; null takes a default away."""
    return {"type": "object", "properties": {name: {} for name in names}, "additionalProperties": False}


USER = ("runAsNonRoot", "runAsUser", "runAsGroup", "seccompProfile", "seLinuxOptions", "appArmorProfile", "windowsOptions")
# By the last part of a value's path. The path's end may hold more, as "resources.limits", and then wins.
RULES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("nodeSelector", "podAnnotations", "podLabels", "annotations", "labels", "namespaceLabels"), WORDS),
    **dict.fromkeys(("extraEnvFrom", "extraVolumes", "extraVolumeMounts", "tolerations", "triggers"), OBJECTS),
    **dict.fromkeys(("networkPolicyTo", "edgeFrom", "metricsFrom", "natsMonitoringFrom", "modelEgress", "otlpTo", "parentRefs"), OBJECTS),
    **dict.fromkeys(("requests", "resources.limits", "limits.default", "defaultRequest", "max", "hard"), QUANTITIES),
    **dict.fromkeys(("size", "tmpSize", "workSize"), SIZE),
    **dict.fromkeys(("imagePullSecrets", "allowedHosts", "accessModes", "cidrs"), NAMES),
    **dict.fromkeys(("port", "brokerPort", "otlpPort"), PORT),
    **dict.fromkeys(("affinity", "strategy"), ANYTHING),
    "networkPolicy.ingress": OBJECTS,
    "networkPolicy.egress": OBJECTS,
    "dns.to": OBJECTS,
    "dns.ports": {"type": "array", "items": PORT, "minItems": 1},
    "apiServer.ports": {"type": "array", "items": PORT, "minItems": 1},
    "extraEnv": {"type": "array", "items": {"type": "object", "required": ["name"]}},
    "extraObjects": {"type": "array", "items": {"type": ["object", "string"]}},
    "parameters": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
    "podSecurityContext": fields(
        *USER, "fsGroup", "fsGroupChangePolicy", "supplementalGroups", "supplementalGroupsPolicy", "seLinuxChangePolicy", "sysctls"
    ),
    "containerSecurityContext": fields(
        *USER, "allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities", "privileged", "procMount"
    ),
    "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "repository": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._/:-]*$"},
    "pullPolicy": choice("IfNotPresent", "Always", "Never"),
    "logLevel": choice("debug", "info", "warning", "error"),
    "logFormat": choice("json", "text"),
    "service.type": choice("ClusterIP", "NodePort", "LoadBalancer"),
    "whenUnsatisfiable": choice("ScheduleAnyway", "DoNotSchedule"),
    "autoscaling.kind": choice("hpa", "keda"),
    "vectors.mode": choice("embedded", "bundled", "external"),
    "secureCookies": choice("auto", "always", "never"),
    "maxUnavailable": {"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]{1,3}%$"},
    "targetCPUPercent": {"type": "integer", "minimum": 1, "maximum": 1_000},
    "external.nats.replicas": {"type": "integer", "minimum": 1, "maximum": 5},
    "nats.streamBytes": at_least(64 * 1024**2),
    "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
    "tests.project": {"type": "string", "pattern": "^([a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?)?$"},
    "sandbox.namespace": {"type": "string", "pattern": "^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$"},
    **dict.fromkeys(("drainSeconds", "preStopSeconds"), SECONDS),
    **dict.fromkeys(("baseUrl", "qdrant.url", "forge.url", "publicUrl", "otlpEndpoint", "ingestPublicUrl", "brokerUrl"), URL),
    "external.nats.url": {"type": "string", "pattern": r"^((nats|tls)://[^\s,]+(,(nats|tls)://[^\s,]+)*)?$"},
}  # fmt: skip


class Incomplete(Exception):
    """A value has no comment or no rule."""


def comments(text: str) -> dict[str, str]:
    """Path of each value in a values.yaml -> the comment above it. Raises Incomplete for one without, or with a key this cannot read."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if not stripped:
            comment = []
        elif stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
        elif stripped.startswith("- ") or (path and path[-1][1] == "to" and indent > path[-1][0]):
            comment = []  # within a list: the list's comment says what it is
        else:
            match = re.match(r"([A-Za-z0-9_./-]+):(\s|$)", stripped)
            if match is None:
                raise Incomplete(f"values.yaml:{number}: {stripped[:60]!r} cannot be read")
            while path and path[-1][0] >= indent:
                path.pop()
            path.append((indent, match[1]))
            dotted = ".".join(part.replace(".", "~") for _, part in path)
            if not comment:
                raise Incomplete(f"values.yaml:{number}: {dotted} has no comment above it")
            found[dotted] = " ".join(comment)
            comment = []
    return found


def rule_of(path: list[str]) -> dict[str, Any] | None:
    for length in range(len(path), 0, -1):
        if (found := RULES.get(".".join(path[-length:]))) is not None:
            return found
    return None


def schema_of(value: Any, path: list[str], told: dict[str, str]) -> dict[str, Any]:
    """The schema of one value and of what is below it."""
    dotted = ".".join(part.replace(".", "~") for part in path)
    described = {"description": told[dotted]} if dotted in told else {}
    if path[-1] == "settings":
        return described | settings_of(path[0])
    if (rule := rule_of(path)) is not None:
        return described | rule
    if isinstance(value, dict):
        if not value:
            raise Incomplete(f"{dotted} is empty, and no rule says what it may hold")
        below = {key: schema_of(item, [*path, key], told) for key, item in value.items()}
        return described | {"type": "object", "properties": below, "additionalProperties": False}
    if isinstance(value, list):
        raise Incomplete(f"{dotted} is a list, and no rule says of what")
    if isinstance(value, bool):
        return described | {"type": "boolean"}
    if isinstance(value, int):
        return described | at_least(0)
    if isinstance(value, str):
        return described | {"type": "string"}
    raise Incomplete(f"{dotted} is {value!r}: no rule says what it may be")


def settings_of(key: str) -> dict[str, Any]:
    """The settings a service takes by name."""
    if key == "defaults":
        module, name = "loopwright_common.settings", "ServiceSettings"
    else:
        module, name = SERVICES[key]
    declared = getattr(import_module(module), name).model_fields
    taken = DECIDED[""] | DECIDED.get(key, set())
    # By name alone: what each is for, and its limits, are told by the service's --help and checked at its start.
    known = {field: {"type": ["string", "number", "boolean"]} for field in declared if field not in taken}
    return {"type": "object", "properties": known, "additionalProperties": False}


def build(text: str) -> dict[str, Any]:
    """The whole schema. Raises Incomplete."""
    told = comments(text)
    values = yaml.safe_load(text)
    component = schema_of({**values["defaults"], "settings": {}}, ["defaults"], told)
    shared = set(component["properties"]) - {"settings"}
    properties: dict[str, Any] = {}
    for key, value in values.items():
        if key == "defaults":
            properties[key] = {"$ref": "#/$defs/component"}
        elif key in SERVICES:
            own = {name: schema_of(item, [key, name], told) for name, item in value.items() if name not in shared}
            common = {name: {"$ref": f"#/$defs/component/properties/{name}"} for name in sorted(shared)}
            for name in set(value) & shared:
                common[name] = {"$ref": f"#/$defs/component/properties/{name}", "description": told[f"{key}.{name}"]}
            described = {"description": told[key], "type": "object", "additionalProperties": False}
            settings = {"description": f"{key}'s settings, by their names in settings.py.", **settings_of(key)}
            properties[key] = described | {"properties": {**own, **common, "settings": settings}}
        else:
            properties[key] = schema_of(value, [key], told)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Values of the Loopwright chart",
        "description": "Written by tools/chart_schema.py from values.yaml and the services' settings.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": {"component": {**component, "description": told["defaults"]}},
    }


def render(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    try:
        made = render(build((CHART / "values.yaml").read_text(encoding="utf-8")))
    except Incomplete as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    if "--check" in sys.argv[1:]:
        if SCHEMA.read_text(encoding="utf-8") != made:
            print(
                "✗ helm/loopwright/values.schema.json is not what values.yaml and the settings say. Type: make chart-schema",
                file=sys.stderr,
            )
            return 1
        return 0
    SCHEMA.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
