"""Recipes: named, versioned configurations of `compress`, a TOML file each beside this module."""
