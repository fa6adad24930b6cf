"""Models against the original: numbers, latency, conditions on both."""
