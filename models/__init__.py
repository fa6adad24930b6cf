"""Builders and training scripts of the networks that the tests, the demonstration and bench/ use."""
