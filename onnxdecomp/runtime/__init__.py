"""ONNX Runtime: providers, sessions, inputs and timing."""
