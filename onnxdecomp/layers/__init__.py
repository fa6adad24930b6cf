"""Matches: where layers stand in a graph, and how a chain takes a layer's place.

`find` reads a model and returns, for every operator that carries a weight, a LayerMatch (its Layer, its
adapter and the graph objects around it) or a Skip with the reason; `Rewriter` puts
chains in. One LayerAdapter per family of operators knows all about it.
"""
