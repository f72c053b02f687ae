"""Image files that a user wants predicted: which ones there are, reading them, and what every task reports of it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

Read = TypeVar("Read")


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


def unique_names(files: Sequence[Path]) -> dict[Path, str]:
    """The file's name without its extension, preceded by its folders, at least two, where that is not unique."""
    names, folders = {file: file.stem for file in files}, 2
    while len(set(names.values())) < len(names) and folders <= max(len(file.parts) for file in files):
        counts = Counter(names.values())
        for file, name in names.items():
            if counts[name] > 1:
                above = [part for part in file.parts[:-1] if part != file.anchor]  # a name must not begin with "/"
                names[file] = "_".join((*above[-folders:], file.name.replace(".", "_")))
        folders += 1
    return names


def read(file: Path, transform: Callable[[Image.Image], Read]) -> Read | str:
    """The image as `transform` makes it, for a model say, or in one line why there is none."""
    # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error ... on broken input
    try:
        with Image.open(file) as image:
            image.load()
            return transform(image)
    except Image.UnidentifiedImageError:
        return "not an image, or of an unknown format"
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__
