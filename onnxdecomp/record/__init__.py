"""The JSON record of a run: its parts, its schema, reading and writing it."""
