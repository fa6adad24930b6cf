"""The passes and the decompositions of this package, by name."""

PASSES = {"drop-dropout": "sample_passes.dropout:DropDropout"}
DECOMPOSITIONS = {"columns": "sample_passes.columns:Columns"}
