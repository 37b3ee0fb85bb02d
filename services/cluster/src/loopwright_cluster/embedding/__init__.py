"""Text to vectors: the MiniLM model that is built at set-up, and the labelled degraded mode for when it is missing."""
