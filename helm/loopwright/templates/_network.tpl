{{/*
Who talks to whom, as JSON: the table that docs/ARCHITECTURE.md draws. Services by name, what may come to them (edge: from outside; from:
our own) and what they go to; servers by name and port, and who may come. The test pod reaches every service, to ask whether it is ready.
*/}}
{{- define "loopwright.flows" -}}
{{- $test := ternary (list "test") list .Values.tests.enabled -}}
{{- $services := list -}}
{{- if .Values.gateway.enabled -}}
{{- $services = append $services (dict "component" "gateway" "key" "gateway" "edge" true "from" $test "database" true) -}}
{{- end -}}
{{- if .Values.ingest.enabled -}}
{{- $services = append $services (dict "component" "ingest" "key" "ingest" "edge" true "from" $test) -}}
{{- end -}}
{{- if .Values.cluster.enabled -}}
{{- $services = append $services (dict "component" "cluster" "key" "cluster" "from" $test "vectors" true) -}}
{{- end -}}
{{- if .Values.investigator.enabled -}}
{{- $services = append $services (dict "component" "investigator" "key" "investigator" "from" $test "forge" true "model" true) -}}
{{- end -}}
{{- if .Values.prAgent.enabled -}}
{{- $services = append $services (dict "component" "pr-agent" "key" "prAgent" "from" $test "forge" true "model" true "apiServer" true "broker" true) -}}
{{- end -}}
{{- if .Values.measure.enabled -}}
{{- $services = append $services (dict "component" "measure" "key" "measure" "from" $test "forge" true) -}}
{{- end -}}
{{- $ofBus := list -}}{{- $ofForge := $test -}}
{{- range $services -}}
{{- $ofBus = append $ofBus .component -}}
{{- if .forge -}}{{- $ofForge = append $ofForge .component -}}{{- end -}}
{{- end -}}
{{- if .Values.bundled.forge.enabled -}}
{{- $outside := or (and .Values.ingress.enabled .Values.ingress.forgeHost) (and .Values.httpRoute.enabled .Values.httpRoute.forgeHost) -}}
{{- $services = append $services (dict "component" "forge" "key" "forge" "plain" true "edge" (ternary true false (not (empty $outside))) "from" $ofForge) -}}
{{- end -}}
{{- $servers := list -}}
{{- if .Values.bundled.nats.enabled -}}
{{- $servers = append $servers (dict "component" "nats" "port" 4222 "from" $ofBus) -}}
{{- end -}}
{{- /* Also without the gateway: the upgrade that brings it begins with the migration. */ -}}
{{- if .Values.bundled.postgresql.enabled -}}
{{- $servers = append $servers (dict "component" "postgresql" "port" 5432 "from" (list "gateway" "migration")) -}}
{{- end -}}
{{- if and (eq .Values.vectors.mode "bundled") .Values.cluster.enabled -}}
{{- $servers = append $servers (dict "component" "qdrant" "port" 6333 "from" (list "cluster")) -}}
{{- end -}}
{{- dict "services" $services "servers" $servers | toJson -}}
{{- end }}

{{- define "loopwright.peer" -}}
- podSelector:
    matchLabels:
      {{- include "loopwright.selector" . | nindent 6 }}
{{- end }}

{{- define "loopwright.egress.dns" -}}
# name resolution
- to:
    {{- toYaml .Values.networkPolicy.dns.to | nindent 4 }}
  ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - port: {{ int . }}
      protocol: UDP
    - port: {{ int . }}
      protocol: TCP
    {{- end }}
{{- end }}

{{/* An egress rule to a server of ours or of yours. Takes a dict of root, own (component or ""), ownPort, to (peers), port and what. */}}
{{- define "loopwright.egress.server" -}}
# {{ .what }}
- {{- if .own }}
  to:
    {{- include "loopwright.peer" (dict "root" .root "component" .own) | nindent 4 }}
  {{- else if .to }}
  to:
    {{- toYaml .to | nindent 4 }}
  {{- end }}
  ports:
    - port: {{ int (ternary .ownPort .port (ne .own "")) }}
      protocol: TCP
{{- end }}

{{- define "loopwright.egress.nats" -}}
{{- $e := .Values.external.nats -}}
{{- include "loopwright.egress.server" (dict "root" . "what" "the bus" "own" (ternary "nats" "" .Values.bundled.nats.enabled) "ownPort" 4222 "to" $e.networkPolicyTo "port" $e.port) -}}
{{- end }}

{{- define "loopwright.egress.database" -}}
{{- $e := .Values.external.postgresql -}}
{{- include "loopwright.egress.server" (dict "root" . "what" "the database" "own" (ternary "postgresql" "" .Values.bundled.postgresql.enabled) "ownPort" 5432 "to" $e.networkPolicyTo "port" $e.port) -}}
{{- end }}

{{- define "loopwright.egress.vectors" -}}
{{- $e := .Values.external.qdrant -}}
{{- if include "loopwright.vectorServer" . -}}
{{- include "loopwright.egress.server" (dict "root" . "what" "the vectors" "own" (ternary "qdrant" "" (eq .Values.vectors.mode "bundled")) "ownPort" 6333 "to" $e.networkPolicyTo "port" $e.port) -}}
{{- end -}}
{{- end }}

{{- define "loopwright.egress.forge" -}}
{{- $e := .Values.external.forge -}}
{{- include "loopwright.egress.server" (dict "root" . "what" "the forge" "own" (ternary "forge" "" .Values.bundled.forge.enabled) "ownPort" (int .Values.forge.port) "to" $e.networkPolicyTo "port" $e.port) -}}
{{- end }}

{{- define "loopwright.egress.otlp" -}}
{{- if .Values.telemetry.otlpEndpoint -}}
{{- include "loopwright.egress.server" (dict "root" . "what" "traces" "own" "" "ownPort" 0 "to" .Values.telemetry.otlpTo "port" .Values.telemetry.otlpPort) -}}
{{- end -}}
{{- end }}

{{/* The API server's addresses are those behind its Service: policies see them after translation. */}}
{{- define "loopwright.egress.apiServer" -}}
{{- $cidrs := .Values.networkPolicy.apiServer.cidrs -}}
{{- if not $cidrs -}}
{{- $found := lookup "discovery.k8s.io/v1" "EndpointSlice" "default" "kubernetes" -}}
{{- range (default list (get (default dict $found) "endpoints")) -}}
{{- range .addresses -}}
{{- $cidrs = append $cidrs (printf "%s/%s" . (ternary "128" "32" (contains ":" .))) -}}
{{- end -}}
{{- end -}}
{{- $service := lookup "v1" "Service" "default" "kubernetes" -}}
{{- if and $cidrs $service -}}
{{- range (default list $service.spec.clusterIPs) -}}
{{- $cidrs = append $cidrs (printf "%s/%s" . (ternary "128" "32" (contains ":" .))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
# the Kubernetes API
- {{- if $cidrs }}
  to:
    {{- range $cidrs }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  {{- end }}
  ports:
    {{- range .Values.networkPolicy.apiServer.ports }}
    - port: {{ int . }}
      protocol: TCP
    {{- end }}
{{- end }}
