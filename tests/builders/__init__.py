"""What tests are made of: graphs of nodes, whole small models, layers, inputs, and how to run them."""
