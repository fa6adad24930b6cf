"""Sites: where layers stand in a graph, and how a chain takes a layer's place.

`find` reads a model and returns, for every operator that carries a weight, a Site (its Layer and the graph
objects around it) or a Skip with the reason; `rewrite` puts chains in. One file per family of operators.
"""
