"""Image files that a user wants predicted: which ones there are, reading them, and what every task reports of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Report:
    """What a task did with image files: the content of predictions.json, how many it predicted, (file, reason)."""

    content: dict
    made: int
    failed: list[tuple[Path, str]]


def find_files(source: Path | str) -> list[Path]:
    """The file itself, or every file below the folder, sorted; what is no picture among them will show as failed."""
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"predict={source} does not exist; give an image file or a folder of them")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    if not files:
        raise FileNotFoundError(f"predict={source} is a folder without files; give an image file or a folder of them")
    return files


def read(file: Path, transform: Callable[[Image.Image], Tensor]) -> Tensor | str:
    """The image as the model takes it, or in one line why there is none."""
    # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error ... on broken input
    try:
        with Image.open(file) as image:
            image.load()
            return transform(image)
    except Image.UnidentifiedImageError:
        return "not an image, or of an unknown format"
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__
