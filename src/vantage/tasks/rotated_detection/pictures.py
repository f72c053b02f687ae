"""Figures of a rotated detector: ground truth beside prediction, precision over recall, the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from vantage.analysis.confusion import draw_confusion
from vantage.analysis.figures import GAP_INCHES, HEADER_INCHES, INK, blank
from vantage.data.info import DataInfo
from vantage.ops.rotated_boxes import rotated_nms, to_corners
from vantage.tasks.rotated_detection.metrics import Curve
from vantage.tasks.rotated_detection.postprocess import Detections

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    *("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45", "#fabed4", "#469990"),
    *("#dcbeff", "#9a6324", "#fffac8", "#800000", "#aaffc3", "#808000", "#ffd8b1", "#000075", "#a9a9a9", "#e8e8e8"),
)
LABELS_UP_TO = 60  # boxes of one picture; beyond that their texts cover it
SHOWN_SCORE = 0.3
SAME_PLACE = 0.5  # IoU above which two boxes are about one object
CAPTION_INCHES = 0.14


@dataclass(frozen=True)
class Panel:
    """A picture (H, W, 3) in [0, 1] with boxes (N, 5), labels (N,), and scores (N,) or, of ground truths, None."""

    image: np.ndarray
    boxes: Tensor
    labels: Tensor
    scores: Tensor | None
    difficult: Tensor | None
    caption: str


def to_picture(image: Tensor, info: DataInfo) -> np.ndarray:
    """Normalised (C, H, W) to (H, W, 3) in [0, 1]; one channel becomes grey; of more, the first three show."""
    picture = info.denormalize(image.detach().float().cpu()).clamp(0, 1)
    picture = picture[:3] if len(picture) >= 3 else picture[:1].expand(3, -1, -1)
    return picture.permute(1, 2, 0).numpy()


def shown(found: Detections) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, labels and scores of what is drawn: the sure ones and, where several classes claim one place, the best.
    The metric counts all of them; drawn over each other they cannot be read."""
    boxes, labels, scores = (values.detach().cpu() for values in (found.boxes, found.labels, found.scores))
    sure = scores >= SHOWN_SCORE
    boxes, labels, scores = boxes[sure], labels[sure], scores[sure]
    best = rotated_nms(boxes, scores, SAME_PLACE)
    return boxes[best], labels[best], scores[best]


def draw_panels(
    panels: Sequence[Panel], class_names: Sequence[str], *, columns: int, title: str, panel_inches: float = 2.6
) -> Figure:
    """A sheet of pictures with boxes, in rows; the thick edge of a box is one along its w."""
    columns = min(columns, len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [panel_inches * max(panel.image.shape[0] / panel.image.shape[1] for panel in row) for row in rows]
    width = max(columns * (panel_inches + GAP_INCHES) + GAP_INCHES, 0.068 * len(title) + 2 * GAP_INCHES)
    height = HEADER_INCHES + sum(heights) + len(rows) * (CAPTION_INCHES + GAP_INCHES) + GAP_INCHES
    figure = blank(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.text(GAP_INCHES, 0.21, title, fontsize=8, color=INK, fontweight="bold", parse_math=False)
    top = HEADER_INCHES
    for row, row_height in zip(rows, heights):
        top += CAPTION_INCHES
        for column, panel in enumerate(row):
            left = GAP_INCHES + column * (panel_inches + GAP_INCHES)
            axes.text(left, top - 0.035, panel.caption, fontsize=6, color=INK, parse_math=False)
            draw_panel(axes, panel, class_names, left, top, panel_inches)
        top += row_height + GAP_INCHES
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure


def draw_panel(axes: Axes, panel: Panel, class_names: Sequence[str], left: float, top: float, width: float) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle

    scale = width / panel.image.shape[1]
    height = panel.image.shape[0] * scale
    extent = (left, left + width, top + height, top)
    axes.imshow(panel.image.clip(0, 1), extent=extent, aspect="auto", interpolation="auto")
    if not len(panel.boxes):
        return
    frame = Rectangle((left, top), width, height, visible=False)
    axes.add_patch(frame)  # boxes that reach outside are cut at the picture's border
    corners = to_corners(panel.boxes.detach().float().cpu()).numpy() * scale + (left, top)  # (N, 4, 2)
    colours = [COLOURS[label % len(COLOURS)] for label in panel.labels.tolist()]
    styles = ["-"] * len(colours)
    if panel.difficult is not None:
        styles = ["--" if difficult else "-" for difficult in panel.difficult.tolist()]
    outlines = np.concatenate([corners, corners[:, :1]], 1)
    crowded = len(corners) > LABELS_UP_TO
    for lines, linewidth, style in (
        (outlines, 0.4 if crowded else 0.8, styles),
        (corners[:, :2], 1.0 if crowded else 2.2, "-"),
    ):
        drawn = LineCollection(list(lines), colors=colours, linewidths=linewidth, linestyles=style)
        drawn.set_clip_path(frame)
        axes.add_collection(drawn, autolim=False)
    if crowded:
        return
    scores = [None] * len(corners) if panel.scores is None else panel.scores.tolist()
    for points, label, score, colour in zip(corners, panel.labels.tolist(), scores, colours):
        text = class_names[label] if score is None else f"{class_names[label]} {score:.2f}"
        x, y = points[points[:, 1].argmin()]
        x, y = min(max(x, left + 0.02), left + width - 0.02), min(max(y, top + 0.09), top + height - 0.02)
        axes.text(
            x, y - 0.02, text, fontsize=5, color=colour, ha="right" if x > left + 0.8 * width else "left",
            parse_math=False, bbox={"facecolor": "#000000", "alpha": 0.55, "pad": 0.4, "linewidth": 0},
        )  # fmt: skip


def draw_curves(curves: Sequence[Curve], aps: np.ndarray, class_names: Sequence[str], *, title: str) -> Figure:
    """Precision over recall of every class, and a legend with its AP; classes without ground truths are left out."""
    shown = [label for label in range(len(class_names)) if not np.isnan(aps[label])]
    legend_columns = max(1, -(-len(shown) // 22))
    width, height = 3.6 + 1.7 * legend_columns, 3.4
    figure = blank(width, height)
    axes = figure.add_axes((0.5 / width, 0.45 / height, 2.9 / width, 2.5 / height))
    for label in shown:
        recall, precision = curves[label].recall, curves[label].precision
        style = ("-", "--", ":")[label // len(COLOURS) % 3]
        text = f"{class_names[label]}  {aps[label]:.3f}"
        if len(recall):
            recall, precision = np.concatenate([[0], recall]), np.concatenate([precision[:1], precision])
        axes.plot(recall, precision, style, color=COLOURS[label % len(COLOURS)], linewidth=1.0, label=text)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    axes.set_xlabel("recall", fontsize=8)
    axes.set_ylabel("precision", fontsize=8)
    axes.tick_params(labelsize=6, length=2, width=0.5)
    axes.grid(linewidth=0.3)
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color=INK)
    if shown:
        place = (3.5 / width, 2.95 / height)
        figure.legend(
            loc="upper left", bbox_to_anchor=place, fontsize=6, frameon=False, ncols=legend_columns, borderaxespad=0,
            title="class, AP", title_fontsize=6, alignment="left",
        )  # fmt: skip
    figure.text(0.08 / width, 1 - 0.25 / height, title, fontsize=8, fontweight="bold", color=INK)
    return figure


class RotatedDetectionPictures:
    """When to draw what is the callback's to say (vantage.training.pictures), what to draw is said here.

    `results` is where the task leaves what its metrics computed, by split; pictures are kept from the first batches.
    """

    every_validation = True

    def __init__(self, info: DataInfo, results: dict[str, dict], *, limit: int = 6):
        self.info = info
        self.results = results
        self.limit = limit
        self.seen: list[Panel] = []

    def first_batch(self, batch: list[dict], outputs: dict) -> dict[str, Figure]:
        panels = [self.truth(sample, "") for sample in batch[:12]]
        height, width = outputs["images"].shape[-2:]
        title = f"First training batch as the model sees it: {len(panels)} of {len(batch)} images, {height}×{width} px"
        return {"first_batch": draw_panels(panels, self.info.class_names, columns=4, title=title, panel_inches=1.9)}

    def start(self) -> None:
        self.seen = []

    def update(self, batch: list[dict], outputs: dict) -> None:
        for sample, found in zip(batch, outputs["detections"]):
            if len(self.seen) >= 2 * self.limit:
                return
            boxes, labels, scores = shown(found)
            truth = self.truth(sample, "ground truth")
            caption = f"prediction, score ≥ {SHOWN_SCORE:g}, the best of each place: {len(boxes)}"
            self.seen += [truth, Panel(truth.image, boxes, labels, scores, None, caption)]

    def truth(self, sample: dict, caption: str) -> Panel:
        boxes, labels, difficult = (sample[name].cpu() for name in ("boxes", "labels", "difficult"))
        name = str(sample.get("name", ""))
        caption = " · ".join(part for part in (name, caption) if part) + f": {len(boxes)}"
        return Panel(to_picture(sample["image"], self.info), boxes, labels, None, difficult, caption)

    def finish(self, split: str, name_of: Callable[[int], str]) -> dict[str, Figure]:
        figures = {}
        names = self.info.class_names
        if self.seen:
            title = f"Ground truth and prediction, {split} (thick: an edge along w; dashed: difficult)"
            figures["predictions"] = draw_panels(self.seen, names, columns=4, title=title)
        results = self.results.get(split)
        if results:
            per_class = results["per_class"]
            title = f"Precision over recall, {split}, IoU 0.5: mAP {float(results['mAP50']):.3f}"
            figures["pr_curves"] = draw_curves(results["curves"], per_class["AP50"], names, title=title)
            counts = results["confusion"]
            found, objects = int(counts[:-1, :-1].diagonal().sum()), int(counts[:-1].sum())
            title = f"Confusion, {split}, score ≥ 0.3, IoU > 0.5: {found} of {objects} found as what they are"
            figures["confusion_matrix"] = draw_confusion(counts, [*names, "background"], title=title)
        return {f"{name}_{split}": figure for name, figure in figures.items()}
