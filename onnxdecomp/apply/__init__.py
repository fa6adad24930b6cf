"""From a plan to a model: fit the factors layer after layer and put the chains in."""
