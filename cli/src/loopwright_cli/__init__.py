"""The loopwright command: run the stack, try the loop, talk to the gateway."""
