"""What a target can be about: one object for each kind, in `registry`."""
