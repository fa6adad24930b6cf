"""A model's graph in torch, so that gradients reach its initializers. Needs torch: the extra `train`."""
