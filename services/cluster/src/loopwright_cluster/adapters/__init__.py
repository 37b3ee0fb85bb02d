"""The outside world behind the ports: vector indexes and key-value stores."""
