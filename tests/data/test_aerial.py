"""LoveDA and ISPRS Potsdam."""

import shutil

import numpy as np
import pytest
from PIL import Image

from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.loveda import LoveDa
from vantage.data.potsdam import CLASSES, Potsdam
from vantage.data.segmentation_augment import SegmentationAugment

from .segmentation_files import blocks, write_loveda, write_pair, write_tiles

COLOURS = np.array([(0, 0, 0), *CLASSES.values()], dtype=np.uint8)  # of Potsdam's grey values 0..6
TILES = {
    "train": [f"{row}_{column}_{x}_0_{x + 512}_512" for row in (2, 3) for column in (10, 11) for x in (0, 256, 512)],
    "val": ["5_15_0_0_512_512", "6_15_0_0_512_512"],
}


def make(kind, root, stage=None, **options):
    options = {"image_size": 32, "batch_size": 2, "num_workers": 0, "augment": SegmentationAugment()} | options
    data = kind(root=str(root), **({"val_fraction": 0.0} | options))
    data.setup(stage)
    return data


def masks_of(loader):
    return {sample["name"]: sample["mask"].numpy() for batch in loader for sample in batch}


def reduced(values):
    return np.where(values == 0, 255, values.astype(int) - 1)


def agree(got, written):
    assert sorted(got) == sorted(written)
    for name, values in written.items():
        assert np.array_equal(got[name], reduced(values))


# LoveDA


def test_loveda_as_released(tmp_path):
    written = write_loveda(tmp_path, {"Train": {"Rural": 3, "Urban": 2}, "Val": {"Rural": 1, "Urban": 2}})
    write_loveda(tmp_path, {"Test": {"Rural": 1, "Urban": 1}}, masks=False)
    data = make(LoveDa, tmp_path)
    assert data.info.class_names == ["background", "building", "road", "water", "barren", "forest", "agricultural"]
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 5, "val": 3, "test": 3}
    agree(masks_of(data.val_dataloader()), written["Val"])
    assert set(data.datasets["train"].names) == set(written["Train"])


def test_loveda_of_one_region(tmp_path):
    write_loveda(tmp_path, {"Train": {"Urban": 2}, "Val": {"Urban": 1}})
    assert make(LoveDa, tmp_path).datasets["train"].names == ["Urban/0", "Urban/1"]


def test_loveda_as_converted(tmp_path):
    written = write_tiles(tmp_path, {"train": ["0", "1"], "val": ["2522", "2523"]}, range(8))
    (tmp_path / "img_dir" / "test").mkdir()
    data = make(LoveDa, tmp_path)
    agree(masks_of(data.test_dataloader()), written["val"])
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 2, "val": 2, "test": 2}


def test_what_is_wrong_with_loveda_is_said(tmp_path):
    with pytest.raises(
        DataNotFoundError, match=r"no folder .*/Train/Rural/images_png; pictures .*; expected below .*Val"
    ):
        make(LoveDa, tmp_path)
    write_loveda(tmp_path, {"Train": {"Rural": 2}, "Val": {"Rural": 1}})
    Image.fromarray(np.full((48, 64), 8, dtype=np.uint8)).save(tmp_path / "Train/Rural/masks_png/1.png")
    with pytest.raises(
        DataError, match=r"masks_png/1.png: holds the label 8, .* none of 1..7 and not ignored \(0, 255\)"
    ):
        make(LoveDa, tmp_path)
    assert make(LoveDa, tmp_path, on_bad_sample="skip").datasets["train"].names == ["Rural/0"]
    shutil.rmtree(tmp_path / "Train/Rural/masks_png")
    with pytest.raises(
        DataNotFoundError, match=r"there is no folder .*/Train/Rural/masks_png; masks are expected in it"
    ):
        make(LoveDa, tmp_path)


# Potsdam


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("coloured", [False, True])
def test_potsdam_of_grey_values_or_of_colours(tmp_path, coloured, extension):
    written = write_tiles(tmp_path, TILES, range(7), extension)
    if coloured:
        for path in tmp_path.glob(f"ann_dir/*/*.{extension}"):
            Image.fromarray(COLOURS[np.asarray(Image.open(path))]).save(path)
    data = make(Potsdam, tmp_path)
    assert data.info.palette == [
        [255, 255, 255], [0, 0, 255], [0, 255, 255], [0, 255, 0], [255, 255, 0], [255, 0, 0]
    ]  # fmt: skip
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 12, "val": 2, "test": 2}
    agree(masks_of(data.val_dataloader()), written["val"])


def test_potsdams_whole_pictures_under_the_names_of_the_release(tmp_path):
    rng, written = np.random.default_rng(0), {}
    for split, area, kind in (("train", "2_10", "label"), ("val", "5_15", "label_noBoundary")):
        name = f"top_potsdam_{area}_RGB"
        written[name] = blocks(rng, range(7), (80, 96))
        mask = tmp_path / "ann_dir" / split / f"top_potsdam_{area}_{kind}.tif"
        write_pair(tmp_path / "img_dir" / split / f"{name}.tif", mask, COLOURS[written[name]])
    data = make(Potsdam, tmp_path)
    agree(masks_of(data.val_dataloader()), {"top_potsdam_5_15_RGB": written["top_potsdam_5_15_RGB"]})
    assert data.group_of("top_potsdam_2_10_RGB") == data.group_of("2_10_0_0_512_512") == "2_10"


def test_colours_that_are_a_little_off_as_some_released_are(tmp_path):
    write_tiles(tmp_path, TILES, range(7))
    path = tmp_path / "ann_dir/val/5_15_0_0_512_512.png"
    colours = np.array([[(9, 222, 221), (225, 227, 227), (252, 255, 0), (255, 3, 1), (10, 0, 9), (0, 170, 85)]])
    values = np.tile(colours, (8, 1, 1)).astype(np.uint8)
    write_pair(tmp_path / "img_dir/val/5_15_0_0_512_512.png", path, values)
    assert masks_of(make(Potsdam, tmp_path).val_dataloader())["5_15_0_0_512_512"][0].tolist() == [2, 0, 4, 5, 255, 3]
    for colour in ((255, 0, 255), (128, 255, 0)):
        values[3, 2] = colour
        write_pair(tmp_path / "img_dir/val/5_15_0_0_512_512.png", path, values)
        with pytest.raises(DataError) as caught:
            make(Potsdam, tmp_path)
        told = f"{path}: holds the colour {colour}, first at pixel (x=2, y=3), which is no class's; correct the file"
        assert str(caught.value).startswith(told)


def test_a_fraction_cuts_whole_pictures_not_tiles(tmp_path):
    write_tiles(tmp_path, TILES, range(7))
    data = make(Potsdam, tmp_path, val_fraction=0.25)
    areas = {split: {data.group_of(name) for name in dataset.names} for split, dataset in data.datasets.items()}
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 9, "val": 3, "test": 2}
    assert not areas["train"] & areas["val"]
    with pytest.raises(
        DataError, match=r"data.val_fraction=0.1 of 4 groups of training pictures is 0, which leaves none"
    ):
        make(Potsdam, tmp_path, val_fraction=0.1)


@pytest.mark.parametrize("val_fraction", [0.0, 0.25])
def test_a_test_folder_with_labels_is_tested(tmp_path, val_fraction):
    write_tiles(tmp_path, TILES | {"test": ["7_13_0_0_512_512"]}, range(7))
    data = make(Potsdam, tmp_path, val_fraction=val_fraction)
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 12, "val": 2, "test": 1}


def test_what_is_wrong_with_potsdam_is_said(tmp_path):
    with pytest.raises(
        DataNotFoundError, match=r"there is no folder .*/img_dir/train; pictures .*; expected below .*: img"
    ):
        make(Potsdam, tmp_path)
    write_tiles(tmp_path, TILES, range(7))
    path = tmp_path / "ann_dir/train/2_10_0_0_512_512.png"
    Image.fromarray(np.full((48, 64), 7, dtype=np.uint8)).save(path)
    with pytest.raises(
        DataError, match=r"512.png: holds the label 7, .* which is none of 1..6 and not ignored \(0, 255\)"
    ):
        make(Potsdam, tmp_path)
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2_10_0_0_512_512.png: cannot be decoded \(not a readable image\)"):
        make(Potsdam, tmp_path)
    path.unlink()
    with pytest.raises(
        DataError, match=r"img_dir/train/2_10_0_0_512_512.png: has no mask .*ann_dir/train/2_10_0_0_512_512"
    ):
        make(Potsdam, tmp_path)
