"""Comparisons with other ways, each a script that writes its result beside itself in results/."""
