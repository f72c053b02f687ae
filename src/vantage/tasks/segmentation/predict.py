"""Predictions of a trained segmentation for image files of any size: masks, overlays, and shares of the classes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vantage.data.images import to_tensor
from vantage.data.info import DataInfo
from vantage.tasks.files import Report, unique_names
from vantage.tasks.files import read as read_file
from vantage.tasks.segmentation.legend import legend_of, legend_strip
from vantage.tasks.segmentation.paint import paint_overlay, resize_mask, resize_picture, shown_size
from vantage.tasks.segmentation.palette import Palette, palette_of, write_indexed_png

MOST_PICTURES = 200
LONGEST_SIDE = 2000
NARROWEST = 480  # pixels of an overlay: its legend needs them

Size = tuple[int, int]


def predict_files(
    predict_map: Callable[[Tensor, Size], tuple[Tensor, Tensor]],
    files: Sequence[Path],
    info: DataInfo,
    *,
    folder: Path,
    device: torch.device | str = "cpu",
    read: Callable[[Image.Image], tuple[Tensor, Size]],
) -> Report:
    """Writes into `folder`:

    masks/NAME.png      class indices in the file's own size, a PNG with the palette of the classes
    overlays/NAME.png   the picture in those colours with outlines and a legend, of the first 200 files

    and reports per file the share of its pixels and the mean confidence of every class found.

    predict_map   normalised image (C, h, w) on `device` and the file's size (H, W) -> the class of every pixel of the
                  file, uint8 (H, W), and its probability, float (H, W)
    read          an opened file -> that image, in the size the model wants, and the file's size
    """
    predictions, failed = [], []
    names, palette = unique_names(files), palette_of(info)
    for file in files:
        loaded = read_file(file, lambda picture: (*read(picture), to_tensor(picture, 3)))
        if isinstance(loaded, str):
            failed.append((file, loaded))
            continue
        image, size, picture = loaded
        with torch.inference_mode():
            labels, confidence = (values.cpu() for values in predict_map(image.to(device), size))
        predictions.append({"file": str(file), "size": list(size), **as_json(labels, confidence, info.class_names)})
        mask, name = labels.numpy(), names[file]
        write_indexed_png(folder / "masks" / f"{name}.png", mask, palette)
        if len(predictions) <= MOST_PICTURES:
            path = folder / "overlays" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            overlay = draw_overlay(picture.permute(1, 2, 0).numpy(), mask, info.class_names, palette)
            Image.fromarray(overlay).save(path)
    content = {
        "predictions": predictions,
        "failed": [{"file": str(file), "reason": reason} for file, reason in failed],
    }
    return Report(content, len(predictions), failed)


def as_json(labels: Tensor, confidence: Tensor, class_names: Sequence[str]) -> dict:
    """Of the classes found, most frequent first."""
    labels, confidence = labels.flatten().long(), confidence.flatten().double()
    counts = labels.bincount(minlength=len(class_names))
    means = labels.bincount(confidence, minlength=len(class_names)) / counts
    found = [label for label in counts.argsort(descending=True, stable=True).tolist() if counts[label]]
    return {
        "classes": {class_names[label]: round(int(counts[label]) / len(labels), 6) for label in found},
        "confidence": round(float(confidence.mean()), 6),
        "class_confidence": {class_names[label]: round(float(means[label]), 6) for label in found},
    }


def draw_overlay(picture: np.ndarray, mask: np.ndarray, class_names: Sequence[str], palette: Palette) -> np.ndarray:
    """uint8 (H, W, 3) and (H, W), both of the file's size -> the picture as large as it is, up to 2,000 px, and under
    it a strip with the classes it shows.
    """
    size = shown_size(*mask.shape, least=1, most=LONGEST_SIDE)
    picture, mask = resize_picture(picture, size), resize_mask(mask, size)
    painted = paint_overlay(picture, mask, palette)
    strip = legend_strip(legend_of([mask], class_names, palette), max(size[1], NARROWEST))
    sheet = np.full((size[0] + len(strip), strip.shape[1], 3), 255, np.uint8)
    sheet[: size[0], : size[1]] = painted
    sheet[size[0] :] = strip
    return sheet
