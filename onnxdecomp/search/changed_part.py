"""What changes of one part of a model do to its outputs, where what follows the part is the original's.

A session takes as long to open as a look at a few samples does. So of every change only the part that it
changes is opened, and the rest of the model once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import onnx_ir as ir

from onnxdecomp.calibration.activations import Observer, open_observer
from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.core.layer import Array
from onnxdecomp.data.comparable_outputs import Compared
from onnxdecomp.graph.traversal import upstream
from onnxdecomp.runtime.session import Feed
from onnxdecomp.search.sensitivity import Outputs, given_to, mean_error, output_error


def errors_of_changes(
    model: ir.Model,
    changed: Collection[ir.Node],
    ends: Sequence[ir.Value],
    tries: Sequence[Callable[[], ir.Model]],
    outputs: Outputs,
    calibration: Calibration,
    known: Sequence[Feed],
) -> Iterator[float]:
    """The squared relative error of the outputs of each changed copy, as `output_error` gives it.

    Args:
        model: The original.
        changed: Its nodes that are other ones in the copies.
        ends: Values of its main graph that they give to the rest of it; the copies have them, too.
        tries: Make the copies, one after the other; they are taken apart.
        outputs, calibration, known: As for `output_error`.
    """
    if not _parted(model, changed, ends, bool(known)):
        for make in tries:
            yield output_error(make(), outputs, calibration, known, consume=True)
        return
    names, threads = [str(value.name) for value in ends], calibration.threads
    before = given_to(model, outputs, known)
    rest: Observer | None = None
    for make in tries:
        tried = make()
        own = given_to(tried, outputs, known)
        part = open_observer(
            tried, names, provider=outputs.provider, threads=threads, known=own[0], consume=True
        )
        compared = Compared(outputs.names, declared=outputs.declared, mask=outputs.mask)
        for feed, fixed, inner, values in zip(outputs.feeds, before, own, outputs.values, strict=True):
            given: dict[str, Array] = dict(zip(names, part.run(feed | inner), strict=True))
            if rest is None:
                rest = open_observer(
                    *(model, outputs.names),
                    provider=outputs.where(len(tries)),
                    threads=threads,
                    known=fixed | given,
                )
            compared.add(feed, values, rest.run(feed | fixed | given))
        yield mean_error(compared)


def _parted(model: ir.Model, changed: Collection[ir.Node], ends: Sequence[ir.Value], held: bool) -> bool:
    """Whether the outputs are computed from these values without any of the nodes.

    What comes before them is computed for the part and for the rest, unless it is held or is nothing.
    """
    graph = model.graph
    inside = all(value.name and (node := value.producer()) and node.graph is graph for value in ends)
    nodes = set(changed)
    if not ends or not inside or any(node.graph is not graph for node in nodes):
        return False
    if not held and upstream(graph, ends) - nodes:
        return False
    return not upstream(graph, graph.outputs, set(ends)) & nodes
