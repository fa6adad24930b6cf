"""Of the objects in the pictures, the share that is found: an error of all scores says little of them."""

NOTHING = 10
"""The class of a cell without an object."""


def objects_found(outputs, data):
    """Outputs: scores [samples, classes, height, width]. Labels: the class of each cell."""
    best = outputs["scores"].argmax(1)
    there = data.labels != NOTHING
    return best[there] == data.labels[there]
