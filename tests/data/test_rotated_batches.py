"""Batches of rotated boxes: lists, the same for any number of workers."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from vantage.data.digits_scene import DigitsScene
from vantage.data.rotated_augment import RotatedAugment

STRONG = RotatedAugment(mosaic=0.5, flip=0.5, rotate=0.5, zoom=(0.8, 1.2), quarter_turn=True, color_jitter=0.2)


def epochs(workers, seed=0, draws=0):
    torch.manual_seed(17)
    torch.rand(draws)  # a model that has drawn from the global generator
    data = DigitsScene(train=20, val=1, test=1, batch_size=6, num_workers=workers, seed=seed, augment=STRONG)
    loader = data.train_dataloader()
    batches = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches.extend(loader)
    return batches


def equal(first, second):
    if len(first) != len(second):
        return False
    pairs = [(a, b) for batch, other in zip(first, second) for a, b in zip(batch, other)]
    tensors = ("image", "boxes", "labels", "difficult", "masks")
    return all(a["name"] == b["name"] and all(torch.equal(a[key], b[key]) for key in tensors) for a, b in pairs)


def test_batches_do_not_depend_on_workers():
    alone = epochs(0)
    assert equal(alone, epochs(1, draws=3))
    assert equal(alone, epochs(2, draws=5))
    assert not equal(alone, epochs(0, seed=1))


def test_batches_are_lists_and_every_sample_comes_once():
    data = DigitsScene(train=40, val=20, test=20, eval_batch_size=7, num_workers=0)
    batches = list(data.test_dataloader())
    assert [len(batch) for batch in batches] == [7, 7, 6]
    assert [sample["index"] for batch in batches for sample in batch] == list(range(20))


def test_loading_leaves_the_global_generator_alone():
    data = DigitsScene(train=40, val=1, test=1, num_workers=0, augment=STRONG)
    iterator = iter(data.train_dataloader())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iterator)
    next(iterator)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_picture_to_predict_is_prepared_as_evaluation_does():
    data = DigitsScene(train=1, val=1, test=2, num_workers=0)
    data.setup("test")
    sample = data.datasets["test"][0]
    shown = (data.info.denormalize(sample["image"]) * 255).round().byte().permute(1, 2, 0)
    assert torch.equal(data.predict_transform()(Image.fromarray(shown.numpy())), sample["image"])


@pytest.mark.parametrize("name", ["digits_scene", "rotated_detection", "dota", "hrsc2016", "rotated_folder"])
def test_configs_choose_an_augmentation_for_boxes(name, request):
    configs = request.config.rootpath / "configs"
    with initialize_config_dir(str(configs), version_base="1.3"):
        cfg = compose("train", ["task=classification", f"data={name}"], return_hydra_config=False)
        data = instantiate(cfg.data)
        assert isinstance(data.augment, RotatedAugment)
        assert "rotated_detection" in data.tasks
        if data.augment.transpose:
            assert name in ("dota", "hrsc2016", "rotated_folder")
