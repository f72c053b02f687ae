"""Predictions of a trained classifier for image files."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from vantage.data.info import DataInfo
from vantage.tasks.classification.pictures import draw_attention_of, draw_predictions, to_pictures
from vantage.tasks.files import read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

ATTENTION_IMAGES = 6
SHEET = 24  # pictures of a contact sheet
MOST_SHEETS = 8


@dataclass(frozen=True)
class Prediction:
    file: Path
    classes: list[int]  # the most probable ones, best first
    probabilities: list[float]


@dataclass
class Predictions:
    """Every file is in exactly one of `made` and `failed` (file, reason); `images` are those of the first of `made`."""

    made: list[Prediction] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)  # (C, H, W), normalised

    def as_json(self, class_names: Sequence[str]) -> dict:
        return {
            "predictions": [
                {
                    "file": str(prediction.file),
                    "top": [
                        {"class": class_names[k], "probability": probability}
                        for k, probability in zip(prediction.classes, prediction.probabilities)
                    ],
                }
                for prediction in self.made
            ],
            "failed": [{"file": str(file), "reason": reason} for file, reason in self.failed],
        }


def predict_files(
    model: nn.Module,
    files: Sequence[Path],
    transform: Callable[[Image.Image], Tensor],
    *,
    batch_size: int,
    top_k: int = 5,
    device: torch.device | str = "cpu",
) -> Predictions:
    """The `top_k` most probable classes of every file that can be read, in the order of the files."""
    result = Predictions()
    model = model.eval().to(device)
    with ThreadPoolExecutor(4) as readers, torch.inference_mode():
        for start in range(0, len(files), batch_size):
            chunk = files[start : start + batch_size]
            loaded = list(zip(chunk, readers.map(lambda file: read(file, transform), chunk)))
            result.failed += [(file, image) for file, image in loaded if isinstance(image, str)]
            readable = [(file, image) for file, image in loaded if not isinstance(image, str)]
            if not readable:
                continue
            images = torch.stack([image for _, image in readable])
            probabilities = model(images.to(device)).float().softmax(1).cpu()
            best = probabilities.topk(min(top_k, probabilities.shape[1]))
            for (file, image), values, classes in zip(readable, best.values, best.indices):
                result.made.append(Prediction(file, classes.tolist(), values.tolist()))
                if len(result.images) < SHEET * MOST_SHEETS:
                    result.images.append(image)
    return result


def draw_sheets(result: Predictions, backbone: nn.Module, info: DataInfo) -> dict[str, "Figure"]:
    """Contact sheets of the pictures with class and probability, and the attention over the first of them."""
    figures = {}
    pages = -(-len(result.images) // SHEET)
    if len(result.images) < len(result.made):
        logger.info("the contact sheets show the first %d of %d files", len(result.images), len(result.made))
    captions = [
        (f"{info.class_names[one.classes[0]]} · {one.probabilities[0]:.1%}", one.file.name) for one in result.made
    ]
    for page in range(pages):
        shown = slice(page * SHEET, min((page + 1) * SHEET, len(result.images)))
        pictures = to_pictures(torch.stack(result.images[shown]), info)
        figures[f"predictions_{page + 1}"] = draw_predictions(pictures, captions[shown], page=page + 1, pages=pages)
    first = torch.stack(result.images[:ATTENTION_IMAGES])
    attention = draw_attention_of(backbone, first, captions[:ATTENTION_IMAGES], info)
    return figures if attention is None else figures | {"attention": attention}
