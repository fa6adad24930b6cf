"""Damaged models through the command line: `python -m tests.fuzz --n 10000 --seed 0`.

Every case is made of a seed and a number alone, so that a find can be looked at again with `--only NUMBER`.
"""
