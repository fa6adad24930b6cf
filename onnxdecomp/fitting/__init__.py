"""Fitting factors to what a layer really sees: a quadratic in the weight, and how to lessen it.

`moments` gathers what the loss needs, `problem` is the loss, `backward` and `alternate` lessen it for any
chain, `fit` puts it together: starts, shrinkage chosen on held-out samples, the bias.
"""
