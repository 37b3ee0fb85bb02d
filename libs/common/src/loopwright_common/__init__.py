"""The vocabulary, the bus and the few things that every Loopwright service needs."""
