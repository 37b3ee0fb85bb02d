"""The sandbox port and its adapters: where code from outside runs without secrets, network or host files."""
