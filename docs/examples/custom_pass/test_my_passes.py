"""What the pass does to a model, and that it says so."""

import numpy as np
import onnx_ir as ir
from my_passes import ZeroSmall
from onnx import TensorProto, helper, numpy_helper


def model_of(weight):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "graph", [x], [y], [numpy_helper.from_array(np.float32(weight), "w")])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_small_numbers_go():
    model = model_of([[1, 0.04], [-0.06, 0.5]])
    done = ZeroSmall(share=0.05)(model)
    assert (done.modified, done.record) == (True, {"zeroed": 1})
    left = model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(left, np.float32([[1, 0], [-0.06, 0.5]]))


def test_where_nothing_is_small_nothing_is_said_to_have_changed():
    model = model_of([[1, 1], [1, 1]])
    assert not ZeroSmall()(model).modified
