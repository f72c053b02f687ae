"""Predictions of a trained detector for image files of any size: JSON, pictures, DOTA's label files and submission."""

from collections.abc import Sequence
from pathlib import Path

import torch

from vantage.analysis.figures import save
from vantage.data.dota_labels import DotaLabels, DotaObject
from vantage.data.dota_submission import write_submission
from vantage.data.info import DataInfo
from vantage.data.rotated import as_evaluated_whole
from vantage.ops.rotated_boxes import to_corners
from vantage.tasks.files import Report, read, unique_names
from vantage.tasks.rotated_detection.pictures import SHOWN_SCORE, Panel, draw_panels, shown, to_picture
from vantage.tasks.rotated_detection.postprocess import Detections
from vantage.tasks.rotated_detection.whole import Detect, WholeImages

MOST_PICTURES = 200
PIXELS_PER_INCH = 150


def predict_files(
    detect: Detect,
    whole: WholeImages,
    files: Sequence[Path],
    info: DataInfo,
    *,
    folder: Path,
    device: torch.device | str = "cpu",
) -> Report:
    """Writes into `folder`:

    pictures/NAME.png   the picture with the objects of score >= 0.3, the best of each place, of the first 200 files
    labelTxt/NAME.txt   the same objects as a DOTA label file
    submission.zip      every object with its score, as DOTA's server takes it

    and reports per file its objects: class, score, box (cx, cy, w, h, angle_rad) and corners in the file's pixels.
    """
    predictions, failed, found = [], [], {}
    names = unique_names(files)
    for file in files:
        image = read(file, lambda picture: as_evaluated_whole(picture, info))
        if isinstance(image, str):
            failed.append((file, image))
            continue
        (detections,) = whole(detect, [image.to(device)])
        boxes, scores, labels = (values.cpu() for values in (detections.boxes, detections.scores, detections.labels))
        detections = Detections(boxes, scores, labels)
        name = names[file]
        found[name] = (boxes, scores, labels)
        predictions.append({"file": str(file), "size": list(image.shape[-2:]), **as_json(detections, info)})
        write_labels(folder / "labelTxt" / f"{name}.txt", detections, info)
        if len(predictions) <= MOST_PICTURES:
            save(draw(image, detections, info, name), folder / "pictures" / f"{name}.png")
    if found:
        write_submission(folder / "submission.zip", found, info.class_names)
    content = {
        "predictions": predictions,
        "failed": [{"file": str(file), "reason": reason} for file, reason in failed],
    }
    return Report(content, len(predictions), failed)


def as_json(detections: Detections, info: DataInfo) -> dict:
    corners = to_corners(detections.boxes.double()).flatten(1)
    rows = zip(detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist(), corners.tolist())
    return {
        "objects": [
            {
                "class": info.class_names[label],
                "score": score,
                "box": [round(value, 3) for value in box[:4]] + [round(box[4], 5)],
                "corners": [round(value, 3) for value in points],
            }
            for label, score, box, points in rows
        ]
    }


def write_labels(path: Path, detections: Detections, info: DataInfo) -> None:
    boxes, labels, _ = shown(detections)
    corners = to_corners(boxes.double()).flatten(1).tolist()
    objects = [DotaObject(tuple(points), info.class_names[label]) for points, label in zip(corners, labels.tolist())]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(DotaLabels(objects=tuple(objects)).text())


def draw(image: torch.Tensor, detections: Detections, info: DataInfo, name: str):
    """One picture as large as it is, up to 2,000 px wide."""
    boxes, labels, scores = shown(detections)
    panel = Panel(to_picture(image, info), boxes, labels, scores, None, f"{len(boxes)} objects")
    inches = min(max(image.shape[-1] / PIXELS_PER_INCH, 3.0), 2000 / PIXELS_PER_INCH)
    title = f"{name} (score ≥ {SHOWN_SCORE:g}, thick: an edge along w)"
    return draw_panels([panel], info.class_names, columns=1, title=title, panel_inches=inches)
