"""ONNX files and graphs: loading, saving, walking every graph, resolving constants, inferring shapes."""
