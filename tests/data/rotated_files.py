"""Small data sets with rotated boxes, in the formats of their releases."""

from pathlib import Path

import numpy as np
from PIL import Image

from .writers import picture

SHIPS = "imagesource:GoogleEarth\ngsd:0.5\n10 20 50 20 50 30 10 30 ship 0\n60 60 80 80 70 90 50 70 plane 1\n"

# as released, but for the sizes
XML = """<?xml version="1.0"?>
<HRSC_Image>
  <Img_ID>100000001</Img_ID>
  <Img_FileName>100000001</Img_FileName>
  <Img_FileFmt>bmp</Img_FileFmt>
  <Img_SizeWidth>1166</Img_SizeWidth>
  <Img_SizeHeight>753</Img_SizeHeight>
  <Annotated>1</Annotated>
  <HRSC_Objects>
    <HRSC_Object>
      <Object_ID>100000001</Object_ID>
      <Class_ID>100000013</Class_ID>
      <Object_NO>100000001</Object_NO>
      <truncated>0</truncated>
      <difficult>0</difficult>
      <box_xmin>194</box_xmin>
      <box_ymin>243</box_ymin>
      <box_xmax>972</box_xmax>
      <box_ymax>507</box_ymax>
      <mbox_cx>582.9349</mbox_cx>
      <mbox_cy>353.2006</mbox_cy>
      <mbox_w>778.1303</mbox_w>
      <mbox_h>174.2541</mbox_h>
      <mbox_ang>-0.2144308</mbox_ang>
      <segmented>0</segmented>
      <seg_color></seg_color>
      <header_x>964</header_x>
      <header_y>290</header_y>
    </HRSC_Object>
  </HRSC_Objects>
</HRSC_Image>
"""


def write_split(folder: Path, labels: dict[str, str], size: tuple[int, int] = (96, 120)) -> Path:
    """folder/images/<name>.png and folder/labelTxt/<name>.txt."""
    rng = np.random.default_rng(len(labels))
    for part in ("images", "labelTxt"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, text in labels.items():
        picture(rng, *size).save(folder / "images" / f"{name}.png")
        (folder / "labelTxt" / f"{name}.txt").write_text(text)
    return folder


def write_rotated(root: Path, splits: dict[str, dict[str, str]], classes: str = "plane\nship\n") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text(classes)
    for split, labels in splits.items():
        write_split(root / split, labels)
    return root


def write_hrsc(root: Path, splits: dict[str, dict[str, str]], size: tuple[int, int] = (75, 116)) -> Path:
    rng = np.random.default_rng(0)
    for part in ("FullDataSet/AllImages", "FullDataSet/Annotations", "ImageSets"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for split, files in splits.items():
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in files))
        for name, xml in files.items():
            picture(rng, *size).save(root / "FullDataSet" / "AllImages" / f"{name}.bmp")
            (root / "FullDataSet" / "Annotations" / f"{name}.xml").write_text(xml)
    return root


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))
