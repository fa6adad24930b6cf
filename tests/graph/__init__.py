"""Tests of onnxdecomp.graph."""
