"""Names for what is written of a file: one of its own for each."""

from pathlib import Path

from vantage.tasks.files import unique_names


def test_a_name_is_the_stem_and_where_that_is_not_unique_the_folders_too():
    files = [Path(name) for name in ("in/x/1.png", "in/y/1.png", "in/y/1.jpg", "in/y/2.tar.png")]
    assert list(unique_names(files).values()) == ["in_x_1_png", "in_y_1_png", "in_y_1_jpg", "2.tar"]


def test_as_many_folders_as_it_takes_and_never_an_absolute_path():
    files = [Path(f"/{top}/left/img/1.png") for top in ("a", "b")]
    assert list(unique_names(files).values()) == ["a_left_img_1_png", "b_left_img_1_png"]
    assert list(unique_names([Path("/a/1.png"), Path("/1.png")]).values()) == ["a_1_png", "1_png"]
