//go:build pinned

// Package pinned keeps the command in go.mod: `go build helm.sh/helm/v4/cmd/helm` takes what go.sum has.
package pinned

import _ "helm.sh/helm/v4/cmd/helm"
