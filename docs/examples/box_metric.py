"""Of the boxes that the original finds, the share that another model finds, too."""

import numpy as np


def overlaps(one, two):
    """[n, m], intersection over union of boxes [n, 4] and [m, 4] as x1, y1, x2, y2."""
    low, high = np.maximum(one[:, None, :2], two[None, :, :2]), np.minimum(one[:, None, 2:], two[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(own[:, 2:] - own[:, :2], axis=1) for own in (one, two)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def kept(scores, boxes, least=0.5, most=0.3):
    """Non-maximum suppression of one image, scores [n], boxes [n, 4]."""
    taken = []
    for at in np.argsort(-scores):
        if scores[at] < least:
            break
        if not taken or overlaps(boxes[[at]], boxes[taken]).max() < most:
            taken.append(at)
    return boxes[taken]


def found(outputs, data):
    """Labels: the original's boxes [samples, 50, 4], filled up with NaN."""
    hits = []
    for scores, boxes, wanted in zip(outputs["scores"], outputs["boxes"], data.labels, strict=True):
        own = kept(scores[:, 1], boxes)
        hits += [*(overlaps(wanted[~np.isnan(wanted[:, 0])], own).max(1, initial=0) >= 0.5)]
    return np.array(hits, float)
