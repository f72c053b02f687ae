"""What is wrong with a picture or an option is one sentence that names it, the value and what would work."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vantage.data.errors import DataError
from vantage.data.image_folder_hr import ImageFolderHR
from vantage.data.sr_benchmarks import SRBenchmarks

from .super_resolution_files import noise, samples, target, write, write_set


def write_png_16(path, channels):
    """A PNG of 16 bits per value, which Pillow cannot write in colour."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = np.random.default_rng(0).integers(0, 65536, (60, 72, channels)).astype(">u2")

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 72, 60, 16, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    content = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.fixture
def root(tmp_path):
    """Four good pictures to train on and two to validate."""
    write_set(tmp_path / "hr", None, "abcd")
    write_set(tmp_path / "val", None, "xy")
    return tmp_path


def folder(root, **options):
    options = {"image_size": 24, "batch_size": 2, "num_workers": 0, "val_root": str(root / "val")} | options
    return ImageFolderHR(root=str(root / "hr"), **options)


def refused(root, sentence, **options):
    with pytest.raises(DataError, match=sentence) as caught:
        folder(root, **options).setup("fit")
    assert "\n" not in str(caught.value)


def test_a_picture_smaller_than_a_patch_is_told_with_what_would_fit(root):
    write(root / "hr" / "small.png", noise(1, (47, 61)))
    refused(
        root,
        r"small.png: is 61x47, and a patch of data.image_size=24x24 at data.scale=2 is 48x48 of it; "
        r"data.image_size=23 would fit; data.on_bad_sample=skip leaves",
    )
    folder(root, image_size=23).setup("fit")
    data = folder(root, on_bad_sample="skip")
    data.setup("fit")
    assert data.datasets["train"].names == list("abcd")
    write(root / "val" / "small.png", noise(1, (47, 61)))
    (root / "hr" / "small.png").unlink()
    folder(root).setup("fit")  # pictures that are taken whole may be smaller
    write(root / "val" / "small.png", noise(1, (3, 61)))
    refused(root, r"small.png: is 61x3, smaller than one pixel of x4", scale=4, image_size=8)


def test_transparent_pictures_are_refused_and_opaque_alpha_is_none(root, caplog):
    caplog.set_level("INFO")
    alpha = np.full((60, 72, 1), 255, dtype=np.uint8)
    picture = noise(9)
    write(root / "hr" / "alpha.png", np.concatenate([picture, alpha], 2))
    data = folder(root, drop_last=False)
    data.setup("fit")
    at = data.datasets["train"].names.index("alpha")
    assert np.array_equal(data.datasets["train"].pairs.read(at)[1].permute(1, 2, 0).numpy(), picture)
    assert "train: 1 of 5 HR files have the kind 'opaque alpha': the alpha, which is 255 everywhere" in caplog.text
    alpha[5, 5] = 254
    write(root / "hr" / "alpha.png", np.concatenate([picture, alpha], 2))
    for cache in (True, "disk"):
        refused(root, r"alpha.png: is transparent somewhere, and what shows through is in no file; save", cache=cache)
    with pytest.raises(DataError, match=r"alpha.png: is transparent somewhere"):
        list(folder(root, cache=False, batch_size=5).train_dataloader())


def test_transparency_of_palettes_and_single_colours_counts(root):
    picture = Image.fromarray(noise(9))
    picture.quantize(16).save(root / "hr" / "e.png", transparency=3)
    refused(root, r"e.png: is transparent somewhere")
    picture.save(root / "hr" / "e.png", transparency=tuple(noise(9)[4, 4].tolist()))
    refused(root, r"e.png: is transparent somewhere")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_refused_in_colour_too(root, channels):
    """Pillow opens a colour PNG of 16 bits as if it had 8."""
    write_png_16(root / "hr" / "deep.png", channels)
    refused(
        root, r"deep.png: has more than 8 bits per value, and ground truth of more is not supported; save it with 8"
    )


def test_16_bits_of_ppm_and_floats_are_refused(root):
    values = np.zeros((60, 72, 3), dtype=">u2")
    (root / "hr" / "deep.ppm").write_bytes(b"P6 72 60 65535\n" + values.tobytes())
    refused(root, r"deep.ppm: has more than 8 bits")
    (root / "hr" / "deep.ppm").unlink()
    Image.fromarray(np.zeros((60, 72), dtype=np.float32)).save(root / "hr" / "deep.tif")
    refused(root, r"deep.tif: has more than 8 bits")


def test_grey_palette_and_cmyk_are_converted_and_said_once(root, caplog):
    caplog.set_level("INFO")
    picture = Image.fromarray(noise(9))
    for name in ("g", "h"):
        picture.convert("L").save(root / "val" / f"{name}.png")
    picture.quantize(64).save(root / "val" / "p.png")
    picture.convert("CMYK").save(root / "val" / "k.tif")
    data = folder(root)
    found = samples(data.val_dataloader())
    for line in (
        "val: 2 of 6 HR files have the kind 'grey': their values are repeated in every channel",
        "val: 1 of 6 HR files have the kind 'palette': its colours are looked up",
        "val: 1 of 6 HR files have the kind 'CMYK': they are converted to RGB without a colour profile",
    ):
        assert caplog.text.count(line) == 1
    assert np.array_equal(target(found["g"]), np.asarray(picture.convert("L").convert("RGB")))
    assert np.array_equal(target(found["p"]), np.asarray(picture.quantize(64).convert("RGB")))
    assert np.abs(target(found["k"]).astype(int) - noise(9)).max() <= 1
    caplog.clear()
    folder(root, in_chans=1).setup("validate")
    assert "'grey'" not in caplog.text


def test_corrupt_pictures_are_told_or_skipped(root, caplog):
    whole = (root / "hr" / "a.png").read_bytes()
    (root / "hr" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "hr" / "text.png").write_text("no picture")
    refused(root, r"text.png: cannot be decoded \(not a readable image\).*data.on_bad_sample=skip")
    data = folder(root, on_bad_sample="skip")
    data.setup("fit")
    assert data.datasets["train"].names == list("abcd")
    assert "text.png: cannot be decoded" in caplog.text
    assert "cut.png: cannot be decoded" in caplog.text


def test_pictures_found_bad_at_reading_are_skipped_however_often_they_repeat(root, caplog):
    whole = (root / "hr" / "a.png").read_bytes()
    (root / "hr" / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut.png: cannot be decoded .*data.on_bad_sample=skip leaves such files out"):
        list(folder(root, cache=False, repeat=3, batch_size=15).train_dataloader())
    data = folder(root, cache=False, repeat=3, batch_size=15, on_bad_sample="skip")
    (batch,) = data.train_dataloader()
    assert sorted(sample["name"] for sample in batch) == sorted(3 * list("abcd"))
    assert caplog.text.count("skipped") == 2  # the picture, and at the end how many samples it was
    assert "3 of 15 samples are bad and were skipped" in caplog.text


def benchmark(root, **options):
    return SRBenchmarks(benchmarks=str(root / "sets"), **{"scale": 2, "num_workers": 0} | options)


@pytest.mark.parametrize(
    ("size", "fix"),
    [((15, 18), "it is one of data.scale=4"), ((30, 37), "data.lr=make makes LR pictures that fit")],
)
def test_lr_pictures_of_another_size_are_refused(tmp_path, size, fix):
    """HR is never resized to fit; 36 columns and not 37 are right at x2."""
    high, low = (tmp_path / "sets" / "Set5" / part for part in ("HR", "LR_bicubic/X2"))
    write_set(high, low, ["baby"])
    benchmark(tmp_path).setup("test")
    write(low / "babyx2.png", noise(0, size))
    told = f"{size[1]}x{size[0]}"
    with pytest.raises(
        DataError,
        match=rf"babyx2.png: is {told}, and the LR picture of .*baby.png, 72x60, is 36x30 at data.scale=2; {fix}",
    ):
        benchmark(tmp_path).setup("test")


def test_lr_pictures_are_as_large_as_those_of_hr_cut_to_whole_pixels(tmp_path, caplog):
    high, low = (tmp_path / "sets" / "Set5" / part for part in ("HR", "LR_bicubic/X4"))
    write(high / "baby.png", noise(0, (63, 74)))
    write(low / "babyx4.png", noise(1, (16, 19)))  # MATLAB's, of HR that was not cut
    with pytest.raises(DataError, match=r"babyx4.png: is 19x16, and the LR picture of .*, 74x63, is 18x15"):
        benchmark(tmp_path, scale=4).setup("test")
    write(low / "babyx4.png", noise(1, (15, 18))[..., 0])
    caplog.set_level("INFO")
    (sample,) = next(iter(benchmark(tmp_path, scale=4).test_dataloader()))
    assert "test: 1 of 1 LR files have the kind 'grey'" in caplog.text
    assert np.array_equal(target(sample), noise(0, (63, 74))[:60, :72])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scale": 5}, r"data.scale=5 is not 2, 3, 4 or 8"),
        ({"lr": "bicubic"}, r"data.lr='bicubic' is not auto, files or make"),
        ({"rounding": "never"}, r"data.rounding='never' is not auto, each_pass or once"),
        ({"repeat": 0}, r"data.repeat=0 is not a count >= 1"),
        ({"cache": "ram"}, r"data.cache='ram' is not auto, true, false or disk"),
        ({"sets": ["Set5"]}, r"data.sets=\['Set5'\] is not null, or names of folders below data.benchmarks"),
        ({"val_fraction": 1.0}, r"data.val_fraction=1.0 is not in \[0, 1\)"),
    ],
)
def test_options_are_checked(root, options, sentence):
    with pytest.raises(DataError, match=sentence):
        folder(root, **options)


def test_disk_that_cannot_be_written_to_is_told_and_auto_goes_on_without(root, caplog):
    (root / "taken").write_text("a file")
    refused(
        root,
        r"decoded pictures cannot be written to .*taken.*data.cache=true",
        cache="disk",
        decoded_dir=str(root / "taken"),
    )
    data = folder(root, cache_gb=0.0, decoded_dir=str(root / "taken"))
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    assert "are decoded at every read, slowly: decoded pictures cannot be written to" in caplog.text
