"""Token aggregation in training, what it stores and what processes share; test_suite.py has the equations."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vantage.attention.token_aggregation import TokenAggregation, spherical_means, stretches, unit

from .dense_reference import assert_same_with_gradients, randomised
from .references.token_aggregation import dense, first_centres, k_means, labels_of

KEYWORDS = [
    {"num_centres": 3, "group_size": 8},
    {"num_centres": 5, "group_size": 30, "qk_dim": 6, "qkv_bias": False},  # 35 tokens: less than one group and a half
    {"num_centres": 16, "group_size": 256},
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(dim=12, num_heads=3, **keywords):
    return randomised(TokenAggregation(dim, num_heads, **{"num_centres": 4, "group_size": 8} | keywords))


def image(height, width, batch=2, dim=12):
    return torch.randn(batch, height, width, dim, dtype=torch.float64)


@pytest.mark.parametrize("hw", [(2, 5), (5, 7), (9, 6)])
@pytest.mark.parametrize("keywords", [{"n_iter": 1}, {"n_iter": 3, "num_centres": 3}, KEYWORDS[1]], ids=str)
def test_training_equals_dense_and_moves_the_centres(hw, keywords):
    module = build(ema_decay=0.75, **keywords)
    assert not module.initted
    centres, stored = None, None

    def reference(x):
        nonlocal centres
        start = first_centres(x.flatten(1, 2), module.num_centres) if stored is None else stored
        centres = k_means(x.flatten(1, 2), start, module.n_iter)
        return dense(module, x, centres)

    for step in range(3):
        assert_same_with_gradients(module, reference, hw[0] + step, hw[1])
        stored = centres.detach() if stored is None else 0.75 * stored + 0.25 * centres.detach()
        torch.testing.assert_close(module.means, stored)
        assert module.initted


def test_stretches_equal_the_paper_where_the_centres_divide_the_tokens():
    """12 tokens, 4 centres: stretches of 4, not 3, so that the last one lies in the reversed tail."""
    tokens = torch.arange(12.0)[None, :, None]
    assert (stretches(tokens, 4) / 4).flatten().tolist() == [1.5, 5.5, 9.5, 9.5]
    assert (stretches(tokens[:, :2], 5)).flatten().tolist() == [0, 1, 1, 0, 0]


# one group


@pytest.mark.parametrize("hw", [(1, 1), (2, 4), (3, 1)])
def test_one_group_without_centres_is_multihead_attention(hw):
    module = build(group_size=8).eval()
    nn.init.zeros_(module.irca_attn["to_v"].weight)
    nn.init.zeros_(module.irca_attn["to_v"].bias)
    layers = [module.iasa_attn[name] for name in ("to_q", "to_k", "to_v")]
    oracle = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    oracle.load_state_dict(
        {
            "in_proj_weight": torch.cat([layer.weight for layer in layers]),
            "in_proj_bias": torch.cat([layer.bias for layer in layers]),
            "out_proj.weight": module.conv1x1.weight[:, :, 0, 0] @ module.iasa_attn["proj"].weight,
            "out_proj.bias": torch.zeros(12),
        }
    )
    x = image(*hw)
    tokens = x.flatten(1, 2)
    torch.testing.assert_close(module(x).flatten(1, 2), oracle(tokens, tokens, tokens, need_weights=False)[0])


def test_tokens_of_one_group_may_come_in_any_order():
    module, x = build(group_size=40).eval(), image(5, 7)
    shuffled = torch.randperm(35)
    out = module(x.flatten(1, 2)[:, shuffled].view(x.shape)).flatten(1, 2)
    torch.testing.assert_close(out, module(x).flatten(1, 2)[:, shuffled])


# several groups


def test_sorting_is_stable_and_its_inverse_puts_every_token_back():
    module, x, orders = build(num_centres=3).eval(), image(40, 41), []

    def mix(tokens, order, centres):
        orders.append(order)
        return tokens.gather(1, order[..., None].expand_as(tokens))

    module.mix = mix
    torch.testing.assert_close(module(x), module.conv1x1(module.iasa_attn["proj"](x).permute(0, 3, 1, 2)).movedim(1, 3))
    for order, labels in zip(orders[0].tolist(), labels_of(x.flatten(1, 2), module.means).tolist()):
        assert order == sorted(range(40 * 41), key=labels.__getitem__)
        assert len(set(labels)) == 3


def test_a_group_reads_itself_and_the_next_wherever_its_tokens_are():
    """A checkerboard of two kinds: groups of 8 hold one kind each, the last two read no token of the first kind."""
    module = build(num_centres=2, group_size=8).eval()
    module.means.copy_(torch.eye(12)[:2])
    kind = (torch.arange(4)[:, None] + torch.arange(8)) % 2  # 16 tokens of each
    x = (torch.eye(12)[kind] * 5 + 0.1 * torch.randn(1, 4, 8, 12)).double().requires_grad_()
    out = module(x)[0]
    kinds = kind.flatten()
    members = [(kinds == value).nonzero().flatten()[start : start + 8] for value in (0, 1) for start in (0, 8)]
    for number, own in enumerate(members):
        (gradient,) = torch.autograd.grad(out.flatten(0, 1)[own[3]].sum(), x, retain_graph=True)
        read = gradient.flatten(0, 2).abs().sum(-1).nonzero().flatten()
        assert sorted(read.tolist()) == sorted(torch.cat(members[number : number + 2]).tolist())


# the centres


def test_evaluation_is_deterministic_and_leaves_the_centres_alone():
    module, x = build(), image(5, 7)
    for trained in (False, True):
        before = copy.deepcopy(module.eval().state_dict())
        first = module(x)
        assert torch.equal(module(x), first)
        assert module.initted == trained
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
        module.train()(x)
        assert not torch.equal(module.means, before["means"])


def test_a_restored_module_goes_on_where_it_was():
    module, x = build(), image(5, 7)
    module(image(5, 7))
    assert module.state_dict()["initted"]
    loaded = build()
    loaded.load_state_dict(module.state_dict())
    pickled = pickle.loads(pickle.dumps(module))
    wanted = module(x)
    for restored in (loaded, pickled):
        assert torch.equal(restored(x), wanted)
        assert torch.equal(restored.means, module.means)


def test_a_centre_without_tokens_stays():
    directions = unit(image(3, 4).flatten(1, 2).abs())
    centres = unit(torch.cat([directions[0, :2], -torch.ones(1, 12, dtype=torch.float64)]))
    moved = spherical_means(directions, centres)
    assert torch.equal(moved[2], centres[2])
    assert not torch.isclose(moved[:2], centres[:2]).all(-1).any()
    torch.testing.assert_close(moved.norm(dim=-1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("blank", [slice(None), slice(0, 3)])
def test_tokens_of_length_zero_send_no_giant_gradients(blank):
    module, x = build(), image(4, 5)
    x[:, blank] = 0
    x.requires_grad_()
    out = module(x)
    gradients = torch.autograd.grad(out.square().sum(), [x, *module.parameters()])
    assert out.isfinite().all()
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e5
    assert module.means.isfinite().all()


def test_labels_do_not_depend_on_autocast():
    module, x = build().float().eval(), image(9, 13).float()
    centres, labels = module.aggregate(x.flatten(1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        same_centres, same_labels = module.aggregate(x.flatten(1, 2))
        out = module(x)
    assert torch.equal(same_labels, labels)
    assert torch.equal(same_centres, centres)
    assert (out.float() - module(x)).abs().max() < 0.03 * module(x).abs().max()
    assert module.to(torch.bfloat16).train()(x.to(torch.bfloat16)).dtype == torch.bfloat16


# processes

WORKER = """
import copy
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from vantage.attention.token_aggregation import TokenAggregation

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.manual_seed(0)
own = nn.Sequential(nn.Linear(8, 8), TokenAggregation(8, 2, num_centres=4, group_size=8, ema_decay=0.5)).double()
alone = copy.deepcopy(own)
batches = torch.randn(3, 4, 5, 7, 8, dtype=torch.float64)
mine = slice(2 * rank, 2 * rank + 2)
expected = []
for x in batches:  # before there are processes: it sees the whole batch and adds nothing up
    alone.zero_grad()
    out = alone(x)
    out.square().mean().backward()
    gradients = [p.grad.clone() for p in alone.parameters()]
    expected.append((out[mine].detach(), gradients, alone[1].means.clone()))

dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
parallel = DistributedDataParallel(own)
for x, (out, gradients, means) in zip(batches, expected):
    parallel.zero_grad()
    got = parallel(x[mine])
    got.square().mean().backward()
    torch.testing.assert_close(got, out)
    torch.testing.assert_close(own[1].means, means)
    torch.testing.assert_close([p.grad for p in own.parameters()], gradients)
    both = [torch.empty_like(means) for _ in range(2)]
    dist.all_gather(both, own[1].means)
    assert torch.equal(*both)
dist.barrier()
del parallel  # it holds the group, whose threads must end before the interpreter does: else it aborts now and then
dist.destroy_process_group()
"""


def test_halves_of_a_batch_on_two_processes_equal_one_process_with_all_of_it(tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=300)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)


# the rest of the contract


@pytest.mark.parametrize("keywords", KEYWORDS[:2], ids=str)
def test_compile_keeps_values_gradients_and_state(keywords):
    torch._dynamo.reset()
    module = build(**keywords)
    compiled_of = copy.deepcopy(module)
    compiled = torch.compile(compiled_of, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = image(5, 7)
        wanted, got = module(x), compiled(x)
        torch.testing.assert_close(got, wanted)
        ours, theirs = (
            torch.autograd.grad(out.square().sum(), list(of.parameters()))
            for out, of in ((got, compiled_of), (wanted, module))
        )
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(compiled_of.state_dict(), module.state_dict())
    module.eval()
    compiled_of.eval()
    torch.testing.assert_close(compiled(x), module(x))
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


@pytest.mark.parametrize("hw", [(1, 1), (3, 9), (11, 7)])
@pytest.mark.parametrize("keywords", KEYWORDS, ids=str)
def test_flops_of_training_are_what_torch_counts(hw, keywords):
    module = TokenAggregation(12, 3, **keywords)
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(1, *hw, 12))
    assert module.flops(*hw) == counter.get_total_flops()


def test_names_shapes_and_state_are_those_of_the_release():
    module = TokenAggregation(40, 4, qk_dim=36, qkv_bias=False)
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == {
        "iasa_attn.to_q.weight": (36, 40),
        "iasa_attn.to_k.weight": (36, 40),
        "iasa_attn.to_v.weight": (40, 40),
        "iasa_attn.proj.weight": (40, 40),
        "irca_attn.to_k.weight": (36, 40),
        "irca_attn.to_v.weight": (40, 40),
        "conv1x1.weight": (40, 40, 1, 1),
        "means": (16, 40),
        "initted": (),
    }


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_centres": 0}, r"attention\.num_centres=0; use 1 or more"),
        ({"group_size": 0}, r"attention\.group_size=0; use 1 or more"),
        ({"n_iter": 0}, r"attention\.n_iter=0; use 1 or more"),
        ({"qk_dim": 8}, r"attention\.qk_dim=8 is not a multiple of num_heads 3"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        TokenAggregation(12, 3, **keywords)
