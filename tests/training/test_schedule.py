"""Every learning rate of every update, against torch's and timm's schedulers."""

import io

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import OneCycleLR

from vantage.training.schedule import Constant, Cosine, MultiStep, OneCycle, Poly

from .stubs import TinyData, fit, make_task


def optimizer(*lrs):
    return torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in lrs], lr=lrs[0])


def rates(scheduled, scheduler, steps):
    out = []
    for _ in range(steps):
        out.append([group["lr"] for group in scheduled.param_groups])
        scheduled.step()
        scheduler.step()
    return out


@pytest.mark.parametrize("pct_start", [0.0, 0.1, 0.3])
def test_one_cycle_equals_torch(pct_start):
    ours, theirs = optimizer(3e-3, 1e-3), optimizer(3e-3, 1e-3)
    schedule = OneCycle(pct_start=pct_start, div_factor=10, final_div_factor=100)(ours, 57, 19)
    reference = OneCycleLR(
        theirs, [3e-3, 1e-3], 57, pct_start=pct_start, div_factor=10, final_div_factor=100, cycle_momentum=False
    )
    got = rates(ours, schedule, 57)
    assert got == rates(theirs, reference, 57)
    assert max(rate[0] for rate in got) == pytest.approx(3e-3, rel=1e-2)
    assert got[-1][0] == pytest.approx(3e-3 / 10 / 100)


def test_one_cycle_leaves_the_betas_alone_unless_asked():
    for cycle, expected in ((False, 0.9), (True, 0.95)):
        scheduled = optimizer(1e-3)
        OneCycle(cycle_momentum=cycle)(scheduled, 10, 5)
        assert scheduled.param_groups[0]["betas"][0] == expected


@pytest.mark.parametrize("total", range(1, 11))
@pytest.mark.parametrize("pct_start", [0.0, 0.1, 0.25, 0.5])
def test_one_cycle_runs_however_short_the_run(total, pct_start):
    scheduled = optimizer(1.0)
    for (rate,) in rates(scheduled, OneCycle(pct_start=pct_start)(scheduled, total, total), total):
        assert 0 < rate <= 1


@pytest.mark.parametrize("min_lr", [0.0, 1e-5])
@pytest.mark.parametrize("warmup", [0, 7])
def test_cosine_equals_timm_at_every_update(warmup, min_lr):
    ours, theirs = optimizer(2e-3), optimizer(2e-3)
    schedule = Cosine(warmup_steps=warmup, warmup_lr=1e-6, min_lr=min_lr)(ours, 50, 10)
    reference = CosineLRScheduler(
        theirs,
        t_initial=50 - warmup,
        lr_min=min_lr,
        warmup_t=warmup,
        warmup_lr_init=1e-6,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    expected = []
    for step in range(50):
        reference.step_update(step)
        expected.append(theirs.param_groups[0]["lr"])
    assert [rate for (rate,) in rates(ours, schedule, 50)] == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_poly_equals_torch_at_every_update(power):
    ours, theirs = optimizer(2e-3), optimizer(2e-3)
    reference = torch.optim.lr_scheduler.PolynomialLR(theirs, total_iters=50, power=power)
    expected = rates(theirs, reference, 50)
    for found, wanted in zip(rates(ours, Poly(power=power)(ours, 50, 10), 50), expected):
        assert found == pytest.approx(wanted, rel=1e-6)
    warm = rates(scheduled := optimizer(2e-3), Poly(power=power, warmup_steps=10)(scheduled, 60, 10), 60)
    assert [rate for (rate,) in warm[10:]] == pytest.approx([rate for (rate,) in expected], rel=1e-6)
    assert warm[5] == pytest.approx([1e-6 + (2e-3 - 1e-6) / 2])


def test_cosine_keeps_the_ratio_of_the_groups():
    scheduled = optimizer(1e-2, 1e-3)
    for top, bottom in rates(scheduled, Cosine(warmup_steps=3, min_lr=1e-4)(scheduled, 20, 10), 20):
        assert top == pytest.approx(10 * bottom)


def test_the_warm_up_can_be_given_in_three_ways():
    schedules = [Cosine(warmup_steps=10), Cosine(warmup_epochs=0.5), Cosine(warmup_fraction=0.1)]
    runs = []
    for schedule in schedules:
        scheduled = optimizer(1e-2)
        runs.append(rates(scheduled, schedule(scheduled, 100, 20), 100))
    assert runs[0] == runs[1] == runs[2]
    assert runs[0][10] == [1e-2]


def test_constant():
    scheduled = optimizer(1e-2)
    assert rates(scheduled, Constant()(scheduled, 5, 5), 5) == [[1e-2]] * 5


def test_bad_schedules_say_what_to_type():
    with pytest.raises(ValueError, match="warmup_epochs and warmup_steps are both set"):
        Cosine(warmup_epochs=1, warmup_steps=3)
    with pytest.raises(ValueError, match=r"scheduler.warmup_fraction is 1.0"):
        Cosine(warmup_fraction=1.0)
    with pytest.raises(ValueError, match="a warm-up of 20 updates leaves nothing of the run's 20"):
        Cosine(warmup_epochs=2)(optimizer(1e-2), 20, 10)
    with pytest.raises(ValueError, match=r"scheduler.min_lr is 0.1, above optimizer.lr 0.01"):
        Cosine(min_lr=0.1)(optimizer(1e-2), 20, 10)
    with pytest.raises(ValueError, match=r"scheduler.pct_start is 1.0"):
        OneCycle(pct_start=1.0)
    with pytest.raises(ValueError, match=r"scheduler.power is 0; it is positive"):
        Poly(power=0)


@pytest.mark.parametrize("schedule", [OneCycle(), Cosine(warmup_steps=2), Poly(), MultiStep(), Constant()])
def test_their_state_loads_with_weights_only(schedule):
    buffer = io.BytesIO()
    torch.save(schedule(optimizer(1e-2), 10, 5).state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["last_epoch"] == 0


def test_a_run_steps_the_schedule_once_per_update(tmp_path):
    """7 batches accumulated by 2 are 4 updates an epoch: the last of 12 updates uses the schedule's last rate."""
    trainer, _ = fit(tmp_path, trainer={"max_epochs": 3, "accumulate_grad_batches": 2, "log_every_n_steps": 1})
    assert trainer.global_step == 12
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.total_steps == 12
    assert scheduler.last_epoch == 12
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("step/lr")
    logged = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    expected = optimizer(1e-2)
    reference = OneCycleLR(expected, 1e-2, 12, cycle_momentum=False)
    assert logged == pytest.approx([rate for (rate,) in rates(expected, reference, 12)])


def test_an_endless_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"trainer.max_epochs=-1 gives the schedule no length"):
        fit(tmp_path, trainer={"max_epochs": -1})


def test_max_steps_sets_the_length(tmp_path):
    trainer, _ = fit(tmp_path, trainer={"max_epochs": 100, "max_steps": 9}, task=make_task(), data=TinyData())
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == 9


def test_multi_step_equals_torch_at_every_update():
    theirs = optimizer(1e-3)
    reference = torch.optim.lr_scheduler.MultiStepLR(theirs, milestones=[25, 40, 45], gamma=0.5)
    expected = []
    for _ in range(50):
        expected.append(theirs.param_groups[0]["lr"])
        theirs.step()
        reference.step()
    ours = optimizer(1e-3)
    found = rates(ours, MultiStep(milestones=[0.5, 0.8, 0.9])(ours, 50, 10), 50)
    assert [rate if isinstance(rate, float) else rate[0] for rate in found] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"milestones": [0.8, 0.5]}, r"milestones is \[0.8, 0.5\]; they are shares of all updates, rising"),
        ({"milestones": [250000]}, r"milestones is \[250000.0\]"),
        ({"gamma": 2}, "gamma is 2"),
    ],
)
def test_multi_step_refuses(options, told):
    with pytest.raises(ValueError, match=told):
        MultiStep(**options)
