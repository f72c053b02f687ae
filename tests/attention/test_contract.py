"""What every attention promises, for each config in configs/attention; a new one is found by its file."""

import copy
import importlib
import inspect
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

import vantage.attention
import vantage.position
from vantage.attention.axial import Axial
from vantage.attention.base import ROLES, Attention
from vantage.attention.multihead import MultiHead
from vantage.position.base import HOOKS, Position

from .table import TABLE

ROOT = Path(__file__).resolve().parents[2]
# modules of the package that are not a mechanism
HELPERS = {"__init__", "base", "bench", "convolution", "linear", "multihead", "partition", "tables"}
EXECUTES_MORE = {"neighborhood"}  # backends compute scores that the mechanism masks; flops() does not count them
STATEFUL = {"token_aggregation": {"means", "initted"}}  # buffers that training moves, and a checkpoint must have
WITHOUT_EFFECT_AT_FIRST = {"urpe"}  # positions that start as none; the tests here give them other parameters
WITHOUT_A_MAP = {"fourier_karat", "inline", "lightnet"}  # mechanisms with a sentence of their own why
SHARED_DEFAULTS = {"qkv_bias": True, "attn_drop": 0.0, "proj_drop": 0.0}
DIM, HEADS = 16, 4


def configs(group):
    found = {path.stem: OmegaConf.load(path) for path in sorted((ROOT / "configs" / group).glob("*.yaml"))}
    return {name: config for name, config in found.items() if config}  # native and none are empty


ATTENTIONS = configs("attention")
POSITIONS = configs("position")
ROLE_VARIANTS = [  # (name, role) with the plain config first
    (name, role) for name, config in ATTENTIONS.items() for role in (None, *config.get("roles", {}))
]


def each_attention(test):
    return pytest.mark.parametrize("name", ATTENTIONS)(test)


def each_variant(test):
    ids = [name if role is None else f"{name}-{role}" for name, role in ROLE_VARIANTS]
    return pytest.mark.parametrize(("name", "role"), ROLE_VARIANTS, ids=ids)(test)


def build(name, role=None, position=None, **keywords):
    torch.manual_seed(0)
    config = ATTENTIONS[name].copy()
    roles = config.pop("roles", {})
    given = None if position is None else instantiate(POSITIONS[position])(DIM // HEADS, HEADS)
    module = instantiate(config)(DIM, HEADS, position=given, **(roles[role] if role else {}), **keywords)
    if position in WITHOUT_EFFECT_AT_FIRST:  # once the attention has told it its extent
        for parameter in given.parameters():
            torch.nn.init.normal_(parameter)
    return module


def image(height, width, batch=2, **options):
    return torch.randn(batch, height, width, DIM, generator=torch.Generator().manual_seed(1), **options)


def class_of(config):
    return get_class(config._target_)


def positions_taken_by(name):
    return [
        p for p, config in POSITIONS.items() if class_of(config).hook in class_of(ATTENTIONS[name]).supports_position
    ]


PAIRS = [(name, position) for name in ATTENTIONS for position in positions_taken_by(name)]
REFUSED = [(name, p) for name in ATTENTIONS for p in POSITIONS if p not in positions_taken_by(name)]


# files, configs and classes


def test_every_file_has_a_config_and_every_config_a_file():
    assert {path.stem for path in Path(vantage.attention.__file__).parent.glob("*.py")} - HELPERS == set(ATTENTIONS)
    package = Path(vantage.position.__file__).parent
    assert {path.stem for path in package.glob("*.py")} - {"__init__", "base", "grid"} == set(POSITIONS)


@pytest.mark.parametrize(("group", "empty"), [("attention", "native"), ("position", "none")])
def test_the_empty_choice_is_an_empty_mapping(group, empty):
    assert OmegaConf.load(ROOT / "configs" / group / f"{empty}.yaml") == {}


@pytest.mark.parametrize(
    ("group", "name", "base"),
    [("attention", name, Attention) for name in ATTENTIONS] + [("position", name, Position) for name in POSITIONS],
)
def test_target_is_the_class_named_after_the_file(group, name, base):
    config = configs(group)[name]
    camel = "".join(part.capitalize() for part in name.split("_"))
    assert config._target_ == f"vantage.{group}.{name}.{camel}"
    assert config._partial_ is True
    assert issubclass(class_of(config), base)
    assert camel in importlib.import_module(f"vantage.{group}").__all__


@pytest.mark.parametrize(
    ("group", "name"), [*(("attention", n) for n in ATTENTIONS), *(("position", n) for n in POSITIONS)]
)
def test_yaml_and_signature_agree_on_keywords_and_defaults(group, name):
    node = configs(group)[name]
    config = OmegaConf.to_container(node)
    parameters = inspect.signature(class_of(node).__init__).parameters
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())
    positional = ["self", "dim", "num_heads"] if group == "attention" else ["self", "head_dim", "num_heads"]
    assert [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    own = {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and n != "position"}
    written = {key: value for key, value in config.items() if key not in ("_target_", "_partial_", "roles")}
    assert written == own
    for keywords in config.get("roles", {}).values():
        assert set(keywords) <= set(own)
    if group == "attention":
        assert parameters["position"].default is None
        assert own.items() >= SHARED_DEFAULTS.items()


@each_attention
def test_the_class_says_what_it_is(name):
    cls = class_of(ATTENTIONS[name])
    assert cls.role_support
    assert set(cls.role_support) <= set(ROLES)
    assert set(cls.supports_position) <= set(HOOKS)
    assert isinstance(cls.needs_grid, bool)
    assert cls.cost
    assert set(ATTENTIONS[name].get("roles", {})) <= {*ROLES, "shifted"}
    docstring = importlib.import_module(cls.__module__).__doc__
    assert "Cost" in docstring
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", docstring)


# refusals


@each_attention
def test_heads_that_do_not_divide_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: dim 16 is not a multiple of num_heads 3"):
        class_of(ATTENTIONS[name])(16, 3)


@pytest.mark.parametrize(("name", "position"), REFUSED)
def test_a_position_that_is_not_supported_is_refused(name, position):
    with pytest.raises(ValueError, match=f"attention={name} cannot take position={position}"):
        build(name, position=position)


@each_attention
def test_an_unknown_keyword_is_refused(name):
    with pytest.raises(Exception, match="no_such_keyword"):
        build(name, no_such_keyword=1)


# running


@each_variant
@pytest.mark.parametrize("hw", [(1, 1), (1, 5), (7, 2), (9, 13), (14, 14)])
def test_any_map_goes_in_and_out_with_finite_gradients(name, role, hw):
    module = build(name, role)
    x = image(*hw, requires_grad=True)
    out = module(x)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert out.isfinite().all()
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


@each_variant
def test_every_parameter_is_trained(name, role):
    module = build(name, role)
    module(image(9, 13)).square().sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("name", "position"), PAIRS)
def test_a_position_changes_the_output_and_is_trained(name, position):
    plain, positioned = build(name), build(name, position=position)
    missing = positioned.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("position.") for key in missing.missing_keys)
    x = image(9, 13)
    assert not torch.allclose(plain(x), positioned(x), atol=1e-5)
    positioned(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in positioned.parameters())


@each_variant
def test_images_of_a_batch_do_not_mix(name, role):
    module = build(name, role).eval()
    x = image(6, 7, batch=3)
    torch.testing.assert_close(module(x)[1:2], module(x[1:2]))


@each_variant
def test_strides_of_the_input_do_not_matter(name, role):
    module = build(name, role).eval()
    x = image(6, 7)
    strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)  # a convolution's output seen channels-last
    assert not strided.is_contiguous()
    torch.testing.assert_close(module(strided), module(x))


@each_variant
def test_no_fixed_resolution_after_training_at_one(name, role):
    module = build(name, role)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(image(8, 8)).square().mean().backward()
    optimizer.step()
    fresh = build(name, role)
    fresh.load_state_dict(module.state_dict())
    for hw in ((5, 11), (16, 3)):
        torch.testing.assert_close(fresh.eval()(image(*hw)), module.eval()(image(*hw)))


@each_variant
def test_autocast_bfloat16_stays_near_float32(name, role):
    module = build(name, role)
    x = image(9, 13)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
        out.float().square().sum().backward()
    wanted = module(x)
    assert (out.float() - wanted).abs().max() < 0.05 * wanted.abs().max() + 1e-3
    assert all(p.grad.isfinite().all() for p in module.parameters())


@each_attention
def test_deepcopy_and_pickle_keep_the_function(name):
    for position in (None, *positions_taken_by(name)):
        module = build(name, position=position).eval()
        x = image(5, 7)
        wanted = module(x)
        assert torch.equal(copy.deepcopy(module)(x), wanted)
        assert torch.equal(pickle.loads(pickle.dumps(module))(x), wanted)


@each_attention
def test_state_dict_has_parameters_only(name):
    module = build(name)
    learned = {n for n, _ in module.named_parameters()} | STATEFUL.get(name, set())
    assert set(module.state_dict()) == learned, "index tensors are derived, not saved"


# graphs


@pytest.mark.parametrize(
    ("name", "role", "position"),
    [(name, role, None) for name, role in ROLE_VARIANTS] + [(name, None, position) for name, position in PAIRS],
)
def test_compile_fullgraph_and_export(name, role, position):
    torch._dynamo.reset()
    module = build(name, role, position).train(
        name not in STATEFUL
    )  # theirs are compiled in training in their own test
    x = image(9, 13)
    wanted = module(x)
    wanted.square().sum().backward()
    gradient = next(module.parameters()).grad.clone()
    module.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
        got.square().sum().backward()
        exported = torch.export.export(module.eval(), (x,)).module()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(next(module.parameters()).grad, gradient)
    torch.testing.assert_close(exported(x), wanted)


@pytest.mark.slow
@each_attention
def test_inductor(name):
    torch._dynamo.reset()
    module = build(name).train(name not in STATEFUL)
    x = image(9, 13)
    wanted = module(x)
    got = torch.compile(module, fullgraph=True)(x)
    got.square().sum().backward()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert all(p.grad.isfinite().all() for p in module.parameters())


# dropout


@each_attention
@pytest.mark.parametrize("which", ["attn_drop", "proj_drop"])
def test_dropout_acts_in_training_only(name, which):
    try:
        module, x = build(name, **{which: 0.5}), image(6, 7)
    except ValueError as error:  # where there is nothing to drop from
        if which == "proj_drop" or not re.match(rf"{name}: attn_drop[ =]0\.5 (has no|is not available)", str(error)):
            raise
        return

    def trained(seed):
        torch.manual_seed(seed)
        return copy.deepcopy(module)(x)  # a copy, for training may move buffers

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))
    torch.testing.assert_close(module.eval()(x), build(name).eval()(x))


# maps and costs


@each_variant
def test_attention_map_is_a_distribution_over_the_tokens(name, role):
    module = build(name, role).eval()
    x = image(6, 7)
    refuses = name in WITHOUT_A_MAP or type(module).attention_map is Attention.attention_map
    if refuses or (isinstance(module, Axial) and module.axis == "both"):
        with pytest.raises(ValueError, match=f"{name}: .* map"):
            module.attention_map(x)
        return
    weights = module.attention_map(x)
    assert weights.shape == (2, HEADS, 42, 42)
    assert (weights >= -1e-6).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, HEADS, 42))


SOFTMAX_FAMILY = [
    (name, role, position)
    for name, role in ROLE_VARIANTS
    if issubclass(class_of(ATTENTIONS[name]), MultiHead)
    for position in (None, *positions_taken_by(name))
]


@pytest.mark.parametrize(("name", "role", "position"), SOFTMAX_FAMILY)
def test_attention_map_reproduces_the_output(name, role, position):
    module = build(name, role, position).eval()
    x = image(9, 6)
    v = module.qkv(x)[..., 2 * DIM :].reshape(2, 54, HEADS, DIM // HEADS).transpose(1, 2)
    mixed = (module.attention_map(x) @ v).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module.proj(mixed), module(x))


@pytest.mark.parametrize(("name", "role", "position"), SOFTMAX_FAMILY)
def test_rows_of_the_map_sum_to_one_unless_a_position_weighs_them(name, role, position):
    module = build(name, role, position).eval()
    weights = module.attention_map(image(9, 6))
    if position is not None and class_of(POSITIONS[position]).hook == "weigh":
        assert not torch.allclose(weights.sum(-1), torch.ones(2, HEADS, 54), atol=0.01)
    else:
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, HEADS, 54))


@pytest.mark.parametrize(("name", "role", "position"), SOFTMAX_FAMILY)
def test_attention_map_has_finite_gradients_where_the_map_is_padded(name, role, position):
    module = build(name, role, position)
    x = image(9, 13, requires_grad=True)
    module.attention_map(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.any()


@each_variant
def test_flops_are_those_of_the_forward(name, role):
    module = build(name, role)
    with FlopCounterMode(display=False) as counter:
        module(image(14, 14, batch=1))
    claimed = module.flops(14, 14)
    assert isinstance(claimed, int)
    if name in EXECUTES_MORE:
        assert 0 < claimed <= counter.get_total_flops()
    elif role != "shifted":  # a shift masks pairs that are computed
        assert claimed == counter.get_total_flops() + TABLE[name].uncounted(module, 14, 14)
    assert module.flops(28, 14) > claimed > module.flops(7, 14) > 0


def keywords_that_take_pairs(name):
    parameters = inspect.signature(class_of(ATTENTIONS[name]).__init__).parameters
    return [key for key, parameter in parameters.items() if "Sequence[int]" in str(parameter.annotation)]


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if keywords_that_take_pairs(name)])
def test_a_pair_may_come_from_a_yaml_list(name):
    for key in keywords_that_take_pairs(name):
        config = OmegaConf.merge(ATTENTIONS[name], {key: [2, 1]})
        config.pop("roles", None)
        module = instantiate(config)(DIM, HEADS)
        assert module(image(5, 7)).shape == (2, 5, 7, DIM)
        assert tuple(getattr(module, key)) == (2, 1)
