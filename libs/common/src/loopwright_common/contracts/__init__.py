"""The vocabulary every service speaks: pydantic models only, no I/O. Bounded in every field, since the text comes from outside."""
