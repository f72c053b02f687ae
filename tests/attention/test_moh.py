"""Mixture of heads: its gates, its load-balance loss as a by-product of a pass, and its limit, softmax attention."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vantage.attention.moh import Moh
from vantage.attention.softmax import Softmax
from vantage.backbones.build import build_backbone

from .dense_reference import randomised
from .references.moh import gates as gates_by_the_equations


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def image(height=5, width=7, dim=16, batch=2, dtype=torch.float64):
    return torch.randn(batch, height, width, dim, dtype=dtype, generator=torch.Generator().manual_seed(1))


# gates


@pytest.mark.parametrize(
    ("num_heads", "keywords"),
    [
        (4, {"head_share": 1.0}),
        (6, {"head_share": 1.0, "shared_heads": 3}),
        (4, {"head_share": 1.0, "shared_heads": 0}),
        (4, {"shared_heads": 4}),
        (1, {}),
    ],
)
def test_a_router_of_zeros_that_keeps_all_heads_is_softmax_attention(num_heads, keywords):
    module = randomised(Moh(12, num_heads, **keywords))
    if module.router is not None:
        torch.nn.init.zeros_(module.router.weight)
    plain = Softmax(12, num_heads).double()
    plain.load_state_dict(module.state_dict() if num_heads == 1 else without_router(module))
    x = image(dim=12)
    torch.testing.assert_close(module(x), plain(x), rtol=1e-12, atol=1e-12)


def without_router(module):
    return {name: value for name, value in module.state_dict().items() if name != "router.weight"}


@pytest.mark.parametrize(
    ("num_heads", "keywords", "shared", "kept"),
    [
        (1, {}, 1, 0),
        (2, {}, 1, 1),
        (3, {}, 1, 1),
        (4, {}, 1, 2),
        (8, {}, 2, 4),
        (12, {}, 3, 6),
        (32, {}, 8, 16),
        (12, {"shared_heads": 3}, 3, 6),  # MoH-ViT-S, third stage
        (24, {"shared_heads": 8, "head_share": 20 / 24}, 8, 12),  # MoH-ViT-S 80 %, last stage
        (16, {"shared_heads": 6, "head_share": 0.5}, 6, 2),  # MoH-ViT-B 50 %, third stage: 6 and 6 of TransNeXt's 16
        (8, {"shared_heads": 0}, 0, 6),
        (8, {"shared_heads": 8}, 8, 0),
        (8, {"shared_heads": 4, "head_share": 0.25}, 4, 1),
        (10, {"shared_heads": 0, "head_share": 0.7}, 0, 7),
    ],
)
def test_numbers_of_heads(num_heads, keywords, shared, kept):
    module = Moh(2 * num_heads, num_heads, **keywords).double()
    assert (module.shared_heads, module.routed_heads, module.kept_heads) == (shared, num_heads - shared, kept)
    if module.router is None:
        return
    gates = module.gates(image(dim=2 * num_heads))
    assert (gates[..., :shared] > 0).all()
    assert ((gates[..., shared:] != 0).sum(-1) == kept).all()


@pytest.mark.parametrize("keywords", [{}, {"shared_heads": 0}, {"shared_heads": 3}, {"head_share": 1.0}], ids=str)
def test_gates_of_a_token(keywords):
    module, x = randomised(Moh(16, 8, **keywords)), image()
    gates, shared = module.gates(x), module.shared_heads
    torch.testing.assert_close(gates, gates_by_the_equations(module, x, (shared, 8 - shared, module.kept_heads)))
    balance = torch.stack((gates[..., :shared].sum(-1), gates[..., shared:].sum(-1)), -1)  # S a_1 and K a_2
    if not shared:
        torch.testing.assert_close(balance[..., 1], torch.full_like(balance[..., 1], module.kept_heads))
    else:
        a = balance / torch.tensor([shared, module.kept_heads])
        torch.testing.assert_close(a.sum(-1), torch.full_like(a[..., 0], 2))


def test_with_one_kept_head_only_the_auxiliary_loss_trains_the_choice():
    module = Moh(16, 8, shared_heads=2, head_share=0.375)
    assert module.kept_heads == 1
    x = image(dtype=torch.float32)
    module(x).square().sum().backward(retain_graph=True)
    routed = slice(2, 8)  # rows of the router
    assert module.router.weight.grad[routed].abs().max() < 1e-6 * module.router.weight.grad.abs().max()
    module.auxiliary_loss().backward()
    assert module.router.weight.grad[routed].any()


@pytest.mark.parametrize(
    ("num_heads", "keywords", "rows"),
    [
        (4, {}, 3 + 2),
        (8, {}, 2 + 6 + 2),
        (8, {"shared_heads": 0}, 8),
        (8, {"shared_heads": 8}, 8),
        (1, {}, 0),
        (2, {}, 2),
    ],
)
def test_parameters_are_those_of_softmax_attention_and_the_router(num_heads, keywords, rows):
    module = Moh(16, num_heads, **keywords)
    count = sum(p.numel() for p in module.parameters())
    assert count == 4 * 16**2 + 4 * 16 + rows * 16
    assert rows == 0 or 0.01 < module.router.weight.std() < 0.03


def test_autocast_chooses_the_heads_of_float32():
    module, x = Moh(16, 8).eval(), image(dtype=torch.float32)
    wanted = module.gates(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.gates(x), wanted)
        assert module(x).dtype == torch.bfloat16


# the load-balance loss


def by_formula(module, x):
    """E sum_e P_e f_e, counted token by token."""
    weight = module.router.weight[module.rows[0] : module.rows[0] + module.routed_heads]
    chosen = module.gates(x)[..., module.shared_heads :] != 0
    mean, count = torch.zeros(module.routed_heads).double(), torch.zeros(module.routed_heads).double()
    tokens = x.flatten(0, 2)
    for token, own in zip(tokens, chosen.flatten(0, 1)):
        mean += torch.softmax(weight @ token, 0) / len(tokens)
        count += own.double() / len(tokens)
    return module.routed_heads * (mean * count).sum()


@pytest.mark.parametrize("load_balance", [0.01, 2.0])
@pytest.mark.parametrize("shared_heads", [0, 2])
def test_auxiliary_loss(load_balance, shared_heads):
    module, x = randomised(Moh(16, 8, load_balance=load_balance, shared_heads=shared_heads)), image()
    module(x)
    loss = module.auxiliary_loss()
    torch.testing.assert_close(loss, load_balance * by_formula(module, x))
    (got,) = torch.autograd.grad(loss, module.router.weight)
    (wanted,) = torch.autograd.grad(load_balance * by_formula(module, x), module.router.weight)
    torch.testing.assert_close(got, wanted)
    assert got.any()


def test_auxiliary_loss_is_k_if_routing_is_uniform():
    """Tokens are the cyclic shifts of one vector, and the router shows each head one of its entries."""
    module = Moh(8, 8, shared_heads=0, head_share=0.625, load_balance=1.0).double()
    module.router.weight.data = torch.eye(8, dtype=torch.float64)
    row = torch.randn(8, dtype=torch.float64)
    module(torch.stack([row.roll(shift) for shift in range(8)]).view(1, 2, 4, 8))
    torch.testing.assert_close(module.auxiliary_loss(), torch.tensor(5.0, dtype=torch.float64))
    module(row.expand(1, 2, 4, 8))  # all tokens choose the same
    assert module.auxiliary_loss() > 5.1


def test_auxiliary_loss_spreads_the_tokens():
    module, x = Moh(16, 8, load_balance=1.0), image(dtype=torch.float32) + 1  # tokens are alike, and so are choices
    torch.nn.init.normal_(module.router.weight, std=0.3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(40):
        module(x)
        loss = module.auxiliary_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert losses[-1] < module.kept_heads + 0.1


@pytest.mark.parametrize(("num_heads", "keywords"), [(1, {}), (8, {"shared_heads": 8}), (8, {"load_balance": 0.0})])
def test_no_auxiliary_loss_without_a_choice_or_a_weight(num_heads, keywords):
    module = Moh(16, num_heads, **keywords)
    module(image(dtype=torch.float32))
    assert module.auxiliary_loss() is None


def test_auxiliary_loss_is_handed_over_once_and_left_by_training_alone():
    module, x = Moh(16, 4), image(dtype=torch.float32)
    assert module.auxiliary_loss() is None
    module(x)
    module(x)
    assert module.auxiliary_loss().requires_grad
    assert module.auxiliary_loss() is None
    module(x)
    module.eval()
    assert module.imbalance is None, "an evaluation keeps the graph of a training pass alive"
    module(x)
    assert module.auxiliary_loss() is None
    module.train()
    with torch.no_grad():
        module(x)
    assert module.auxiliary_loss() is None


def test_a_copy_between_a_pass_and_its_loss_has_none():
    module, x = Moh(16, 4), image(dtype=torch.float32)
    module(x)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copied.auxiliary_loss() is None
        assert torch.equal(copied(x), module(x))
    assert module.auxiliary_loss() is not None


def gradients(module, out, auxiliary):
    module.zero_grad()
    (out.square().sum() + 100 * auxiliary).backward()
    return [parameter.grad.clone() for parameter in module.parameters()]


@pytest.fixture
def passes():
    """A module, its input, and the gradients of its output's square and a hundred auxiliary losses."""
    module, x = Moh(16, 4), image(dtype=torch.float32)
    return module, x, gradients(module, module(x), module.auxiliary_loss())


def test_compiled_passes_leave_their_loss(passes):
    module, x, wanted = passes
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for number in range(3):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            out = compiled(x)
        torch.testing.assert_close(gradients(module, out, module.auxiliary_loss()), wanted)
    assert module.imbalance is None


def test_exported_programs_leave_none(passes):
    module, x, _ = passes
    module(x)
    exported = torch.export.export(module.eval(), (x,))
    assert module.imbalance is None
    assert len(exported.graph_signature.user_outputs) == 1
    torch.testing.assert_close(exported.module()(x), module(x))


def test_a_checkpoint_trains_the_same_and_leaves_no_second_loss(passes):
    module, x, wanted = passes
    x.requires_grad_()
    out = checkpoint(module, x, use_reentrant=False)
    torch.testing.assert_close(gradients(module, out, module.auxiliary_loss()), wanted)
    assert module.imbalance is None


def test_distributed_training_waits_for_no_parameter(passes, tmp_path):
    module, x, wanted = passes
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        shared = DistributedDataParallel(module)
        for _ in range(2):  # the second pass fails if the first left a parameter without gradient
            torch.testing.assert_close(gradients(module, shared(x), module.auxiliary_loss()), wanted)
    finally:
        torch.distributed.destroy_process_group()


def test_a_checkpointed_backbone_has_the_losses_of_all_slots():
    found = []
    for grad_checkpointing in (False, True):
        torch.manual_seed(0)
        model = build_backbone(
            "swin", "swin_pico32", attention=partial(Moh, head_share=0.5), grad_checkpointing=grad_checkpointing
        )
        attentions = [attention for _, attention in model.installed()]
        out = model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
        losses = [(attention, attention.auxiliary_loss()) for attention in attentions]
        assert [loss is not None for _, loss in losses] == [attention.routed_heads > 1 for attention in attentions]
        losses = [loss for _, loss in losses if loss is not None]
        assert losses
        (out.square().sum() + 100 * sum(losses)).backward()
        assert all(attention.imbalance is None for attention in attentions)
        found.append([attention.router.weight.grad for attention in attentions])
    torch.testing.assert_close(*found)


# refusals


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"shared_heads": 5}, "shared_heads 5 of 4 heads; use 0 to 4, or null"),
        ({"shared_heads": -1}, "shared_heads -1 of 4 heads"),
        ({"shared_heads": 0.5}, r"shared_heads 0\.5 of 4 heads"),
        ({"head_share": 0.0}, r"head_share 0\.0 is not a share"),
        ({"head_share": 75}, "head_share 75 is not a share"),
        ({"load_balance": -0.01}, r"load_balance -0\.01 is not a weight"),
        ({"load_balance": float("nan")}, "load_balance nan is not a weight"),
    ],
)  # fmt: skip
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=f"moh: {message}"):
        Moh(8, 4, **keywords)
