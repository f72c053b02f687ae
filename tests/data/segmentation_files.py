"""Small segmentation data sets in the layouts of their releases, with the masks that were written."""

from pathlib import Path

import numpy as np
from PIL import Image

from .writers import picture

Masks = dict[str, np.ndarray]  # name of a sample -> the values of its mask file


def blocks(rng: np.random.Generator, values, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """uint8 (H, W) of blocks; every value occurs if there are enough blocks."""
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    values = np.array(list(values), dtype=np.uint8)
    coarse = rng.permutation(np.resize(values, rows * columns)).reshape(rows, columns)
    return np.kron(coarse, np.ones((8, 8), dtype=np.uint8))[: size[0], : size[1]]


def write_pair(image: Path, mask: Path, values: np.ndarray, colours: list[tuple[int, int, int]] | None = None) -> None:
    """A picture and its mask: grey values, or for `colours` a palette picture of them."""
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    picture(np.random.default_rng(sum(map(ord, image.stem))), *values.shape[:2]).save(image)
    drawn = Image.fromarray(values)
    if colours:
        drawn.putpalette([channel for colour in colours for channel in colour])
    drawn.save(mask)


def write_mask_folder(
    root: Path, counts: dict[str, int], values=(0, 1, 2, 255), classes: str = "sky\nroad\ncar\n", size=(48, 64)
) -> dict[str, Masks]:
    rng, written = np.random.default_rng(0), {}
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text(classes)
    for split, count in counts.items():
        written[split] = {f"{split}_{i:02d}": blocks(rng, values, size) for i in range(count)}
        for name, mask in written[split].items():
            write_pair(root / split / "images" / f"{name}.png", root / split / "masks" / f"{name}.png", mask)
    return written


def write_camvid(root: Path, counts: dict[str, int], size=(36, 48)) -> dict[str, Masks]:
    rng, written = np.random.default_rng(1), {}
    for split, count in counts.items():
        written[split] = {f"0016E5_{30 * i:05d}": blocks(rng, range(12), size) for i in range(count)}
        for name, mask in written[split].items():
            write_pair(root / split / f"{name}.png", root / f"{split}annot" / f"{name}.png", mask)
    return written


def write_ade20k(root: Path, train: int = 4, val: int = 2) -> dict[str, Masks]:
    rng, written = np.random.default_rng(2), {}
    for split, short, folder, count in (("train", "train", "training", train), ("val", "val", "validation", val)):
        written[split] = {}
        for i in range(1, count + 1):
            name = f"ADE_{short}_{i:08d}"
            written[split][name] = blocks(rng, rng.permutation(151)[:48], (48, 64))
            write_pair(
                root / "images" / folder / f"{name}.jpg",
                root / "annotations" / folder / f"{name}.png",
                written[split][name],
            )
    return written


def write_cityscapes(
    root: Path, cities: dict[str, dict[str, int]], kind: str = "labelIds", values=range(34)
) -> dict[str, Masks]:
    """cities: {"train": {"aachen": 2, ...}, ...}; kind: labelIds, as downloaded, or labelTrainIds.

    The other files of the release lie beside the masks.
    """
    rng, written = np.random.default_rng(3), {}
    for split, counts in cities.items():
        written[split] = {}
        for city, count in counts.items():
            for i in range(count):
                stem = f"{city}_{i:06d}_000019"
                mask = written[split][f"{city}/{stem}_leftImg8bit"] = blocks(rng, values, (48, 96))
                folder = root / "gtFine" / split / city
                image = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
                write_pair(image, folder / f"{stem}_gtFine_{kind}.png", mask)
                Image.new("RGBA", (96, 48)).save(folder / f"{stem}_gtFine_color.png")
                Image.fromarray(mask.astype(np.uint16) * 1000).save(folder / f"{stem}_gtFine_instanceIds.png")
                (folder / f"{stem}_gtFine_polygons.json").write_text("{}")
    return written


def voc_colours() -> list[tuple[int, int, int]]:
    """The 256 colours of VOC's palettes: the bits of an index dealt to red, green, blue, from the highest down."""
    colours = []
    for index in range(256):
        colour, rest = [0, 0, 0], index
        for bit in range(7, -1, -1):
            for channel in range(3):
                colour[channel] |= (rest & 1) << bit
                rest >>= 1
        colours.append(tuple(colour))
    return colours


def write_voc(root: Path, train: list[str], val: list[str], only_aug: list[str] = ()) -> Masks:
    """only_aug: pictures that have a mask in SegmentationClassAug only, as grey indices without rims."""
    rng, written = np.random.default_rng(4), {}
    for name in [*train, *val]:
        written[name] = blocks(rng, [*range(21), 255])
        write_pair(
            root / "JPEGImages" / f"{name}.jpg",
            root / "SegmentationClass" / f"{name}.png",
            written[name],
            voc_colours(),
        )
    for name in only_aug:
        written[name] = blocks(rng, range(21))
        write_pair(root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClassAug" / f"{name}.png", written[name])
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in {"train": train, "val": val, "trainval": [*train, *val]}.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return written


def write_densepass(root: Path, count: int = 3, underscore: bool = False, split: str = "val") -> Masks:
    rng, written = np.random.default_rng(5), {}
    for i in range(count):
        name = f"cs/{100 + i}{'_' if underscore else ''}"
        written[name] = blocks(rng, [*range(19), 255], (40, 200))
        mask = root / "gtFine" / split / "cs" / f"{100 + i}_labelTrainIds.png"
        write_pair(root / "leftImg8bit" / split / f"{name}.png", mask, written[name])
    return written


def write_tiles(root: Path, names: dict[str, list[str]], values, extension: str = "png") -> dict[str, Masks]:
    """root/img_dir/<split>, root/ann_dir/<split>, as mmsegmentation's converters write LoveDA, Potsdam and others."""
    rng, written = np.random.default_rng(6), {}
    for split, stems in names.items():
        written[split] = {stem: blocks(rng, values) for stem in stems}
        for stem, mask in written[split].items():
            files = (root / part / split / f"{stem}.{extension}" for part in ("img_dir", "ann_dir"))
            write_pair(*files, mask)
    return written


def write_loveda(root: Path, counts: dict[str, dict[str, int]], masks: bool = True) -> dict[str, Masks]:
    """LoveDA as released; counts: {"Train": {"Rural": 2, "Urban": 1}, ...}."""
    rng, written = np.random.default_rng(7), {}
    number = 0
    for split, regions in counts.items():
        written[split] = {}
        for region, count in regions.items():
            for _ in range(count):
                mask = written[split][f"{region}/{number}"] = blocks(rng, range(8))
                folder = root / split / region
                write_pair(folder / "images_png" / f"{number}.png", folder / "masks_png" / f"{number}.png", mask)
                if not masks:
                    (folder / "masks_png" / f"{number}.png").unlink()
                    (folder / "masks_png").rmdir()
                number += 1
    return written


def samples(loader) -> dict[str, dict]:
    """Name -> sample of all batches of an epoch."""
    return {sample["name"]: sample for batch in loader for sample in batch}
