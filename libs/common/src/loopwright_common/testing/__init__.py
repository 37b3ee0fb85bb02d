"""What tests of every package share: a real nats-server, the bus in memory, a clock that stands still, a scripted model."""
