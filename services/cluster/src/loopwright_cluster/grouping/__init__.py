"""Which report a signal belongs to: fingerprints for what is known, versioned matchers (v1, ...) for what is new."""
