"""Latency as a cost: what a chain in the place of a layer costs where it will run, by timing it.

`context` says what stands around a layer, `chain_model` makes a model of a chain with such neighbours,
`measure` times chains against their dense layers, `cache` keeps what was timed, `shares` says how much of
the whole model's latency each layer is, and `predict` puts these together.
"""
