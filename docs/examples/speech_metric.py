"""How clean enhanced spectra are, a number of decibels for each: --metric speech_metric.py:clearness."""

import numpy as np


def clearness(outputs, data):
    """10 log10 of the clean spectrum's energy over that of what is left of the noise."""
    left = ((outputs["clean"] - data.labels) ** 2).sum((1, 2))
    return 10 * np.log10((data.labels**2).sum((1, 2)) / left)
