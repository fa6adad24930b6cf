"""The passes of this package, by name."""

PASSES = {"drop-dropout": "sample_passes.dropout:DropDropout"}
