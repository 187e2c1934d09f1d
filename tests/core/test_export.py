"""Every router as a torch.export and an ONNX program, alone and in a table's network: what the layer says."""

import numpy as np
import pytest
import torch

from moeapps.core import HeterogeneousExperts, MoE, make_router
from moeapps.core.experts import LowRankExpertMLP
from moeapps.core.programs import program_bytes
from moeapps.core.surgery import compress_experts, measure_use, merge_experts, prune_experts
from moeapps.tables import TabularMoE
from tests.core.dense import ROUTERS, make

# fast: the one whose program once ended the process on an empty batch
every_router = pytest.mark.parametrize(
    "router", [pytest.param(router, marks=() if router == "soft" else pytest.mark.slow) for router in ROUTERS]
)


def assert_programs_agree(module, inputs):
    """Both forms of a program of any batch size, on no row, one row and all of them."""
    onnxruntime = pytest.importorskip("onnxruntime")
    rows = torch.export.Dim("rows")
    with torch.no_grad():
        traced = torch.export.export(
            module.eval(), tuple(part[:3] for part in inputs), dynamic_shapes=tuple({0: rows} for _ in inputs)
        )
        session = onnxruntime.InferenceSession(program_bytes(traced, "onnx"))
        names = [entry.name for entry in session.get_inputs()]
        for count in (0, 1, len(inputs[0])):
            given = [part[:count] for part in inputs]
            expected = module(*given)
            torch.testing.assert_close(traced.module()(*given), expected, atol=1e-5, rtol=1e-5)
            found = session.run(None, {name: part.numpy() for name, part in zip(names, given, strict=True)})[0]
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, rtol=1e-5)


@every_router
def test_programs_of_a_layer_agree_with_it_for_any_number_of_tokens(router):
    assert_programs_agree(make(router, dim=16, experts=8), [torch.randn(37, 16)])


@pytest.mark.slow
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("eval_capacity_factor", [None, 1.0])
def test_programs_of_a_layer_agree_with_it_on_samples_of_tokens(router, eval_capacity_factor):
    if eval_capacity_factor is not None and not make_router(router, 16, 8).token_choice:
        pytest.skip("has no capacity")
    layer = make(router, dim=16, experts=8, eval_capacity_factor=eval_capacity_factor)
    assert_programs_agree(layer, [torch.randn(11, 5, 16)])


@pytest.mark.slow
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("share_router", [True, False])
def test_programs_of_a_table_network_agree_with_it(router, share_router):
    network = TabularMoE(
        [0.0, 1.0], [1.0, 2.0], [[0.0, 1.0, 2.0], [-1.0, 0.0, 1.0]], [3, 4], 3,
        dim=16, num_blocks=2, num_experts=4, router=router, share_router=share_router,
    )  # fmt: skip
    assert_programs_agree(network, [torch.randn(40, 2, dtype=torch.float64), torch.randint(0, 3, (40, 2))])


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["numbers", "categories"])
def test_programs_of_a_table_of_one_kind_of_column_agree(columns):
    arguments = ([0.0], [1.0], [[0.0, 1.0]], [], 2) if columns == "numbers" else ([], [], [], [3], 2)
    numbers, codes = torch.randn(9, len(arguments[0]), dtype=torch.float64), torch.randint(0, 3, (9, len(arguments[3])))
    assert_programs_agree(TabularMoE(*arguments, dim=8, num_blocks=1), [numbers, codes])


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["prune", "merge", "compress"])
def test_programs_agree_after_surgery(operation):
    layer, x = make(dim=16, experts=8).eval(), torch.randn(37, 16)
    use = measure_use(layer, [x])
    operate = {"prune": prune_experts, "merge": merge_experts}.get(operation)
    changed = compress_experts(layer, 4)[0] if operate is None else operate(layer, 3, use)[0]
    assert_programs_agree(changed, [x])


@pytest.mark.slow
def test_programs_of_factored_experts_agree():
    assert_programs_agree(MoE(16, 4, experts=LowRankExpertMLP(16, 32, 4, 4)), [torch.randn(37, 16)])


@pytest.mark.slow
def test_programs_of_experts_that_are_modules_agree():
    assert_programs_agree(MoE(8, 3, experts=HeterogeneousExperts(8, [4, 5, 6])), [torch.randn(37, 8)])
