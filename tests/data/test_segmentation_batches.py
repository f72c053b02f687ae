"""Batches of pictures with masks: lists, the same from memory or from files and for any number of workers."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from vantage.data.digits_scene_masks import DigitsSceneMasks
from vantage.data.mask_folder import MaskFolder
from vantage.data.segmentation_augment import SegmentationAugment
from vantage.data.segmentation_dataset import FilePairs, MemoryPairs

from .segmentation_files import blocks, write_pair

STRONG = SegmentationAugment(
    roll=True,
    scale=(0.5, 2.0),
    most_of_one_class=0.9,
    flip=0.5,
    vertical_flip=0.5,
    quarter_turn=True,
    rotate=0.5,
    photometric=0.5,
    color_jitter=0.2,
)


def scenes(**options):
    counts = {"train": 12, "val": 1, "test": 1}
    options = counts | {"batch_size": 6, "image_size": 96, "num_workers": 0, "augment": STRONG} | options
    return DigitsSceneMasks(**options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures of many sizes, some smaller than the training size."""
    root = tmp_path_factory.mktemp("masks")
    rng = np.random.default_rng(0)
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    for split, count in {"train": 9, "val": 3}.items():
        for i in range(count):
            size = tuple(rng.integers(20, 80, 2).tolist())
            paths = (root / split / part / f"{split}{i}.png" for part in ("images", "masks"))
            write_pair(*paths, blocks(rng, (0, 1, 2, 255), size))
    return root


def pictures(root, **options):
    options = {"batch_size": 4, "image_size": (40, 48), "num_workers": 0, "augment": STRONG} | options
    return MaskFolder(root=str(root), **options)


def epochs(data, count=2):
    loader, batches = data.train_dataloader(), []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        batches.extend(loader)
    return batches


def equal(first, second):
    if [len(batch) for batch in first] != [len(batch) for batch in second]:
        return False
    pairs = [(a, b) for batch, other in zip(first, second) for a, b in zip(batch, other)]
    plain, tensors = ("name", "index", "size"), ("image", "mask")
    return all(
        all(a[key] == b[key] for key in plain) and all(torch.equal(a[key], b[key]) for key in tensors) for a, b in pairs
    )


def test_batches_do_not_depend_on_workers(root):
    torch.manual_seed(17)
    alone = epochs(pictures(root))
    for workers in (1, 2):
        torch.rand(3)  # a model that has drawn from the global generator
        assert equal(alone, epochs(pictures(root, num_workers=workers)))
    assert not equal(alone, epochs(pictures(root, seed=1)))


def test_batches_of_scenes_do_not_depend_on_workers():
    assert equal(epochs(scenes()), epochs(scenes(num_workers=2)))


@pytest.mark.parametrize("resize", [None, 32, (30, 50)])
def test_memory_and_files_give_the_same(root, resize):
    memory, files = (pictures(root, cache=cache, resize=resize) for cache in (True, False))
    assert equal(epochs(memory), epochs(files))
    assert equal(list(memory.val_dataloader()), list(files.val_dataloader()))
    for data, kind in ((memory, MemoryPairs), (files, FilePairs)):
        assert isinstance(data.datasets["train"].pairs, kind)
        assert isinstance(data.datasets["val"].pairs, kind)


def test_files_read_by_workers_give_the_same_as_memory(root):
    assert equal(epochs(pictures(root)), epochs(pictures(root, cache=False, num_workers=2)))


def test_every_epoch_is_augmented_anew(root):
    batches = epochs(pictures(root, batch_size=9), 2)
    first, second = ({sample["index"]: sample["image"] for sample in batch} for batch in batches)
    assert set(first) == set(second) == set(range(9))
    assert not any(torch.equal(first[i], second[i]) for i in first)


def test_training_batches_are_lists_of_samples_of_one_size(root):
    batches = epochs(pictures(root), 1)
    assert [len(batch) for batch in batches] == [4, 4]  # the ninth is left out
    for sample in (sample for batch in batches for sample in batch):
        assert set(sample) == {"image", "mask", "name", "index", "size"}
        assert (sample["image"].shape, sample["image"].dtype) == ((3, 40, 48), torch.float32)
        assert (sample["mask"].shape, sample["mask"].dtype) == ((40, 48), torch.uint8)
        assert sample["size"] == (40, 48)
        assert set(sample["mask"].unique().tolist()) <= {0, 1, 2, 255}


def test_evaluation_takes_every_picture_once_whole_and_unchanged(root):
    data = pictures(root, eval_batch_size=2)
    batches = list(data.val_dataloader())
    assert [len(batch) for batch in batches] == [2, 1]
    for i, sample in enumerate(sample for batch in batches for sample in batch):
        assert (sample["index"], sample["name"]) == (i, f"val{i}")
        stored = [np.asarray(Image.open(root / "val" / part / f"val{i}.png")) for part in ("images", "masks")]
        assert np.array_equal(sample["mask"].numpy(), stored[1])
        assert sample["size"] == stored[1].shape
        shown = data.info.denormalize(sample["image"]).permute(1, 2, 0).numpy() * 255
        assert np.abs(shown - stored[0]).max() < 1e-2


def test_loading_leaves_the_global_generator_alone(root):
    iterator = iter(pictures(root).train_dataloader())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iterator)
    next(iterator)
    assert torch.equal(torch.get_rng_state(), before)


MEDICAL = ("isic2018", "kvasir", "drive", "synapse")


@pytest.mark.parametrize("name", ["digits_scene_masks", "mask_folder", "camvid", *MEDICAL])
def test_configs_choose_an_augmentation_for_masks(name, request):
    configs = request.config.rootpath / "configs"
    with initialize_config_dir(str(configs), version_base="1.3"):
        cfg = compose("train", ["task=classification", f"data={name}"], return_hydra_config=False)
    data = instantiate(cfg.data)
    assert isinstance(data.augment, SegmentationAugment)
    assert "segmentation" in data.tasks
    assert data.augment.quarter_turn == (name == "digits_scene_masks" or name in MEDICAL)  # what has no side up
