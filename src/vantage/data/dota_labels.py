"""DOTA's label files: one quadrilateral per line, read and written back without a changed byte.

    imagesource:GoogleEarth            optional
    gsd:0.1461                         optional, metres per pixel
    x1 y1 x2 y2 x3 y3 x4 y4 class difficult

Corners in pixels, clockwise; the flag may be missing (0). It is 1 for an object that is hard to see, and 2 for one
that the edge of a tile cuts (vantage.data.tile).
Source: DOTA (Xia et al., 2018), arXiv:1711.10398, and its development kit.
"""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from vantage.data.errors import DataError
from vantage.data.rotated_geometry import crosses_itself, polygon_area

FORMAT = "x1 y1 x2 y2 x3 y3 x4 y4 class difficult"
FLAGS = ("0", "1", "2")
CUT = 2  # the flag of an object that the edge of a tile cuts
MIN_AREA = 1e-3  # square pixels


@dataclass(frozen=True)
class DotaObject:
    """A line. `text` is how its file writes it, line break included; None for an object that was made or changed."""

    points: tuple[float, ...]  # x1, y1, ... x4, y4
    name: str
    difficult: int = 0
    text: str | None = None

    def line(self) -> str:
        if self.text is not None:
            return self.text
        return f"{' '.join(map(shortest, self.points))} {self.name} {self.difficult}\n"


@dataclass(frozen=True)
class DotaLabels:
    """A file: what stands before the objects, the objects, what follows them, and a sentence per line left out."""

    header: str = ""
    objects: tuple[DotaObject, ...] = ()
    tail: str = ""
    bad: tuple[str, ...] = ()

    def text(self) -> str:
        """The file's content; as it was read, if nothing was changed or left out."""
        return self.header + "".join(each.line() for each in self.objects) + self.tail


def shortest(value: float) -> str:
    """Three decimals at most, none where there is nothing to tell: 12.5, 100."""
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def read_labels(path: str | Path, classes: Collection[str] | None = None) -> DotaLabels:
    """Reads a label file. A line that cannot be used becomes a sentence in `bad`.

    classes: the names that are known; None: any.
    Raises: DataError, if the file cannot be read at all.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read()
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not a text file (lines of '{FORMAT}' are expected)") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    objects, bad, pending = [], [], ""  # pending: text since the last object, which belongs to nothing yet
    header = None
    for number, line in enumerate(re.findall(r"[^\n]*\n|[^\n]+", text.removeprefix("\ufeff")), 1):
        words = line.split()
        if not words or words[0].lower().startswith(("imagesource:", "gsd:")):
            pending += line
            continue
        try:
            points, name, difficult = parse_line(words, classes)
        except DataError as error:
            bad.append(f"{path}, line {number}: {error}")
            continue
        if header is None:
            header, pending = pending, ""
        objects.append(DotaObject(points, name, difficult, pending + line))
        pending = ""
    if header is None:
        header, pending = pending, ""
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    return DotaLabels(mark + header, tuple(objects), pending, tuple(bad))


def parse_line(words: Sequence[str], classes: Collection[str] | None) -> tuple[tuple[float, ...], str, int]:
    """The words of a line -> corners, class, flag. Raises DataError with the reason alone: no file, no line."""
    numbers = 0
    while numbers < min(len(words), 8) and _is_number(words[numbers]):
        numbers += 1
    if numbers < 8:
        rest = f" before {words[numbers]!r}" if numbers < len(words) else ""
        raise DataError(f"has {numbers} numbers{rest}, and a quadrilateral needs 8 ({FORMAT})")
    if len(words) == 8:
        raise DataError(f"has no class after its 8 numbers ({FORMAT})")
    if len(words) > 10:
        raise DataError(f"has {len(words)} words where at most 10 belong ({FORMAT}); a class name holds no space")
    points, name = tuple(map(float, words[:8])), words[8]
    if not all(map(math.isfinite, points)):
        wrong = next(word for word, value in zip(words, points) if not math.isfinite(value))
        raise DataError(f"has the coordinate {wrong}, which is not a finite number")
    if len(words) == 10 and words[9] not in FLAGS:
        raise DataError(f"has the flag {words[9]!r} after the class, and difficult is 0, 1 or 2 ({FORMAT})")
    if classes is not None and name not in classes:
        near = get_close_matches(name, classes, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"classes: {', '.join(classes)}"
        raise DataError(f"has the unknown class {name!r}; {hint}")
    quadrilateral = [points[i : i + 2] for i in range(0, 8, 2)]
    shown = " ".join(words[:8])
    if crosses_itself(quadrilateral):
        raise DataError(f"has a polygon that crosses itself ({shown}); give the corners in order around the object")
    if polygon_area(quadrilateral) < MIN_AREA:
        raise DataError(f"has a polygon without area ({shown})")
    return points, name, int(words[9]) if len(words) == 10 else 0


def write_labels(path: str | Path, labels: DotaLabels) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(labels.text())


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
