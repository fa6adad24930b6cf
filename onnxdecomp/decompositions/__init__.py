"""The decompositions: what one is (base.py), which are installed (registry.py), and one file for each."""
