"""The central values, without ONNX: a layer, the steps of a chain, what they cost, options of plug-ins."""
