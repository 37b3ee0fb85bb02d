// Package pinned names what is built from this module: kube-router, of which the test cluster runs the firewall alone.
package pinned

import _ "github.com/cloudnativelabs/kube-router/v2/pkg/cmd"
