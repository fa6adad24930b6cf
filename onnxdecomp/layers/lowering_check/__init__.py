"""The lowering check: what the nodes of a rewritten layer do is what its chain says.

`check_lowering` runs every rewritten layer alone in ONNX Runtime (submodel.py) on random numbers (inputs.py)
and compares it with the chain's dense weight (reference.py).
"""

from onnxdecomp.layers.lowering_check.check import TOLERANCE, Check, LoweringCheck, check_lowering

__all__ = ["TOLERANCE", "Check", "LoweringCheck", "check_lowering"]
