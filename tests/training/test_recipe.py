"""Clipping, accumulation, precision, layout, compilation: what each does to the numbers."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from vantage.training.schedule import Constant

from .stubs import PlainBackbone, TinyData, adamw, fit, make_task, sgd


class Gradients(pl.Callback):
    """Norm of the gradient that each update uses."""

    def __init__(self):
        self.norms = []

    def on_before_zero_grad(self, trainer, task, optimizer):
        norm = torch.nn.utils.get_total_norm([p.grad for p in task.parameters() if p.grad is not None])
        if norm:
            self.norms.append(norm.item())


def plain(tmp_path, *, trainer=None, data=None, callbacks=(), **options):
    defaults = {"optimizer": sgd(0.05), "scheduler": Constant()}
    task = make_task(PlainBackbone, **{**defaults, **options})
    pl.seed_everything(0, verbose=False)
    return fit(tmp_path, data=data or TinyData(shuffle=False), task=task, trainer=trainer, callbacks=callbacks)


def start_weights():
    torch.manual_seed(0)
    return {key: value.clone() for key, value in make_task(PlainBackbone).backbone.state_dict().items()}


def seeded(*args, **options):
    torch.manual_seed(0)
    return plain(*args, **options)


def batches(data=None):
    return list((data or TinyData(shuffle=False)).train_dataloader())


def reference(steps, *, lr=0.05, clip=None, smoothing=0.0):
    """A plain loop over groups of batches, one update per group."""
    model = PlainBackbone(7, 3, (8, 8))
    model.load_state_dict(start_weights())
    norms = []
    for group in steps:
        model.zero_grad()
        for batch in group:
            loss = F.cross_entropy(model(batch["image"]), batch["label"], label_smoothing=smoothing) / len(group)
            loss.backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        norms.append(norm.item())
        scale = min(1.0, clip / (norm.item() + 1e-6)) if clip else 1.0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr * scale * parameter.grad
    return model, norms


def assert_same_model(model, task, **tolerance):
    for (name, one), other in zip(model.named_parameters(), task.backbone.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=lambda m, name=name: f"{name}: {m}", **tolerance)


def test_clipping_bounds_the_gradient_and_equals_a_plain_loop(tmp_path):
    gradients = Gradients()
    _, task = seeded(tmp_path, trainer={"max_epochs": 1, "gradient_clip_val": 0.05}, callbacks=[gradients])
    model, norms = reference([[batch] for batch in batches()], clip=0.05)
    assert min(norms) > 0.05
    assert gradients.norms == pytest.approx([0.05] * len(gradients.norms), rel=1e-3)
    assert_same_model(model, task)
    assert task.gradient_norm.item() == pytest.approx(norms[-1], rel=1e-4)  # the norm before clipping is what is logged


def test_without_clipping_the_gradient_is_untouched(tmp_path):
    _, task = seeded(tmp_path, trainer={"max_epochs": 1, "gradient_clip_val": None})
    model, _ = reference([[batch] for batch in batches()])
    assert_same_model(model, task)
    assert task.gradient_norm is None


def test_clipping_by_value(tmp_path):
    class Largest(pl.Callback):
        seen = 0.0

        def on_before_zero_grad(self, trainer, task, optimizer):
            grads = [p.grad.abs().max().item() for p in task.parameters() if p.grad is not None]
            self.seen = max([self.seen, *grads])

    largest = Largest()
    options = {"max_epochs": 1, "gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}
    seeded(tmp_path, trainer=options, callbacks=[largest])
    assert largest.seen == pytest.approx(1e-3)


def test_accumulation_equals_the_larger_batch(tmp_path):
    data = partial(TinyData, shuffle=False, train=64)
    _, small = seeded(tmp_path / "small", data=data(batch_size=8), trainer={"accumulate_grad_batches": 4})
    _, large = seeded(tmp_path / "large", data=data(batch_size=32))
    assert_same_model(small.backbone, large, rtol=1e-4, atol=1e-6)
    moved = (small.backbone.conv.weight - start_weights()["conv.weight"]).abs().max()
    assert moved > 1e-3
    logged = [
        (tmp_path / name / "metrics.csv").read_text().splitlines()[-1].split(",")[1] for name in ("small", "large")
    ]
    assert logged == ["3", "3"]  # both count updates


def test_label_smoothing_in_training(tmp_path):
    _, task = seeded(tmp_path, trainer={"max_epochs": 1}, label_smoothing=0.2)
    model, _ = reference([[batch] for batch in batches()], smoothing=0.2)
    assert_same_model(model, task)


def test_bf16_runs_the_network_in_bf16_and_the_loss_in_float32(tmp_path):
    seen = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer, task):
            task.backbone.head.register_forward_hook(lambda module, inputs, output: seen.update(logits=output.dtype))

        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            seen.update(loss=outputs["loss"].dtype)

    _, low = seeded(tmp_path / "low", trainer={"precision": "bf16-mixed"}, callbacks=[Look()])
    assert seen == {"logits": torch.bfloat16, "loss": torch.float32}
    _, full = seeded(tmp_path / "full")
    assert_same_model(low.backbone, full, rtol=0.1, atol=2e-2)
    assert not torch.equal(low.backbone.conv.weight, full.backbone.conv.weight)


def test_channels_last_reaches_the_network_and_changes_no_result(tmp_path):
    layouts = []

    class Look(pl.Callback):
        def on_train_start(self, trainer, task):
            task.backbone.conv.register_forward_pre_hook(
                lambda module, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )

    _, last = seeded(tmp_path / "last", channels_last=True, callbacks=[Look()])
    assert layouts
    assert all(layouts)
    assert last.backbone.conv.weight.is_contiguous(memory_format=torch.channels_last)
    _, first = seeded(tmp_path / "first")
    assert_same_model(first.backbone, last, rtol=1e-4, atol=1e-5)


def test_compile_keeps_the_names_of_the_checkpoint_and_the_numbers(tmp_path, monkeypatch):
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled(self, backend="aot_eager", dynamic=True))
    torch._dynamo.reset()
    trainer, fast = seeded(tmp_path / "fast", compile=True)
    assert fast.backbone._compiled_call_impl is not None
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    _, slow = seeded(tmp_path / "slow")
    stored = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("fast", "slow")]
    assert stored[0]["state_dict"].keys() == stored[1]["state_dict"].keys()
    assert_same_model(slow.backbone, fast, rtol=1e-4, atol=1e-5)
    # a test runs eagerly: an uncompiled task gets the same numbers to the last digit
    path = str(tmp_path / "fast" / "checkpoints" / "last.ckpt")
    tested = [trainer.test(task, datamodule=TinyData(), ckpt_path=path, verbose=False)[0] for task in (fast, slow)]
    assert tested[0] == tested[1]


def test_adamw_decays_weights_in_training(tmp_path):
    """lr * weight_decay of 0.5 per update halves what decays, and leaves the biases to their gradient."""
    _, task = seeded(tmp_path, trainer={"max_epochs": 1}, optimizer=adamw(lr=1e-3, weight_decay=500.0))
    start = start_weights()
    assert task.backbone.conv.weight.norm() < 0.15 * start["conv.weight"].norm()
    assert task.backbone.conv.bias.norm() > 0.5 * start["conv.bias"].norm()
