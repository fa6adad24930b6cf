"""Training a model's initializers, on the ONNX file itself. Needs torch: the extra `train`."""
