import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from vantage.data.cityscapes import Cityscapes
from vantage.data.densepass import DensePass
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.segmentation_augment import SegmentationAugment

from .segmentation_files import write_cityscapes, write_densepass


def make(root, stage=None, **options):
    options = {"image_size": [40, 200], "batch_size": 2, "num_workers": 0, "augment": SegmentationAugment()} | options
    data = DensePass(root=str(root), **({"val_fraction": 0.0} | options))
    data.setup(stage)
    return data


@pytest.mark.parametrize("underscore", [False, True])
@pytest.mark.parametrize("stage", ["test", "validate"])
def test_panoramas_are_tested_with_the_classes_of_cityscapes(tmp_path, underscore, stage):
    written = write_densepass(tmp_path / "densepass", underscore=underscore)
    data = make(tmp_path / "densepass", stage)
    assert data.info.wraps is True
    loader = data.test_dataloader() if stage == "test" else data.val_dataloader()
    got = {sample["name"]: sample for batch in loader for sample in batch}
    assert list(got) == list(written)
    for name, sample in got.items():
        assert np.array_equal(sample["mask"].numpy(), written[name])
        assert sample["image"].shape == (3, 40, 200)
    write_cityscapes(tmp_path / "cityscapes", {"train": {"aachen": 1}, "val": {"munster": 1}})
    pinhole = Cityscapes(root=str(tmp_path / "cityscapes"), num_workers=0)
    pinhole.setup("test")
    assert pinhole.info.class_names == data.info.class_names
    assert pinhole.info.palette == data.info.palette
    assert pinhole.info.wraps is False


@pytest.mark.parametrize("unlabelled", [False, True])
def test_that_there_is_nothing_to_train_on_is_one_sentence(tmp_path, unlabelled):
    write_densepass(tmp_path)
    if unlabelled:
        (tmp_path / "leftImg8bit/train/Amsterdam").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        make(tmp_path)
    assert str(caught.value) == (
        f"there is no folder {tmp_path / 'gtFine/train'}: DensePASS has no labels to train with; train with "
        "data=cityscapes, and test with eval.py run=RUN_DIR data=densepass"
    )


def test_labels_of_ones_own_are_trained_on_and_panoramas_turned(tmp_path):
    written = write_densepass(tmp_path)
    write_densepass(tmp_path, 4, split="train")
    data = make(tmp_path, augment=SegmentationAugment(roll=True))
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 4, "val": 3, "test": 3}
    for sample in [sample for batch in data.train_dataloader() for sample in batch]:
        if sample["name"] in written:
            mask = torch.from_numpy(written[sample["name"]])
            assert any(torch.equal(sample["mask"], mask.roll(shift, 1)) for shift in range(200))


def test_a_missing_mask_is_named(tmp_path):
    write_densepass(tmp_path)
    (tmp_path / "gtFine/val/cs/101_labelTrainIds.png").unlink()
    with pytest.raises(DataError, match=r"cs/101.png: has no mask .*gtFine/val/cs/101_labelIds.\*"):
        make(tmp_path, "test")
    assert len(make(tmp_path, "test", on_bad_sample="skip").datasets["test"]) == 2
    with pytest.raises(
        DataNotFoundError, match=r"there is no folder .*nowhere .*; expected in it: leftImg8bit/val/cs/"
    ):
        make(tmp_path / "nowhere", "test")


def test_the_config_turns_panoramas(request):
    with initialize_config_dir(str(request.config.rootpath / "configs"), version_base="1.3"):
        cfg = compose("train", ["task=segmentation", "data=densepass"])
        data = instantiate(cfg.data)
    assert data.augment.roll is True
    assert data.image_size == (400, 2048)
