{{/* What the pods of the bundled servers have in common. Takes a dict of root and values (of one of bundled). */}}
{{- define "loopwright.bundledPod" -}}
{{- include "loopwright.pullSecrets" .root.Values.global.imagePullSecrets }}
serviceAccountName: default
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "loopwright.contextOf" .root.Values.defaults.podSecurityContext | nindent 2 }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The volume `data` where there is no claim for it. */}}
{{- define "loopwright.bundledData" -}}
{{- if not .persistence.enabled }}
- name: data
  emptyDir:
    sizeLimit: {{ .persistence.size }}
{{- end }}
{{- end }}
