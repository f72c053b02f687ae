import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from vantage.data.augment import Augment
from vantage.data.digits import Digits
from vantage.data.errors import DataError


@pytest.fixture(scope="module")
def data():
    data = Digits()
    data.prepare_data()
    data.setup()
    return data


def collect(loader):
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in ("image", "label", "index")}


def test_the_splits_are_stratified_and_hold_every_scan_once(data):
    sizes = {name: len(dataset) for name, dataset in data.datasets.items()}
    assert sizes == {"train": 1258, "val": 180, "test": 359}
    names = [name for dataset in data.datasets.values() for name in dataset.names]
    assert len(set(names)) == 1797
    everything = torch.from_numpy(load_digits().target).bincount()
    for dataset in data.datasets.values():
        share = dataset.labels.bincount() / everything
        assert (share - len(dataset) / 1797).abs().max() < 0.01


def test_batches_hold_the_scans_they_name(data):
    scans, labels = load_digits(return_X_y=True)
    loader = Digits(image_size=8).test_dataloader()
    test = collect(loader)
    assert test["image"].shape == (359, 1, 8, 8)
    assert test["image"].dtype == torch.float32
    assert test["label"].dtype == test["index"].dtype == torch.int64
    numbers = [int(data.sample_name("test", i).removeprefix("digits/")) for i in test["index"].tolist()]
    assert torch.equal(test["label"], torch.from_numpy(labels[numbers]))
    shown = data.info.denormalize(test["image"]).flatten(1)
    assert (shown - torch.from_numpy(scans[numbers] / 16)).abs().max() < 0.003  # half of 1 / 255, and 0.5 of rounding


def test_info_and_normalisation(data):
    info = data.info
    assert (info.num_classes, info.in_chans, info.image_size) == (10, 1, (32, 32))
    assert info.class_names == [str(i) for i in range(10)]
    images = info.normalize(data.datasets["train"].store.pixels)
    assert abs(images.mean()) < 0.01
    assert abs(images.std() - 1) < 0.01
    assert pickle.loads(pickle.dumps(info)) == info


def test_predict_transform_is_the_evaluation_transform(data):
    scans = load_digits().images
    transform = pickle.loads(pickle.dumps(data.predict_transform()))
    for batch in data.val_dataloader():
        for image, index in zip(batch["image"], batch["index"].tolist()):
            scan = scans[int(data.sample_name("val", index).removeprefix("digits/"))]
            file = Image.fromarray(np.round(scan * (255 / 16)).astype(np.uint8))
            assert torch.equal(transform(file), image)
        break


def test_the_split_depends_on_split_seed_and_the_order_on_seed():
    def names(**options):
        data = Digits(**options)
        data.setup()
        return {split: dataset.names for split, dataset in data.datasets.items()}, data

    first, data = names(seed=0)
    second, other = names(seed=1)
    assert first == second
    assert names(split_seed=1)[0]["test"] != first["test"]
    assert not torch.equal(collect(data.train_dataloader())["index"], collect(other.train_dataloader())["index"])


def test_three_channels_and_other_sizes():
    data = Digits(in_chans=3, image_size=(40, 24), batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 40, 24)
    assert torch.equal(batch["image"][:, 0], batch["image"][:, 2])
    assert len(data.info.mean) == 3


def test_augmentation_is_for_training_only():
    plain, augmented = Digits(), Digits(augment=Augment(rotate_deg=10.0))
    assert torch.equal(collect(plain.val_dataloader())["image"], collect(augmented.val_dataloader())["image"])
    train, changed = collect(plain.train_dataloader()), collect(augmented.train_dataloader())
    assert torch.equal(train["index"], changed["index"])
    assert not torch.equal(train["image"], changed["image"])


def test_default_augment_counts_where_none_is_chosen():
    default, chosen = Augment(flip=1.0), Augment()
    assert Digits(augment={}, default_augment=default).augment is default
    assert Digits(augment=None, default_augment=default).augment is default
    assert Digits(augment=chosen, default_augment=default).augment is chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size=0 is not >= 1"),
        ({"num_workers": "many"}, "data.num_workers='many' is not auto or a count >= 0"),
        ({"in_chans": 4}, "data.in_chans=4 is not 1 or 3"),
        ({"on_bad_sample": "ignore"}, "data.on_bad_sample='ignore' is not raise or skip"),
        ({"image_size": (32, 32, 3)}, "data.image_size"),
        ({"mean": (0.1, 0.2)}, "data.mean has 2 values for data.in_chans=1"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "data.val_fraction=0.6"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(DataError) as caught:
        Digits(**options)
    assert message in str(caught.value)
