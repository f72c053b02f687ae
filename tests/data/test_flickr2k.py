import numpy as np
import pytest

from vantage.data.df2k import DF2K
from vantage.data.errors import DataError
from vantage.data.flickr2k import Flickr2K

from .super_resolution_files import samples, shown, target, write_set

NAMES = [f"{i:06d}" for i in range(1, 11)]
OPTIONS = {"image_size": 8, "batch_size": 1, "num_workers": 0}


def write_flickr2k(root, scale=4):
    return write_set(root / "Flickr2K_HR", root / "Flickr2K_LR_bicubic" / f"X{scale}", NAMES, scale=scale)


def opened(root, kind=Flickr2K, **options):
    data = kind(root=str(root), scale=4, **OPTIONS | options)
    data.setup("fit")
    return data


def names(data):
    return {split: dataset.names for split, dataset in data.datasets.items()}


def test_a_share_validates_and_the_files_are_read(tmp_path):
    written = write_flickr2k(tmp_path)
    data = opened(tmp_path, val_fraction=0.2, lr="files")
    found = names(data)
    assert sorted(found["train"] + found["val"]) == NAMES
    assert len(found["val"]) == 2
    for name, sample in samples(data.val_dataloader()).items():
        assert np.array_equal(target(sample), written[name][0])
        assert np.array_equal(shown(data, sample), written[name][1])


def test_the_share_depends_on_split_seed_alone(tmp_path):
    write_flickr2k(tmp_path)
    found = [
        names(opened(tmp_path, val_fraction=0.3, **seeds))["val"]
        for seeds in ({}, {"seed": 5}, *({"split_seed": k} for k in range(1, 4)))
    ]
    assert found[0] == found[1]
    assert any(other != found[0] for other in found[2:])


def test_div2ks_pictures_may_validate(tmp_path):
    write_flickr2k(tmp_path / "Flickr2K")
    write_set(tmp_path / "DIV2K_valid_HR", None, ["0801", "0802"])
    data = opened(tmp_path / "Flickr2K", val_root=str(tmp_path / "DIV2K_valid_HR"))
    assert names(data) == {"train": NAMES, "val": ["0801", "0802"], "test": ["0801", "0802"]}


def test_a_share_that_leaves_none_is_told(tmp_path, caplog):
    write_flickr2k(tmp_path)
    with pytest.raises(
        DataError, match=r"data.val_fraction=0.04 of 10 training pictures is 0, which leaves none to val"
    ):
        opened(tmp_path, val_fraction=0.04)
    assert names(opened(tmp_path, val_fraction=0.0)) == {"train": NAMES}
    assert "nothing to validate on" in caplog.text


def test_df2k_trains_on_both_and_validates_on_div2k(tmp_path):
    write_flickr2k(tmp_path / "Flickr2K")
    for part, some in (("train", ["0001", "0002"]), ("valid", ["0801"])):
        write_set(tmp_path / "DIV2K" / f"DIV2K_{part}_HR", None, some)
    data = opened(tmp_path, DF2K)
    assert names(data) == {"train": ["0001", "0002", *NAMES], "val": ["0801"], "test": ["0801"]}
    for (sample,) in data.train_dataloader():
        assert sample["target"].shape == (3, 32, 32)
    (tmp_path / "Flickr2K").rename(tmp_path / "flickr")
    with pytest.raises(
        DataError, match=r"there is no folder .*Flickr2K.Flickr2K_HR; .* Flickr2K/Flickr2K_HR/000001.png"
    ):
        opened(tmp_path, DF2K)
