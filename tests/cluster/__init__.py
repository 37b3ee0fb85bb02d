"""The product on a real Kubernetes: what brings one up, and the tests that need it."""
