"""Plans: which layer gets which method at which ranks, or why it stays; made without touching the model.

A plan is a plain, JSON-serialisable value. `uniform` makes one by giving every layer the same method and
rank specification; `carry_out` fits the factors and rewrites the model as a plan says.
"""
