{{/* Names are fixed, not made from the release's: the operator looks for a pool's Service under its name, and one namespace holds
one installation. */}}

{{/* Labels of every object. Arguments: root, component. */}}
{{- define "ash.labels" -}}
{{ include "ash.selector" . }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What selects a workload's pods: never changes, since a Deployment's selector cannot. */}}
{{- define "ash.selector" -}}
app.kubernetes.io/name: ash
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* An image by the one prefix; a digest stands over a tag. Arguments: root, image. */}}
{{- define "ash.image" -}}
{{- $prefix := .root.Values.image.registry | trimSuffix "/" -}}
{{- $name := ternary (printf "%s/%s" $prefix .image.repository) .image.repository (ne $prefix "") -}}
{{- if .image.digest }}{{ printf "%s@%s" $name .image.digest }}{{ else }}{{ printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) }}{{ end -}}
{{- end }}

{{/* The names of the served namespaces, with commas between. */}}
{{- define "ash.namespaces" -}}
{{- $names := list -}}
{{- range .Values.namespaces }}{{ $names = append $names .name }}{{ end -}}
{{- join "," $names -}}
{{- end }}

{{/* Where people reach the API. */}}
{{- define "ash.publicUrl" -}}
{{- if .Values.publicUrl }}{{ .Values.publicUrl }}
{{- else if and .Values.ingress.enabled .Values.ingress.hosts }}{{ ternary "https" "http" (not (empty .Values.ingress.tls)) }}://{{ first .Values.ingress.hosts }}
{{- else if and .Values.httpRoute.enabled .Values.httpRoute.hostnames }}https://{{ first .Values.httpRoute.hostnames }}
{{- else }}http://ash.{{ .Release.Namespace }}.svc{{ if ne (int .Values.api.service.port) 80 }}:{{ .Values.api.service.port }}{{ end }}
{{- end -}}
{{- end }}

{{/* A Secret's file in a pod: only the keys that the process needs. Arguments: root, keys. */}}
{{- define "ash.keysVolume" -}}
- name: keys
  secret:
    secretName: {{ .root.Values.keys.secretName }}
    defaultMode: 0440
    items:
      {{- range .keys }}
      - { key: {{ . }}, path: {{ . }} }
      {{- end }}
{{- end }}

{{/* Volumes that every process has. */}}
{{- define "ash.volumes" -}}
- name: data
  emptyDir: {}
- name: tmp
  emptyDir: {}
{{- with .Values.caBundle.configMapName }}
- name: ca
  configMap:
    name: {{ . }}
{{- end }}
{{- end }}

{{- define "ash.volumeMounts" -}}
- { name: keys, mountPath: /etc/ash/keys, readOnly: true }
- { name: data, mountPath: /var/lib/ash }
- { name: tmp, mountPath: /tmp }
{{- if .Values.caBundle.configMapName }}
- { name: ca, mountPath: /etc/ash/ca, readOnly: true }
{{- end }}
{{- end }}

{{/* Variables that every process has. */}}
{{- define "ash.env" -}}
- { name: ASH_LOG, value: {{ .Values.log.filter | quote }} }
- { name: ASH_LOG_FORMAT, value: {{ .Values.log.format }} }
- { name: ASH_DATA_DIR, value: /var/lib/ash }
- { name: ASH_FLEET_SECRET_FILE, value: /etc/ash/keys/fleet-secret }
{{- if .Values.proxy.secret.name }}
- name: HTTPS_PROXY
  valueFrom:
    secretKeyRef: { name: {{ .Values.proxy.secret.name }}, key: {{ .Values.proxy.secret.key }} }
{{- else if .Values.proxy.httpsProxy }}
- { name: HTTPS_PROXY, value: {{ .Values.proxy.httpsProxy | quote }} }
{{- end }}
{{- if or .Values.proxy.secret.name .Values.proxy.httpsProxy }}
- name: NO_PROXY
  value: {{ list .Values.proxy.noProxy "localhost,127.0.0.1,.svc,.cluster.local,$(KUBERNETES_SERVICE_HOST)" | compact | join "," | quote }}
{{- end }}
{{- with .Values.caBundle }}
{{- if .configMapName }}
# The bundle is read beside the image's own folder of authorities, not in its place.
- { name: SSL_CERT_FILE, value: /etc/ash/ca/{{ .key }} }
- { name: SSL_CERT_DIR, value: /etc/ssl/certs }
{{- end }}
{{- end }}
{{- end }}

{{/* Variables of those that keep snapshots of workspaces, and of those that remove what none needs: runners and API. */}}
{{- define "ash.objectStoreEnv" -}}
{{- with .Values.objectStore }}
{{- if .url }}
- { name: ASH_OBJECT_STORE, value: {{ .url | quote }} }
{{- with .endpoint }}
- { name: AWS_ENDPOINT, value: {{ . | quote }} }
{{- if hasPrefix "http://" . }}
- { name: AWS_ALLOW_HTTP, value: "true" }
{{- end }}
{{- end }}
{{- with .region }}
- { name: AWS_REGION, value: {{ . | quote }} }
{{- end }}
{{- with .snapshotQuota }}
- { name: ASH_SNAPSHOT_QUOTA, value: {{ . | quote }} }
{{- end }}
{{- if .secret.name }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef: { name: {{ .secret.name }}, key: {{ .secret.accessKeyId }} }
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef: { name: {{ .secret.name }}, key: {{ .secret.secretAccessKey }} }
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Variables of those that hold the database and the keys: API and operator. */}}
{{- define "ash.controlEnv" -}}
- name: ASH_DATABASE_URL
  valueFrom:
    secretKeyRef: { name: {{ .Values.database.secretName }}, key: {{ .Values.database.key }} }
- name: ASH_ANTHROPIC_API_KEY
  valueFrom:
    secretKeyRef: { name: {{ .Values.keys.secretName }}, key: anthropic-api-key, optional: true }
- { name: ASH_TOKEN_KEY_FILE, value: /etc/ash/keys/token-key }
- { name: ASH_CREDENTIAL_KEY_FILE, value: /etc/ash/keys/credential-key }
- { name: ASH_NAMESPACES, value: {{ include "ash.namespaces" . | quote }} }
{{- end }}

{{/* Pod Security `restricted`. */}}
{{- define "ash.podSecurity" -}}
runAsNonRoot: true
{{- if not (kindIs "invalid" .Values.runAsUser) }}
runAsUser: {{ .Values.runAsUser }}
runAsGroup: {{ .Values.runAsUser }}
fsGroup: {{ .Values.runAsUser }}
{{- end }}
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "ash.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "ash.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Where a workload's pods may run. Argument: its values; a pool's `taint` is tolerated beside them. */}}
{{- define "ash.scheduling" -}}
{{- if or .tolerations .taint }}
tolerations:
  {{- with .taint }}
  - { key: ash.dev/node-pool, operator: Equal, value: {{ . | quote }} }
  {{- end }}
  {{- with .tolerations }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Replicas apart from each other, where that can be had. Arguments: component. */}}
{{- define "ash.spread" -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels: {{- include "ash.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}

{{/* A pool's values: the runners' own, with the pool's over them. Arguments: root, pool. */}}
{{- define "ash.pool" -}}
{{- mergeOverwrite (deepCopy .root.Values.runner) (deepCopy (.pool | default dict)) | toYaml -}}
{{- end }}

{{/* Peers of a NetworkPolicy: pods of the release's own namespace by component. */}}
{{- define "ash.peer" -}}
- podSelector:
    matchLabels: {{- include "ash.selector" . | nindent 6 }}
{{- end }}
