"""The passes, the decompositions and the kinds of layers of this package, by name."""

PASSES = {"drop-dropout": "sample_passes.dropout:DropDropout"}
DECOMPOSITIONS = {"columns": "sample_passes.columns:Columns"}
LAYERS = {"transposed": "sample_passes.transposed:TransposeMatMul"}
