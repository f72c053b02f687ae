"""Small super-resolution data sets in the layouts of their releases, and MATLAB's bicubic reduction, written anew."""

from pathlib import Path

import numpy as np
from PIL import Image


def cubic(t: np.ndarray) -> np.ndarray:
    t = np.abs(t)
    return np.where(t <= 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0.0))


def reducing(length: int, scale: int) -> np.ndarray:
    """(length // scale, length): what each pixel of the small picture is a mean of; borders are mirrored."""
    rows = np.zeros((length // scale, length))
    for i in range(length // scale):
        centre = (i + 0.5) * scale - 0.5
        taps = np.arange(int(np.floor(centre - 2 * scale)), int(np.ceil(centre + 2 * scale)) + 1)
        weights = cubic((taps - centre) / scale)
        for tap, weight in zip(taps, weights / weights.sum()):
            place = tap % (2 * length)
            rows[i, place if place < length else 2 * length - 1 - place] += weight
    return rows


def reduced(high: np.ndarray, scale: int, rounding: str = "each_pass") -> np.ndarray:
    """uint8 (H, W, C), its sides multiples of scale -> uint8 (H / scale, W / scale, C)."""

    def to_bytes(x):
        return np.clip(np.floor(x + 0.5), 0, 255)

    x = np.einsum("ih,hwc->iwc", reducing(high.shape[0], scale), high.astype(np.float64))
    x = to_bytes(x) if rounding == "each_pass" else x
    return to_bytes(np.einsum("jw,iwc->ijc", reducing(high.shape[1], scale), x)).astype(np.uint8)


def noise(seed: int, size: tuple[int, int] = (60, 72)) -> np.ndarray:
    """uint8 (H, W, 3), a little smooth, so that no two windows are alike and reducing overshoots somewhere."""
    x = np.random.default_rng(seed).normal(128, 110, (*size, 3))
    return np.clip((x + np.roll(x, 1, 0) + np.roll(x, 1, 1)) / 2 - 64, 0, 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_set(high: Path, low: Path | None, names, *, scale: int = 2, low_name="{name}x{scale}", size=(60, 72)) -> dict:
    """HR pictures and, in `low`, LR pictures that are not the reduced ones, so that reading and making differ.

    -> name: (HR, LR), arrays uint8 (H, W, C).
    """
    written = {}
    for number, name in enumerate(names):
        pixels = noise(number + sum(map(ord, name)), size)
        small = 255 - reduced(pixels[: size[0] // scale * scale, : size[1] // scale * scale], scale)
        write(high / f"{name}.png", pixels)
        if low is not None:
            write(low / f"{low_name.format(name=name, scale=scale)}.png", small)
        written[name] = (pixels, small)
    return written


def samples(loader) -> dict[str, dict]:
    """Name -> sample of all batches of an epoch."""
    return {sample["name"]: sample for batch in loader for sample in batch}


def shown(data, sample) -> np.ndarray:
    """The LR picture of a sample, uint8 (h, w, C)."""
    pixels = data.info.denormalize(sample["image"]).permute(1, 2, 0).numpy() * 255
    assert np.abs(pixels - pixels.round()).max() < 1e-2
    return pixels.round().astype(np.uint8)


def target(sample) -> np.ndarray:
    """The HR picture of a sample, uint8 (H, W, C)."""
    return sample["target"].permute(1, 2, 0).numpy()
