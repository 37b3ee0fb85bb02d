{{/* Names, labels, images, addresses and secrets: each is decided here, once. */}}

{{- define "loopwright.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* The front of every object's name. 40 characters leave room for "-pr-agent-broker" within the 63 of a label. */}}
{{- define "loopwright.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Labels of an object. Takes a dict of root and component. */}}
{{- define "loopwright.labels" -}}
{{ include "loopwright.selector" . }}
app.kubernetes.io/part-of: loopwright
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The labels by which a component's pods are chosen. Never changed: a Deployment's selector cannot be. */}}
{{- define "loopwright.selector" -}}
app.kubernetes.io/name: {{ include "loopwright.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* An image's full name. Takes a dict of root and image. */}}
{{- define "loopwright.image" -}}
{{- $repository := .image.repository -}}
{{- with .root.Values.global.imageRegistry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (trimPrefix "docker.io/" $repository) -}}
{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end }}

{{/* `over` laid upon `base`, as JSON: maps are merged, everything else is replaced, false and 0 too (sprig's merge loses those). */}}
{{- define "loopwright.merged" -}}
{{- $out := deepCopy .base -}}
{{- range $key, $value := .over -}}
{{- if and (kindIs "map" $value) (kindIs "map" (index $out $key)) -}}
{{- $_ := set $out $key (include "loopwright.merged" (dict "base" (index $out $key) "over" $value) | fromJson) -}}
{{- else -}}
{{- $_ := set $out $key $value -}}
{{- end -}}
{{- end -}}
{{- $out | toJson -}}
{{- end }}

{{/* What a service has, as JSON: its own values over the defaults. Takes a dict of root and key. */}}
{{- define "loopwright.values" -}}
{{- include "loopwright.merged" (dict "base" .root.Values.defaults "over" (index .root.Values .key)) -}}
{{- end }}

{{- define "loopwright.sandboxNamespace" -}}
{{- default (printf "%s-sandboxes" .Release.Namespace) .Values.sandbox.namespace -}}
{{- end }}

{{/* "true" when the cluster service talks to a Qdrant server. */}}
{{- define "loopwright.vectorServer" -}}
{{- if ne .Values.vectors.mode "embedded" -}}true{{- end -}}
{{- end }}

{{/* ---- addresses ---- */}}

{{- define "loopwright.natsUrl" -}}
{{- if .Values.bundled.nats.enabled -}}
nats://{{ include "loopwright.fullname" . }}-nats:4222
{{- else -}}
{{- required "external.nats.url is needed when bundled.nats.enabled is false" .Values.external.nats.url -}}
{{- end -}}
{{- end }}

{{- define "loopwright.forgeUrl" -}}
{{- if .Values.bundled.forge.enabled -}}
http://{{ include "loopwright.fullname" . }}-forge:{{ int .Values.forge.port }}
{{- else -}}
{{- required "external.forge.url is needed when bundled.forge.enabled is false" .Values.external.forge.url -}}
{{- end -}}
{{- end }}

{{- define "loopwright.qdrantUrl" -}}
{{- if eq .Values.vectors.mode "bundled" -}}
http://{{ include "loopwright.fullname" . }}-qdrant:6333
{{- else if eq .Values.vectors.mode "external" -}}
{{- required "external.qdrant.url is needed when vectors.mode is external" .Values.external.qdrant.url -}}
{{- end -}}
{{- end }}

{{/* The address at which people or clients reach a service from outside, or nothing. Takes a dict of root and key, as gatewayHost. */}}
{{- define "loopwright.publicUrl" -}}
{{- $ingress := index .root.Values.ingress .key -}}
{{- $route := index .root.Values.httpRoute .key -}}
{{- if and .root.Values.ingress.enabled $ingress -}}
{{ ternary "https" "http" (ne .root.Values.ingress.tlsSecret "") }}://{{ $ingress }}
{{- else if and .root.Values.httpRoute.enabled $route -}}
{{ ternary "https" "http" .root.Values.httpRoute.tls }}://{{ $route }}
{{- end -}}
{{- end }}

{{/* ---- secrets: the name of the Secret that holds each ---- */}}

{{- define "loopwright.secret.nats" -}}
{{- default (printf "%s-nats-auth" (include "loopwright.fullname" .)) .Values.nats.existingSecret -}}
{{- end }}
{{- define "loopwright.secret.operator" -}}
{{- default (printf "%s-operator" (include "loopwright.fullname" .)) .Values.secrets.operator.existingSecret -}}
{{- end }}
{{- define "loopwright.secret.actor" -}}
{{- default (printf "%s-actor" (include "loopwright.fullname" .)) .Values.secrets.actor.existingSecret -}}
{{- end }}
{{- define "loopwright.secret.forge" -}}
{{- default (printf "%s-forge-tokens" (include "loopwright.fullname" .)) .Values.secrets.forge.existingSecret -}}
{{- end }}
{{- define "loopwright.secret.broker" -}}
{{- default (printf "%s-broker" (include "loopwright.fullname" .)) .Values.sandbox.broker.existingSecret -}}
{{- end }}
{{- define "loopwright.secret.database" -}}
{{- if .Values.bundled.postgresql.enabled -}}
{{- default (printf "%s-database" (include "loopwright.fullname" .)) .Values.secrets.database.existingSecret -}}
{{- else -}}
{{- required "external.postgresql.existingSecret is needed when bundled.postgresql.enabled is false" .Values.external.postgresql.existingSecret -}}
{{- end -}}
{{- end }}
{{- define "loopwright.secret.databaseKey" -}}
{{- ternary .Values.secrets.database.urlKey .Values.external.postgresql.urlKey .Values.bundled.postgresql.enabled -}}
{{- end }}
{{- define "loopwright.secret.qdrant" -}}
{{- if eq .Values.vectors.mode "bundled" -}}
{{- default (printf "%s-qdrant-auth" (include "loopwright.fullname" .)) .Values.secrets.qdrant.existingSecret -}}
{{- else if eq .Values.vectors.mode "external" -}}
{{- .Values.external.qdrant.existingSecret -}}
{{- end -}}
{{- end }}

{{/* A generated value: what the Secret holds already, else a fresh one of 43 characters (256 bits). Takes a dict of root, name and key. */}}
{{- define "loopwright.generated" -}}
{{- $found := lookup "v1" "Secret" .root.Release.Namespace .name -}}
{{- $held := "" -}}
{{- if $found -}}{{- $held = index (default dict $found.data) .key | default "" | b64dec -}}{{- end -}}
{{- default (randAlphaNum 43) $held -}}
{{- end }}

{{- define "loopwright.pullSecrets" -}}
{{- with . }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}
