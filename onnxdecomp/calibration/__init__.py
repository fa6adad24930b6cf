"""What the layers of a model see on calibration inputs: observers, rows of inputs, second moments."""
