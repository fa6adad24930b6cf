"""Every model of the corpus in torch: as in ONNX Runtime, on its own inputs."""

from __future__ import annotations

from onnxdecomp.graph.load import load
from onnxdecomp.training.agreement import check_agreement
from onnxdecomp.training.autograd.network import Network
from onnxdecomp.training.roles import roles
from tests.corpus.case import Case, each


@each()
def test_torch_computes_what_onnx_runtime_does(case: Case) -> None:
    """Also with all of its weights as parameters, which gradients reach where an output is a number."""
    model = load(case.original)
    feeds = case.feeds[:2]
    names = [role.name for role in roles(model)]
    network = Network(model, names)
    check_agreement(model, case.original, network, feeds)
    if not names:
        return
    outputs = [y for y in network(feeds[0]).values() if y.requires_grad]
    sum(y.square().sum() for y in outputs).backward()
    reached = [name for name in names if network.parameters[name].grad is not None]
    assert reached
