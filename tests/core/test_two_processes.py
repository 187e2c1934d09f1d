"""Two gloo processes against one process on the whole batch: losses, statistics, expert parallelism."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from moeapps.core import (
    ExpertMLP,
    MoE,
    RoutingStatistics,
    entropy_loss,
    importance_loss,
    load_balance_loss,
    localized_balance_loss,
    make_router,
    mutual_information,
    parameter_penalty_loss,
    router_z_loss,
)
from moeapps.core.parallel import ExpertParallel
from tests.processes import run_two

TOKENS, DIM, EXPERTS = 24, 8, 4
LOSSES = {
    "balance": load_balance_loss,
    "importance": importance_loss,
    "z": router_z_loss,
    "entropy": entropy_loss,
    "information": mutual_information,
    "penalty": lambda routing: parameter_penalty_loss(routing, (1, 2, 3, 4)),
    "localized": lambda routing: localized_balance_loss(routing, sample_groups(routing.num_tokens), (0, 0, 1, 1)),
}
OWN = ("topk", "noisy_topk", "topp", "null_experts")
PARALLEL = ("topk", "topp", "expert_choice", "null_experts", "shared")


def sample_groups(tokens: int) -> torch.Tensor:
    """Samples of one token, of two groups: those of all processes in turn, or of one of two."""
    return torch.arange(TOKENS // 2).repeat_interleave(2 * tokens // TOKENS) % 2


def tokens() -> torch.Tensor:
    return torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(3))


def layer(router: str, parallel: bool, **options: Any) -> MoE:
    torch.manual_seed(7)
    made = make_router(router, DIM, EXPERTS)
    experts = ExpertMLP(DIM, 16, EXPERTS)
    return MoE(DIM, EXPERTS, router=made, experts=ExpertParallel(experts) if parallel else experts, **options)


def measured(x: torch.Tensor, shares: int) -> dict[str, Any]:
    """Everything that is compared, on these tokens; gradients are divided as distributed training does."""
    found: dict[str, Any] = {}
    for name in OWN:
        router = make_router(name, DIM, EXPERTS)
        torch.manual_seed(7)
        with torch.no_grad():
            for p in router.parameters():
                p.copy_(torch.randn(p.shape))
        router.eval()  # the same choices, without noise
        routing = router(x)
        losses = {**router.losses(routing), **{n: f(routing) for n, f in LOSSES.items() if name == "topk"}}
        for kind, value in losses.items():
            router.zero_grad()
            value.backward(retain_graph=True)
            grads = {n: p.grad for n, p in router.named_parameters() if p.grad is not None}
            for grad in grads.values():
                if shares > 1:
                    dist.all_reduce(grad)
                    grad /= shares
            found[f"{name}/{kind}"] = (value.detach(), {n: g.clone() for n, g in grads.items()})
    statistics = RoutingStatistics(EXPERTS)
    statistics.update(make_shared()(x))
    found["statistics"] = statistics.compute()
    return found


def make_shared() -> Any:
    torch.manual_seed(9)
    return make_router("topk", DIM, EXPERTS)


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    x = tokens()[rank::2]
    found = measured(x, shares=2)
    for name in PARALLEL:
        divided = layer(name, parallel=True)
        mine = x.clone().requires_grad_()
        y = divided(mine)
        (y.square().sum() / TOKENS * 2).backward()  # each process has the mean over its own tokens
        assert sum(p.numel() for p in divided.experts.parameters()) * 2 == sum(
            p.numel() for p in ExpertMLP(DIM, 16, EXPERTS).parameters()
        )
        found[f"parallel/{name}"] = {
            "y": y.detach(),
            "x": mine.grad,
            "experts": {n: p.grad for n, p in divided.experts.local.named_parameters()},
            "state": {n: v.clone() for n, v in divided.state_dict().items()},
        }
        moved = layer(name, parallel=True)
        with torch.no_grad():
            for p in moved.parameters():
                p.zero_()
        moved.load_state_dict(divided.state_dict())
        torch.testing.assert_close(moved(x), y.detach())
    lonely = layer("topk", parallel=True)
    empty = lonely(x if rank == 0 else x[:0])  # one process without a single token
    found["lonely"] = empty.detach()
    empty.sum().backward()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gloo")
    run_two(worker, (str(folder),))
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_losses_and_their_gradients_are_those_of_the_whole_batch(two):
    one = measured(tokens(), shares=1)
    compared = [name for name in one if name != "statistics"]
    assert len(compared) == 14
    for name in compared:
        value, grads = one[name]
        for process in two:
            torch.testing.assert_close(process[name][0], value, atol=1e-6, rtol=1e-5, msg=name)
            assert process[name][1].keys() == grads.keys()
            for parameter, grad in grads.items():
                torch.testing.assert_close(process[name][1][parameter], grad, atol=1e-6, rtol=1e-4, msg=name)


def test_statistics_are_those_of_the_whole_batch(two):
    one = measured(tokens(), shares=1)["statistics"]
    for process in two:
        for name, value in one.items():
            torch.testing.assert_close(process["statistics"][name], value, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("router", PARALLEL)
def test_expert_parallel_equals_the_undivided_layer_forward_and_backward(two, router):
    # with expert choice the tokens of a process compete with each other
    parts = [tokens()[rank::2] for rank in range(2)] if router == "expert_choice" else [tokens()]
    whole = layer(router, parallel=False)
    inputs = [part.clone().requires_grad_() for part in parts]
    outputs = [whole(part) for part in inputs]
    sum(y.square().sum() / TOKENS for y in outputs).backward()
    y, x = torch.empty(TOKENS, DIM), torch.empty(TOKENS, DIM)
    if len(parts) == 1:
        y, x = outputs[0].detach(), inputs[0].grad
    else:
        for rank in range(2):
            y[rank::2], x[rank::2] = outputs[rank].detach(), inputs[rank].grad
    for rank, process in enumerate(two):
        found = process[f"parallel/{router}"]
        torch.testing.assert_close(found["y"], y[rank::2], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found["x"], 2 * x[rank::2], atol=1e-6, rtol=1e-5)  # of the process's own mean
        for name, parameter in whole.experts.named_parameters():
            mine = parameter.grad[rank * EXPERTS // 2 : (rank + 1) * EXPERTS // 2]
            torch.testing.assert_close(found["experts"][name], mine, atol=1e-6, rtol=1e-4)


def test_the_state_of_divided_experts_is_that_of_the_undivided_layer(two):
    whole = layer("topk", parallel=False)
    for process in two:
        state = process["parallel/topk"]["state"]
        assert state.keys() == whole.state_dict().keys()
        for name, value in whole.state_dict().items():
            assert torch.equal(state[name], value)


def test_a_process_without_tokens_takes_part(two):
    assert two[0]["lonely"].shape == (TOKENS // 2, DIM)
    assert two[1]["lonely"].shape == (0, DIM)
