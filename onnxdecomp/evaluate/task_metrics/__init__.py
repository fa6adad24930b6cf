"""How good a model is at what it is for: one number, built in by name or the user's own function."""
