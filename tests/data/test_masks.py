import numpy as np
import pytest
import torch
from PIL import Image

from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.mask_files import first_folder, list_by_name, pair_masks
from vantage.data.masks import IGNORE, Colours, Indices, ReadMask, Threshold, spans

GREYS = np.array([[0, 1, 2], [2, 255, 0]], dtype=np.uint8)
RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)


def saved(path, values, mode=None, palette=None, **options):
    image = Image.fromarray(np.asarray(values))
    if palette:
        image.putpalette([channel for colour in palette for channel in colour])
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def refusal(encoding, path):
    with pytest.raises(DataError) as caught:
        encoding.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# indices


@pytest.mark.parametrize("palette", [None, [BLACK, RED, GREEN, *[(9, 9, 9)] * 253]])
def test_indices_are_the_values_of_grey_and_of_palette_files(tmp_path, palette):
    mask = Indices.plain(3).read(saved(tmp_path / "a.png", GREYS, palette=palette))
    assert mask.dtype == torch.uint8
    assert mask.tolist() == [[0, 1, 2], [2, 255, 0]]


@pytest.mark.parametrize(
    ("values", "extension"),
    [
        (GREYS.astype(np.uint16), "png"),
        (GREYS.astype(np.int32), "tif"),
        (np.array([[False, True]]), "png"),
        (np.array([[0], [1]], dtype=np.uint8), "bmp"),
    ],
)
def test_files_of_any_depth_hold_indices(tmp_path, values, extension):
    assert Indices.plain(3).read(saved(tmp_path / f"a.{extension}", values)).tolist() == values.astype(int).tolist()


def test_zero_reduced(tmp_path):
    path = saved(tmp_path / "a.png", np.arange(6, dtype=np.uint8)[None])
    assert Indices.without_zero(5).read(path).tolist() == [[IGNORE, 0, 1, 2, 3, 4]]
    assert Indices.without_zero(5).read(saved(tmp_path / "b.png", GREYS))[1, 1] == IGNORE


@pytest.mark.parametrize("seed", range(3))
def test_any_table_of_indices(tmp_path, seed):
    rng = np.random.default_rng(seed)
    table = {int(value): int(rng.integers(0, 30)) for value in rng.permutation(256)[:100]} | {255: IGNORE}
    values = rng.choice(list(table), (37, 53)).astype(np.uint8)
    expected = [[table[value] for value in row] for row in values.tolist()]
    assert Indices(table).read(saved(tmp_path / "a.png", values)).tolist() == expected


def test_a_label_outside_the_classes_is_named_with_its_first_pixel(tmp_path):
    values = np.zeros((4, 6), dtype=np.uint8)
    values[2, 3], values[3, 0] = 7, 9
    path = saved(tmp_path / "a.png", values)
    assert refusal(Indices.plain(5), path) == (
        "holds the label 7, first at pixel (x=3, y=2), which is none of 0..4 and not ignored (255); correct the file, "
        "or the list of classes"
    )
    assert "which is none of 0, 2..3 and not ignored (4, 255)" in refusal(
        Indices({0: 0, 2: 1, 3: 2, 4: 255, 255: 255}), path
    )
    deep = saved(tmp_path / "b.png", values.astype(np.uint16) * 1000)
    assert refusal(Indices.plain(5), deep).startswith("holds the label 7000, first at pixel (x=3, y=2)")
    negative = saved(tmp_path / "c.tif", -values.astype(np.int32))
    assert refusal(Indices.plain(5), negative).startswith("holds the label -7, first at pixel (x=3, y=2)")


def test_labels_blurred_by_jpeg_are_refused_with_the_threshold_option(tmp_path):
    values = np.zeros((32, 32), dtype=np.uint8)
    values[:, 11:] = 255
    path = saved(tmp_path / "a.jpg", values, quality=60)
    advice = "JPEG blurs labels: save masks as PNG, or give data.threshold=127 if there are two classes"
    assert refusal(Indices.plain(2), path).endswith(f"; {advice}")
    assert Threshold(127).read(path).tolist() == (values == 255).astype(int).tolist()
    assert refusal(Indices.plain(2), saved(tmp_path / "b.jpg", values, "RGB")).endswith(f"; {advice}")


def test_black_and_white_where_indices_are_expected(tmp_path):
    path = saved(tmp_path / "a.png", np.array([[0, 255]], dtype=np.uint8))
    message = refusal(Indices({0: 0, 1: 1}), path)
    assert message.endswith("it is black and white: give data.threshold=127 if white is class 1")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_picture_of_colours_is_no_mask_of_indices(tmp_path, mode):
    path = saved(tmp_path / "a.png", GREYS, mode)
    assert refusal(Indices.plain(3), path) == (
        f"is a picture of mode {mode}, but a mask holds one class index per pixel (modes L, P); convert its colours to "
        "indices, or use data=mask_folder with colours in classes.txt"
    )


def test_fractions_are_no_mask(tmp_path):
    path = saved(tmp_path / "a.tif", GREYS.astype(np.float32))
    assert refusal(Indices.plain(3), path).endswith("save whole numbers")


@pytest.mark.parametrize("encoding", [Indices.plain(2), Colours({BLACK: 0}), Threshold(127)])
@pytest.mark.parametrize("content", [b"", b"nothing", "half"])
def test_a_broken_file_is_named(tmp_path, encoding, content):
    path = saved(tmp_path / "a.png", np.random.default_rng(0).integers(0, 2, (64, 64)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:200] if content == "half" else content)
    assert refusal(encoding, path).startswith("cannot be decoded (")
    assert refusal(encoding, tmp_path / "none.png").startswith("cannot be decoded (")


# colours


def test_colours_are_looked_up_in_files_of_any_mode(tmp_path):
    colours = Colours({RED: 1, BLACK: 0, GREEN: IGNORE})
    values = np.array([[BLACK, RED], [GREEN, RED]], dtype=np.uint8)
    expected = [[0, 1], [255, 1]]
    assert colours.read(saved(tmp_path / "a.png", values)).tolist() == expected
    assert colours.read(saved(tmp_path / "b.png", values, "RGBA")).tolist() == expected
    assert colours.read(saved(tmp_path / "c.bmp", values)).tolist() == expected
    indices = np.array([[5, 2], [9, 2]], dtype=np.uint8)
    palette = [(1, 1, 1)] * 256
    palette[5], palette[2], palette[9] = BLACK, RED, GREEN
    assert colours.read(saved(tmp_path / "d.png", indices, palette=palette)).tolist() == expected


def test_any_colours(tmp_path):
    rng = np.random.default_rng(0)
    table = {tuple(colour): i for i, colour in enumerate(rng.integers(0, 256, (200, 3)).tolist())}
    labels = rng.integers(0, 200, (31, 43))
    values = np.array(list(table), dtype=np.uint8)[labels]
    assert Colours(table).read(saved(tmp_path / "a.png", values)).tolist() == labels.tolist()


def test_an_unknown_colour_is_named_with_its_first_pixel(tmp_path):
    values = np.zeros((3, 4, 3), dtype=np.uint8)
    values[1, 2], values[2, 0] = (255, 0, 1), (7, 7, 7)
    found = "holds the colour (255, 0, 1), first at pixel (x=2, y=1), which is no class's; "
    colours = Colours({BLACK: 0, RED: 1})
    path = saved(tmp_path / "a.png", values)
    assert refusal(colours, path) == f"{found}correct the file, or the list of classes"
    jpeg = saved(tmp_path / "a.jpg", np.kron(values, np.ones((3, 3, 1), dtype=np.uint8)))
    assert refusal(colours, jpeg).endswith("JPEG blurs colours: save masks as PNG")
    grey = saved(tmp_path / "b.png", GREYS)
    assert refusal(colours, grey) == (
        "holds the colour (1, 1, 1), first at pixel (x=1, y=0), which is no class's; it is a grey picture: if its "
        "values are the classes, leave the colours out of classes.txt"
    )


def test_a_palette_read_as_colours_tells_its_indices(tmp_path):
    path = saved(tmp_path / "a.png", np.array([[0, 1], [1, 3]], dtype=np.uint8), palette=[(8, 8, 8)] * 256)
    assert refusal(Colours({BLACK: 0, RED: 1}), path) == (
        "holds the colour (8, 8, 8), first at pixel (x=0, y=0), which is no class's; it is a palette picture with the "
        "indices 0..1, 3: if these are the classes, leave the colours out of classes.txt"
    )


def test_a_tolerance_takes_the_nearest_colour_and_no_other(tmp_path):
    colours = Colours({BLACK: 4, RED: 1, GREEN: 2}, tolerance=20)
    values = np.array([[(250, 3, 0), (20, 20, 20), (0, 235, 20), RED]], dtype=np.uint8)
    assert colours.read(saved(tmp_path / "a.png", values)).tolist() == [[1, 4, 2, 1]]
    values[0, 3] = (255, 21, 0)
    message = refusal(colours, saved(tmp_path / "b.png", values))
    assert message.startswith("holds the colour (255, 21, 0), first at pixel (x=3, y=0)")
    assert refusal(Colours(colours.classes), tmp_path / "a.png").startswith("holds the colour (250, 3, 0)")


# threshold


def test_bright_pixels_are_the_second_class(tmp_path):
    values = np.array([[0, 127, 128, 255]], dtype=np.uint8)
    assert Threshold(127).read(saved(tmp_path / "a.png", values)).tolist() == [[0, 0, 1, 1]]
    assert Threshold(0).read(tmp_path / "a.png").tolist() == [[0, 1, 1, 1]]
    assert Threshold(127).read(saved(tmp_path / "b.png", values, "RGB")).tolist() == [[0, 0, 1, 1]]
    deep = values.astype(np.uint16) << 8
    assert Threshold(127).read(saved(tmp_path / "c.png", deep)).tolist() == [[0, 0, 1, 1]]
    assert Threshold(127).read(saved(tmp_path / "d.png", values > 127)).tolist() == [[0, 0, 1, 1]]
    white = saved(tmp_path / "e.png", np.array([[0, 1]], dtype=np.uint8), palette=[BLACK, (255, 255, 255)])
    assert Threshold(127).read(white).tolist() == [[0, 1]]


def test_a_reader_calls_its_encoding(tmp_path):
    path = saved(tmp_path / "a.png", GREYS)
    assert torch.equal(ReadMask(Indices.plain(3))(str(path)), Indices.plain(3).read(path))


def test_spans():
    assert spans([0, 1, 2, 5, 7, 8]) == "0..2, 5, 7..8"
    assert spans([3]) == "3"
    assert spans([]) == ""


# pairs


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_pictures_and_masks_are_paired_by_name(tmp_path):
    touch(tmp_path, "i/b.jpg", "i/a.PNG", "i/deep/c.1.tif", "i/notes.txt", "i/.hidden.png")
    touch(tmp_path, "m/a.png", "m/b.png", "m/deep/c.1.png", "m/.b.png", "m/list.csv")
    pairs, bad = pair_masks(tmp_path / "i", tmp_path / "m")
    assert bad == []
    assert [name for name, _, _ in pairs] == ["a", "b", "deep/c.1"]
    assert [image for _, image, _ in pairs] == [
        str(tmp_path / "i" / name) for name in ("a.PNG", "b.jpg", "deep/c.1.tif")
    ]
    assert [mask for _, _, mask in pairs] == [str(tmp_path / "m" / f"{name}.png") for name, _, _ in pairs]


def test_what_has_no_partner_is_named(tmp_path):
    touch(tmp_path, "i/a.jpg", "i/b.jpg", "i/b.png", "i/c.jpg", "i/d.jpg", "m/b.png", "m/c.png", "m/c.gif", "m/e.png")
    pairs, bad = pair_masks(tmp_path / "i", tmp_path / "m")
    images, masks = tmp_path / "i", tmp_path / "m"
    assert pairs == []
    assert [sentence.split(" (")[0] for sentence in bad] == [
        f"{images / 'a.jpg'}: has no mask {masks / 'a'}.*",
        f"{images / 'b.jpg'}: has the same name as {images / 'b.png'}, and masks are found by it",
        f"{masks / 'c.gif'}: has the same name as {masks / 'c.png'}, and {images / 'c.jpg'} has one mask",
        f"{images / 'd.jpg'}: has no mask {masks / 'd'}.*",
        f"{masks / 'e.png'}: is a mask without a picture in {images}",
    ]


def test_names_of_masks_may_differ_and_other_files_may_lie_beside_them(tmp_path):
    touch(tmp_path, "i/a.jpg", "m/a_label.png", "m/a_colour.png")
    options = {"name_of_mask": lambda name: f"{name}_label"}
    assert len(pair_masks(tmp_path / "i", tmp_path / "m", **options)[1]) == 1
    pairs, bad = pair_masks(tmp_path / "i", tmp_path / "m", only_masks=False, **options)
    assert (len(pairs), bad) == (1, [])
    assert pairs[0][2].endswith("m/a_label.png")


def test_a_missing_folder_is_named(tmp_path):
    touch(tmp_path, "i/a.jpg")
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*/m; masks are expected in it; look there"):
        pair_masks(tmp_path / "i", tmp_path / "m", hint="; look there")
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*/j; pictures are expected in it"):
        pair_masks(tmp_path / "j", tmp_path / "m")


def test_the_first_folder_that_exists(tmp_path):
    touch(tmp_path, "image/a.png", "images.png")
    assert first_folder(tmp_path, "images", "image") == tmp_path / "image"
    assert first_folder(tmp_path, "x", "y") == tmp_path / "x"
    assert list_by_name(tmp_path / "nowhere") == {}
