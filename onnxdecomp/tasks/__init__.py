"""Results that are kept in a work folder, and who computes them."""
