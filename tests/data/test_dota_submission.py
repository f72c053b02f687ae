import math
import zipfile

import pytest
import torch

from vantage.data.dota_submission import main, read_submission, write_submission
from vantage.data.errors import DataError

CLASSES = ["plane", "ship", "harbor"]


def results():
    return {
        "P0002": (torch.tensor([[30.0, 25, 40, 10, 0]]), torch.tensor([0.123456]), torch.tensor([1])),
        "P0001": (
            torch.tensor([[65, 75, 20 * math.sqrt(2), 10 * math.sqrt(2), math.pi / 4], [5.25, 5, 10, 4, 0]]),
            torch.tensor([0.99995, 0.5]),
            torch.tensor([0, 1]),
        ),
        "P0003": (torch.zeros(0, 5), torch.zeros(0), torch.zeros(0, dtype=torch.int64)),
    }


def test_the_zip_is_what_the_server_takes(tmp_path):
    path = tmp_path / "out.zip"
    write_submission(path, results(), CLASSES)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name).decode() for name in archive.namelist()}
    assert content == {  # flat, no file for harbor, no rounded scores
        "Task1_plane.txt": "P0001 0.999950 60 60 80 80 70 90 50 70\n",
        "Task1_ship.txt": "P0001 0.500000 0.25 3 10.25 3 10.25 7 0.25 7\nP0002 0.123456 10 20 50 20 50 30 10 30\n",
    }
    again = tmp_path / "again.zip"
    write_submission(again, dict(reversed(results().items())), CLASSES)
    assert path.read_bytes() == again.read_bytes()


def test_it_reads_back(tmp_path):
    write_submission(tmp_path / "out.zip", results(), CLASSES)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        archive.extractall(tmp_path / "folder")
    for place in ("out.zip", "folder"):
        found, class_names = read_submission(tmp_path / place)
        assert class_names == ["plane", "ship"]
        assert set(found) == {"P0001", "P0002"}
        for name, (boxes, scores, labels) in found.items():
            expected = results()[name]
            assert torch.allclose(boxes, expected[0], atol=1e-3)
            assert torch.allclose(scores, expected[1])
            assert labels.tolist() == expected[2].tolist()


def test_what_is_refused(tmp_path):
    tile = {"P0001__1024__0___0": results()["P0002"]}
    with pytest.raises(DataError, match=r"'P0001__1024__0___0' is a tile, and a submission counts whole pictures"):
        write_submission(tmp_path / "out.zip", tile, CLASSES)
    boxes = results()["P0002"][0] * torch.nan
    with pytest.raises(DataError, match="a box or score of 'P' is not finite"):
        write_submission(tmp_path / "out.zip", {"P": (boxes, *results()["P0002"][1:])}, CLASSES)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match=r"folder holds no file Task1_<class>.txt"):
        read_submission(folder)
    with pytest.raises(DataError, match=r"nowhere is neither a zip nor a folder of Task1_<class>.txt files"):
        read_submission(tmp_path / "nowhere")
    for line in ("P0001 0.5 1 2 3 4 5 6 7", "P0001 0.5 1 2 3 4 5 6 7 x", "P0001 nan 1 2 3 4 5 6 7 8"):
        (folder / "Task1_ship.txt").write_text(f"P0001 0.5 1 1 9 1 9 9 1 9\n{line}\n")
        with pytest.raises(DataError, match=r"Task1_ship.txt, line 2: is not 'image score x1 y1"):
            read_submission(folder)


def test_results_on_tiles_become_a_submission(tmp_path, capsys):
    folder = tmp_path / "tiles"
    folder.mkdir()
    (folder / "Task1_ship.txt").write_text(
        "P0001__1024__0___0 0.60 910 90 990 90 990 110 910 110\n"
        "P0001__1024__824___0 0.90 86 90 166 90 166 110 86 110\n"  # the same ship
        "P0001__2048__0___0 0.30 455 45 495 45 495 55 455 55\n"  # once more, at half the scale
        "P0001__1024__824___0 0.40 500 500 580 500 580 520 500 520\n"
    )
    assert main([str(folder), str(tmp_path / "out.zip")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out.zip'}: 2 of 4 finds on 1 pictures from 3 tiles\n"
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.read("Task1_ship.txt").decode() == (
            "P0001 0.900000 910 90 990 90 990 110 910 110\nP0001 0.400000 1324 500 1404 500 1404 520 1324 520\n"
        )
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "out.zip")]) == 1
    assert "is neither a zip nor a folder" in capsys.readouterr().err
