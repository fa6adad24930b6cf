"""Block refinement: after the closed forms, what a block consists of is fitted together."""
