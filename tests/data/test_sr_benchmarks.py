"""Benchmark sets in every layout that is in use."""

import numpy as np
import pytest

from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.sr_benchmarks import SRBenchmarks

from .super_resolution_files import reduced, samples, shown, target, write_set


def benchmark(root, stage="test", **options):
    data = SRBenchmarks(benchmarks=str(root), **{"num_workers": 0, "scale": 4} | options)
    data.setup(stage)
    return data


@pytest.mark.parametrize(
    ("high", "low", "name"),
    [
        ("HR", "LR_bicubic/X4", "{name}x{scale}"),
        ("HR", "LR_bicubic/x4", "{name}"),
        ("GTmod12", "LRbicx4", "{name}"),
        ("HR", "LR_bicubic/X4", "{name}_LRBI_x{scale}"),
        (".", "LR_bicubic/X4", "{name}x{scale}"),
    ],
)
def test_layouts_with_lr_files(tmp_path, high, low, name):
    folder = tmp_path / "Set5"
    written = write_set(folder / high, folder / low, ["baby", "bird"], scale=4, low_name=name)
    data = benchmark(tmp_path, lr="files")
    found = samples(data.test_dataloader())
    assert list(found) == ["baby", "bird"]
    for picture, sample in found.items():
        assert np.array_equal(target(sample), written[picture][0])
        assert np.array_equal(shown(data, sample), written[picture][1])
        assert sample["set"] == "Set5"


@pytest.mark.parametrize("high", ["HR", "GTmod12", "."])
def test_hr_alone_is_reduced(tmp_path, high):
    write_set(tmp_path / "Set5" / high, None, ["baby"], size=(67, 73))
    data = benchmark(tmp_path)
    sample = samples(data.test_dataloader())["baby"]
    assert target(sample).shape == (64, 72, 3)
    assert np.array_equal(shown(data, sample), reduced(target(sample), 4))


def test_all_sets_or_those_that_are_named_in_that_order(tmp_path):
    for name, pictures in {"Urban100": ["img_001"], "Set5": ["baby", "bird"], "Set14": ["bird"]}.items():
        write_set(tmp_path / name / "HR", None, pictures)
    (tmp_path / "notes").mkdir()
    (tmp_path / ".cache").mkdir()
    data = benchmark(tmp_path)
    told = [(sample["set"], sample["name"]) for (sample,) in data.test_dataloader()]
    assert told == [("Set14", "bird"), ("Set5", "baby"), ("Set5", "bird"), ("Urban100", "img_001")]
    data = benchmark(tmp_path, sets=["Urban100", "Set14"])
    told = [(sample["set"], sample["name"]) for (sample,) in data.test_dataloader()]
    assert told == [("Urban100", "img_001"), ("Set14", "bird")]


def test_kept_on_disk_pictures_of_equal_names_stay_apart(tmp_path):
    written = {name: write_set(tmp_path / "sets" / name, None, ["bird"], size=size) for name, size in
               {"Set5": (60, 72), "Set14": (64, 40)}.items()}  # fmt: skip
    for decoded_dir in (None, str(tmp_path / "decoded")):
        for _ in range(2):
            data = benchmark(tmp_path / "sets", cache="disk", decoded_dir=decoded_dir)
            for (sample,) in data.test_dataloader():
                assert np.array_equal(target(sample), written[sample["set"]]["bird"][0])


def test_validation_sees_the_same_and_nothing_trains(tmp_path):
    write_set(tmp_path / "Set5" / "HR", None, ["baby"])
    data = benchmark(tmp_path, "validate")
    assert [sample["set"] for (sample,) in data.val_dataloader()] == ["Set5"]
    with pytest.raises(
        DataError, match=r"data=sr_benchmarks has nothing to train on; give data.benchmarks to the data"
    ):
        benchmark(tmp_path, "fit")


def test_what_cannot_be_told_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data.benchmarks=null; give the folder of the benchmark sets"):
        SRBenchmarks(benchmarks=None).setup("test")
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*nowhere \(data.benchmarks="):
        benchmark(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no benchmark set; expected in it: Set5/HR/\*.png"):
        benchmark(tmp_path)
    write_set(tmp_path / "Set5" / "HR", None, ["baby"])
    with pytest.raises(
        DataNotFoundError, match=r"no folder .*Set6 \(data.sets\); the sets below data.benchmarks are: Set5"
    ):
        benchmark(tmp_path, sets=["Set6"])
    write_set(tmp_path / "Set5" / "GTmod12", None, ["baby"])
    with pytest.raises(DataError, match=r"HR and .*GTmod12 may both hold the HR pictures; keep one of them"):
        benchmark(tmp_path)
    write_set(tmp_path / "flat" / "Set5", None, ["baby", "babyx4"])
    with pytest.raises(
        DataError, match=r"Set5 holds baby and babyx4, which looks like its LR picture; put HR pictures"
    ):
        benchmark(tmp_path / "flat")
    write_set(tmp_path / "two" / "Set5" / "HR", tmp_path / "two" / "Set5" / "LRbicx4", ["baby"], scale=4)
    (tmp_path / "two" / "Set5" / "LR_bicubic" / "X4").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"X4 and .*LRbicx4 may both hold the LR pictures of .*; keep one, or use data.lr"
    ):
        benchmark(tmp_path / "two")
    assert len(benchmark(tmp_path / "two", lr="make").test_dataloader()) == 1
