"""What the layers of a model see on calibration inputs: taps, rows of inputs, second moments."""
