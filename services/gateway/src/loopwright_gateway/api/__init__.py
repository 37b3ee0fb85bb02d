"""The HTTP API: one module per resource. Routes read and answer; what they decide is in people, catalogue and the inbox's port."""
