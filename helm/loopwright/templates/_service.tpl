{{/*
The one shape of a service. Takes a dict:

  root        the root context
  component   name, as in object names and labels: pr-agent
  key         name of its values: prAgent
  values      from loopwright.values
  module      what runs: python -m <module>
  prefix      front of its environment variables: LOOPWRIGHT_PR_AGENT_
  env         dict of more variables: name -> {value: ...} or {valueFrom: ...}
  secrets     list of {env, secret, key}: mounted as files under /run/secrets/loopwright, the variable names the file
  volumes, mounts, initContainers, ports (of the pod), servicePorts    lists, may be missing
  stateful    whether it is a StatefulSet with the volume `data`, mounted at dataPath
  plain       whether it is not a service of the bus: no NATS settings, health at /healthz only
  token       whether it is given a service account token
*/}}
{{- define "loopwright.service" -}}
{{- $root := .root -}}
{{- $v := .values -}}
{{- $fullname := printf "%s-%s" (include "loopwright.fullname" $root) .component -}}
{{- $labels := dict "root" $root "component" .component -}}
{{- $scaled := and $v.autoscaling.enabled (not .stateful) -}}
{{- $several := or (and $scaled (gt (int $v.autoscaling.minReplicas) 1)) (and (not $scaled) (gt (int $v.replicas) 1)) -}}
{{- if and .stateful (gt (int $v.replicas) 1) -}}
{{- fail (printf "%s keeps its state in a volume of one pod: replicas is %d, and 1 is all there can be" .key (int $v.replicas)) -}}
{{- end -}}
{{- if and .stateful $v.autoscaling.enabled -}}
{{- fail (printf "%s keeps its state in a volume of one pod: it cannot have autoscaling" .key) -}}
{{- end -}}
{{- $account := default (ternary $fullname "default" $v.serviceAccount.create) $v.serviceAccount.name -}}
{{- if $v.serviceAccount.create }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $account }}
  labels:
    {{- include "loopwright.labels" $labels | nindent 4 }}
  {{- with $v.serviceAccount.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ $fullname }}
  labels:
    {{- include "loopwright.labels" $labels | nindent 4 }}
  {{- with $v.service.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ $v.service.type }}
  selector:
    {{- include "loopwright.selector" $labels | nindent 4 }}
  ports:
    - name: http
      port: {{ int $v.port }}
      targetPort: http
      protocol: TCP
---
apiVersion: apps/v1
kind: {{ ternary "StatefulSet" "Deployment" (default false .stateful) }}
metadata:
  name: {{ $fullname }}
  labels:
    {{- include "loopwright.labels" $labels | nindent 4 }}
  {{- with $v.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- if not $scaled }}
  replicas: {{ int $v.replicas }}
  {{- end }}
  {{- if .stateful }}
  serviceName: {{ $fullname }}
  {{- else }}
  revisionHistoryLimit: 5
  {{- with $v.strategy }}
  strategy:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "loopwright.selector" $labels | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "loopwright.labels" $labels | nindent 8 }}
        {{- with $v.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $v.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "loopwright.pullSecrets" $root.Values.global.imagePullSecrets | nindent 6 }}
      serviceAccountName: {{ $account }}
      automountServiceAccountToken: {{ default false .token }}
      # Kubernetes' variables for Services, as LOOPWRIGHT_GATEWAY_PORT=tcp://..., would be taken for settings. pr-agent needs one of them.
      enableServiceLinks: {{ default false .serviceLinks }}
      terminationGracePeriodSeconds: {{ add (int $v.drainSeconds) (int $v.preStopSeconds) 20 }}
      securityContext:
        {{- include "loopwright.contextOf" $v.podSecurityContext | nindent 8 }}
      {{- with $v.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $v.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      {{- with $v.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $v.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $v.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if and $v.topologySpread.enabled (or $several $scaled) }}
      topologySpreadConstraints:
        - maxSkew: {{ int $v.topologySpread.maxSkew }}
          topologyKey: {{ $v.topologySpread.topologyKey }}
          whenUnsatisfiable: {{ $v.topologySpread.whenUnsatisfiable }}
          labelSelector:
            matchLabels:
              {{- include "loopwright.selector" $labels | nindent 14 }}
      {{- end }}
      {{- with .initContainers }}
      initContainers:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "loopwright.image" (dict "root" $root "image" $root.Values.image) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: ["python", "-m", {{ .module | quote }}]
          env:
            {{- include "loopwright.env" . | nindent 12 }}
          {{- with $v.extraEnvFrom }}
          envFrom:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            - name: http
              containerPort: {{ int $v.port }}
              protocol: TCP
            {{- with .ports }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- if $v.preStopSeconds }}
          lifecycle:
            preStop:
              exec:
                command: ["sleep", {{ toString (int $v.preStopSeconds) | quote }}]
          {{- end }}
          {{- $health := dict "httpGet" (dict "path" "/healthz" "port" "http") }}
          {{- $ready := dict "httpGet" (dict "path" (ternary "/healthz" "/readyz" (default false .plain)) "port" "http") }}
          {{- if .plain }}
          {{- /* The forge answers only to names it knows, and the kubelet asks by address. */}}
          {{- range list $health $ready }}
          {{- $_ := set .httpGet "httpHeaders" (list (dict "name" "Host" "value" "localhost")) }}
          {{- end }}
          {{- end }}
          startupProbe:
            {{- toYaml (merge (dict) $health $v.probes.startup) | nindent 12 }}
          livenessProbe:
            {{- toYaml (merge (dict) $health $v.probes.liveness) | nindent 12 }}
          readinessProbe:
            {{- toYaml (merge (dict) $ready $v.probes.readiness) | nindent 12 }}
          resources:
            {{- toYaml $v.resources | nindent 12 }}
          securityContext:
            {{- include "loopwright.contextOf" $v.containerSecurityContext | nindent 12 }}
          volumeMounts:
            {{- include "loopwright.mounts" . | nindent 12 }}
      volumes:
        - name: tmp
          emptyDir:
            sizeLimit: {{ $v.tmpSize }}
        {{- with .secrets }}
        - name: secrets
          projected:
            # Readable by whatever user the pod runs as: nobody else is in it.
            defaultMode: 0444
            sources:
              {{- range . }}
              - secret:
                  name: {{ .secret }}
                  items:
                    - key: {{ .key }}
                      path: {{ .file }}
              {{- end }}
        {{- end }}
        {{- if and .stateful (not $v.persistence.enabled) }}
        - name: data
          emptyDir:
            sizeLimit: {{ $v.persistence.size }}
        {{- end }}
        {{- with .volumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with $v.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  {{- if and .stateful $v.persistence.enabled }}
  volumeClaimTemplates:
    {{- include "loopwright.claim" (dict "root" $root "persistence" $v.persistence "labels" $labels) | nindent 4 }}
  {{- end }}
{{- if and $v.pdb.enabled $several }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $fullname }}
  labels:
    {{- include "loopwright.labels" $labels | nindent 4 }}
spec:
  maxUnavailable: {{ $v.pdb.maxUnavailable }}
  # A pod that is not ready serves nobody, and must not keep a node from being emptied.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "loopwright.selector" $labels | nindent 6 }}
{{- end }}
{{- if $scaled }}
{{- include "loopwright.autoscaling" (dict "root" $root "values" $v "fullname" $fullname "labels" $labels "lag" .lag "key" .key) }}
{{- end }}
{{- if $root.Values.monitoring.serviceMonitor.enabled }}
{{- if not .plain }}
---
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  name: {{ $fullname }}
  labels:
    {{- include "loopwright.labels" $labels | nindent 4 }}
    {{- with $root.Values.monitoring.serviceMonitor.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  selector:
    matchLabels:
      {{- include "loopwright.selector" $labels | nindent 6 }}
  endpoints:
    - port: http
      path: /metrics
      interval: {{ $root.Values.monitoring.serviceMonitor.interval }}
{{- end }}
{{- end }}
{{- end }}

{{/* A security context without nulls, so that a value may be taken away: OpenShift chooses the user itself. */}}
{{- define "loopwright.contextOf" -}}
{{- $context := dict -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}{{- $_ := set $context $key $value -}}{{- end -}}
{{- end -}}
{{- toYaml $context -}}
{{- end }}

{{/* The main container's variables, each name once: server-side apply refuses a name that stands twice. Later ones win. */}}
{{- define "loopwright.env" -}}
{{- $root := .root -}}
{{- $v := .values -}}
{{- $env := dict
  "HOME" (dict "value" "/tmp")
  "PYTHONUNBUFFERED" (dict "value" "1")
  (printf "%sHOST" .prefix) (dict "value" $v.host)
  (printf "%sPORT" .prefix) (dict "value" (toString (int $v.port)))
-}}
{{- if not .plain -}}
{{- $_ := set $env (printf "%sDRAIN_SECONDS" .prefix) (dict "value" (toString (int $v.drainSeconds))) -}}
{{- $_ := set $env "LOOPWRIGHT_LOG_LEVEL" (dict "value" $v.logLevel) -}}
{{- $_ := set $env "LOOPWRIGHT_LOG_FORMAT" (dict "value" $v.logFormat) -}}
{{- $_ := set $env "LOOPWRIGHT_NATS_URL" (dict "value" (include "loopwright.natsUrl" $root)) -}}
{{- $_ := set $env "LOOPWRIGHT_NATS_USER" (dict "value" $root.Values.nats.user) -}}
{{- $_ := set $env "LOOPWRIGHT_NATS_STORE_BYTES" (dict "value" (toString (int64 $root.Values.nats.streamBytes))) -}}
{{- $replicas := ternary 1 (int $root.Values.external.nats.replicas) $root.Values.bundled.nats.enabled -}}
{{- $_ := set $env "LOOPWRIGHT_NATS_REPLICAS" (dict "value" (toString $replicas)) -}}
{{- if and (not $root.Values.bundled.nats.enabled) $root.Values.external.nats.caSecret -}}
{{- $_ := set $env "LOOPWRIGHT_NATS_CA_FILE" (dict "value" "/run/secrets/loopwright/nats-ca.crt") -}}
{{- end -}}
{{- with $root.Values.telemetry.otlpEndpoint -}}
{{- $_ := set $env "LOOPWRIGHT_OTLP_ENDPOINT" (dict "value" .) -}}
{{- end -}}
{{- end -}}
{{- range .secrets -}}
{{- if .env -}}
{{- $_ := set $env .env (dict "value" (printf "/run/secrets/loopwright/%s" .file)) -}}
{{- end -}}
{{- end -}}
{{- range $name, $entry := (default dict .env) -}}
{{- $_ := set $env $name $entry -}}
{{- end -}}
{{- range $name, $value := $v.settings -}}
{{- $shown := ternary (printf "%v" (int64 (default 0 $value))) (toString $value) (and (kindIs "float64" $value) (eq (float64 (int64 $value)) (float64 $value))) -}}
{{- $_ := set $env (printf "%s%s" $.prefix (upper $name)) (dict "value" $shown) -}}
{{- end -}}
{{- range $v.extraEnv -}}
{{- $_ := set $env .name (omit . "name") -}}
{{- end -}}
{{- range $name := keys $env | sortAlpha }}
- name: {{ $name }}
  {{- toYaml (index $env $name) | nindent 2 }}
{{- end }}
{{- end }}

{{- define "loopwright.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- if .secrets }}
- name: secrets
  mountPath: /run/secrets/loopwright
  readOnly: true
{{- end }}
{{- if .stateful }}
- name: data
  mountPath: {{ .dataPath }}
{{- end }}
{{- with .mounts }}
{{ toYaml . }}
{{- end }}
{{- with .values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The claim `data` of a StatefulSet. Takes a dict of root, persistence and labels. */}}
{{- define "loopwright.claim" -}}
- apiVersion: v1
  kind: PersistentVolumeClaim
  metadata:
    name: data
    labels:
      {{- include "loopwright.selector" .labels | nindent 6 }}
  spec:
    accessModes:
      {{- toYaml .persistence.accessModes | nindent 6 }}
    {{- with default .root.Values.global.storageClass .persistence.storageClass }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests:
        storage: {{ .persistence.size }}
{{- end }}

{{/* What every service of the bus is given as files. Takes the root; gives JSON {"secrets": [...]}. */}}
{{- define "loopwright.busSecrets" -}}
{{- $secrets := list (dict "env" "LOOPWRIGHT_NATS_PASSWORD_FILE" "secret" (include "loopwright.secret.nats" .) "key" .Values.nats.passwordKey "file" "nats-password") -}}
{{- if and (not .Values.bundled.nats.enabled) .Values.external.nats.caSecret -}}
{{- $secrets = append $secrets (dict "env" "" "secret" .Values.external.nats.caSecret "key" "ca.crt" "file" "nats-ca.crt") -}}
{{- end -}}
{{- dict "secrets" $secrets | toJson -}}
{{- end }}

{{- define "loopwright.autoscaling" -}}
{{- $v := .values }}
---
{{- if eq $v.autoscaling.kind "keda" }}
{{- if not (or .lag $v.autoscaling.triggers) }}
{{- fail (printf "%s has no single consumer whose lag could be asked for: set its autoscaling.kind to hpa, or autoscaling.triggers" .key) }}
{{- end }}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .fullname }}
  labels:
    {{- include "loopwright.labels" .labels | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ .fullname }}
  minReplicaCount: {{ int $v.autoscaling.minReplicas }}
  maxReplicaCount: {{ int $v.autoscaling.maxReplicas }}
  pollingInterval: {{ int $v.autoscaling.pollingIntervalSeconds }}
  cooldownPeriod: {{ int $v.autoscaling.cooldownSeconds }}
  triggers:
    {{- $root := .root }}
    {{- if $v.autoscaling.triggers }}
    {{- toYaml $v.autoscaling.triggers | nindent 4 }}
    {{- else }}
    {{- range .lag }}
    - type: nats-jetstream
      metadata:
        {{- if $root.Values.bundled.nats.enabled }}
        natsServerMonitoringEndpoint: {{ printf "%s-nats.%s.svc:8222" (include "loopwright.fullname" $root) $root.Release.Namespace }}
        {{- else }}
        natsServerMonitoringEndpoint: {{ required "external.nats.monitoringEndpoint is needed for autoscaling.kind keda" $root.Values.external.nats.monitoringEndpoint }}
        {{- end }}
        account: "$G"
        stream: {{ .stream }}
        consumer: {{ .consumer }}
        lagThreshold: {{ toString (int $v.autoscaling.lagThreshold) | quote }}
        activationLagThreshold: "0"
    {{- end }}
    {{- end }}
{{- else }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .fullname }}
  labels:
    {{- include "loopwright.labels" .labels | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ .fullname }}
  minReplicas: {{ int $v.autoscaling.minReplicas }}
  maxReplicas: {{ int $v.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ int $v.autoscaling.targetCPUPercent }}
{{- end }}
{{- end }}
