"""Costs against published numbers, torch's own counts and allocations of known size."""

import io
import json
import time

import pytest
import timm
import torch
from rich.console import Console
from torch import nn

from vantage.analysis.benchmark import (
    benchmark,
    benchmark_table,
    count_flops,
    count_parameters,
    peak_memory,
    precision_context,
    release_heap,
    throughput,
)


# multiply-adds of timm's own results tables (results/benchmark-*.csv), in billions, and its parameter counts
@pytest.mark.parametrize(
    ("name", "gmacs", "parameters"), [("resnet18", 1.82, 11_689_512), ("vit_tiny_patch16_224", 1.26, 5_717_416)]
)
def test_flops_are_twice_the_published_multiply_adds(name, gmacs, parameters):
    model = timm.create_model(name)
    assert count_parameters(model) == (parameters, parameters)
    assert count_flops(model, torch.zeros(1, 3, 224, 224)) / 1e9 == pytest.approx(2 * gmacs, rel=0.01)


def test_flops_grow_with_the_area_and_the_batch():
    model = timm.create_model("resnet18", num_classes=0)
    small = count_flops(model, torch.zeros(1, 3, 64, 64))
    assert count_flops(model, torch.zeros(2, 3, 64, 128)) == 4 * small


def test_counting_leaves_the_model_and_the_random_state_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model[1].eval()  # frozen statistics are a mode of their own
    before = [buffer.clone() for buffer in model.buffers()]
    state = torch.get_rng_state()
    count_flops(model, torch.ones(1, 3, 8, 8))
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers()))


def test_a_compiled_model_is_counted_without_being_compiled():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    class Model(nn.Module):  # torch 2.10 compiles no module of torch's own
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(16, 8))

        def forward(self, x):
            return x @ self.weight.mT

    model = Model()
    model.compile(backend=backend)
    assert count_flops(model, torch.zeros(4, 8)) == 2 * 4 * 8 * 16
    assert not graphs
    model(torch.zeros(4, 8))
    assert len(graphs) == 1


def test_frozen_and_shared_parameters():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, shared, nn.Linear(4, 2))
    model[2].requires_grad_(False)
    assert count_parameters(model) == (20 + 10, 20)


class Allocates(nn.Module):
    """Holds `mebibytes` in all at its peak, in as many tensors; 16 MiB of weights."""

    def __init__(self, mebibytes: int, pieces: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(16 * 2**18))
        self.floats, self.pieces = mebibytes * 2**18 // pieces, pieces

    def forward(self, x):
        held = [x.new_ones(self.floats) for _ in range(self.pieces)]
        return sum(piece[0] for piece in held)


@pytest.mark.skipif(not release_heap(), reason="the resident set is measured under Linux with glibc only")
@pytest.mark.parametrize("pieces", [1, 64])
def test_peak_memory_is_what_was_allocated(pieces):
    model = Allocates(96, pieces)
    with torch.inference_mode():
        for _ in range(2):  # a second pass must not profit from the first one's freed memory
            measured = peak_memory(model, lambda: torch.zeros(1), torch.device("cpu"))
            assert measured / 2**20 == pytest.approx(16 + 96, rel=0.05)


def test_throughput_counts_images():
    class Sleeps(nn.Module):
        def forward(self, x):
            time.sleep(0.01)
            return x

    result = throughput(Sleeps(), torch.zeros(5, 1), torch.device("cpu"))
    slowest, fastest = result["images_per_second_range"]
    assert 100 < slowest <= result["images_per_second"] <= fastest <= 500


def test_benchmark_is_plain_json_and_prints():
    model = timm.create_model("resnet18", num_classes=10)
    result = json.loads(json.dumps(benchmark(model, in_chans=3, image_size=(32, 48), batch_sizes=[1, 4])))
    assert result["input"] == [3, 32, 48]
    assert result["flops"] == count_flops(model, torch.zeros(1, 3, 32, 48))
    assert [row["batch_size"] for row in result["batches"]] == [1, 4]
    assert result["threads"] == torch.get_num_threads()
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(benchmark_table(result, "Benchmark"))
    text = console.export_text()
    assert "11.182 M parameters" in text
    assert f"{result['batches'][1]['images_per_second']:.4g}" in text


def test_a_batch_that_does_not_fit_is_reported_and_the_others_measured():
    class Small(nn.Module):
        def forward(self, x):
            if len(x) > 2:
                raise torch.OutOfMemoryError("no")
            return x

    rows = benchmark(Small(), in_chans=1, image_size=(2, 2), batch_sizes=[1, 4, 2])["batches"]
    assert [row.get("error") for row in rows] == [None, "out of memory", None]


def test_precision():
    layer, x = nn.Linear(4, 4), torch.zeros(1, 4)
    with precision_context("bf16-mixed", torch.device("cpu")):
        assert layer(x).dtype == torch.bfloat16
    with precision_context("32-true", torch.device("cpu")):
        assert layer(x).dtype == torch.float32
    with pytest.raises(ValueError, match="64-true"):
        precision_context("64-true", torch.device("cpu"))
