"""Inputs that users give: files of arrays, images, ONNX test data, their own Python, as feeds of a model."""
