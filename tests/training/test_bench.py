"""The bench of the training step measures both loops; what its bare loop does not know is refused."""

import pytest
import torch

from vantage.cli.build import build_data, build_task
from vantage.training.bench import UNTIMED, BareSegmenter, bench, compose_bench, refuse

SEGMENTATION = [
    "task=segmentation",
    "task/loss=cross_entropy",
    "task.auxiliary_weight=0.4",
    "data.train=40",
    "data.val=1",
    "data.test=1",
]


@pytest.mark.parametrize("task", [["task=classification", "data.batch_size=8"], SEGMENTATION])
def test_both_loops_are_timed(tmp_path, task):
    config = compose_bench(["model=vit", "attention=native", "logger=csv", *task], steps=UNTIMED + 2)
    pairs = bench(config, tmp_path, blocks=1, steps=UNTIMED + 2)
    assert len(pairs) == 1
    assert min(pairs[0]) > 0
    assert (tmp_path / "1" / "metrics.csv").is_file()  # ours was a real run, with its loggers


def test_a_bare_segmenter_has_the_loss_of_ours():
    """Else the two loops would not do the same work."""
    config = compose_bench([*SEGMENTATION, "model=vit", "attention=native", "task.decoder.dropout=0"], steps=1)
    config.task.auxiliary.dropout = 0.0
    data = build_data(config, "validate")
    batch = [dict(data.datasets["val"][0]) for _ in range(2)]
    torch.manual_seed(0)
    bare = BareSegmenter(config, data.info)
    torch.manual_seed(0)
    ours = build_task(config, data.info)
    torch.testing.assert_close(bare(batch), ours.training_step(batch, 0)["loss"])


def test_a_task_without_a_bare_loop_is_refused():
    with pytest.raises(SystemExit, match="the bench has no bare loop for task=rotated_detection"):
        refuse(compose_bench(["task=rotated_detection"], steps=4))


@pytest.mark.parametrize("override", ["trainer.precision=bf16-mixed", "task.mixup_alpha=0.2", "channels_last=true",
                                      "trainer.accumulate_grad_batches=2", "compile=true"])  # fmt: skip
def test_what_the_bare_loop_cannot_do_is_refused(override):
    with pytest.raises(SystemExit, match=override.partition("=")[0]):
        refuse(compose_bench([override], steps=4))
