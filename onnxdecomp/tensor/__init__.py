"""Numerics that decompositions share: linear algebra, tensor networks, threads of the BLAS."""
