"""The bench of the training step measures both loops; what its bare loop does not know is refused."""

import pytest

from vantage.training.bench import UNTIMED, bench, compose_bench, refuse


def test_both_loops_are_timed(tmp_path):
    config = compose_bench(["model=vit", "attention=native", "logger=csv", "data.batch_size=8"], steps=UNTIMED + 2)
    pairs = bench(config, tmp_path, blocks=1, steps=UNTIMED + 2)
    assert len(pairs) == 1
    assert min(pairs[0]) > 0
    assert (tmp_path / "1" / "metrics.csv").is_file()  # ours was a real run, with its loggers


@pytest.mark.parametrize("override", ["trainer.precision=bf16-mixed", "task.mixup_alpha=0.2", "channels_last=true",
                                      "trainer.accumulate_grad_batches=2", "compile=true"])  # fmt: skip
def test_what_the_bare_loop_cannot_do_is_refused(override):
    with pytest.raises(SystemExit, match=override.partition("=")[0]):
        refuse(compose_bench([override], steps=4))
