"""compress, inspect and finetune: the order of a run from the request to the file."""
