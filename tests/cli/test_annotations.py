"""Config values against type annotations."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Optional, Union

import pytest
import torch
from pytorch_lightning import Trainer

from vantage.cli.annotations import describe, fits, hints_of

FIT = [
    (3, int),
    (3, float),
    (3.5, float),
    ("x", str),
    (True, bool),
    (None, int | None),
    (None, Optional[float]),  # noqa: UP045
    (3, Union[str, int]),  # noqa: UP007
    ("half", int | Literal["half"]),
    ([1, 2], list[int]),
    ([1, 2], tuple[int, int]),
    ([1, 2, 3], tuple[int, ...]),
    ([0.9, 0.999], tuple[float | torch.Tensor, float | torch.Tensor]),
    ([1, "a"], list),
    (["a"], Sequence[str]),
    ({"a": 1}, dict[str, int]),
    ({"_target_": "torch.nn.GELU"}, torch.nn.Module),
    ({"_target_": "torch.nn.GELU"}, Callable[[int], int]),
    ("data", pathlib.Path),
    ("data", str | pathlib.Path),
    (3, Any),
    ("x", "NotImported"),
    (3, Annotated[int, "positive"]),
]
MISFIT = [
    ("ten", int),
    ("3", int),
    (3.0, int),
    (True, int),
    (True, float),
    (1, bool),
    ("true", bool),
    (3, str),
    (None, int),
    ("x", Optional[float]),  # noqa: UP045
    ("full", int | Literal["half"]),
    (1, Literal[True]),
    ([1, "a"], list[int]),
    (3, list[int]),
    ([1, 2, 3], tuple[int, int]),
    ("ab", Sequence[str]),
    ({"a": "x"}, dict[str, int]),
    ("x", dict),
    ({"_target_": "torch.nn.GELU"}, int),
    ("ten", float | torch.Tensor),
    (3, torch.nn.Module),
]


@pytest.mark.parametrize(("value", "annotation"), FIT)
def test_fits(value, annotation):
    assert fits(value, annotation)


@pytest.mark.parametrize(("value", "annotation"), MISFIT)
def test_does_not_fit(value, annotation):
    assert not fits(value, annotation)


def test_annotations_in_words():
    assert describe(int | None) == "int or null"
    assert describe(Literal["norm", "value"]) == "one of 'norm', 'value'"
    assert describe(list[int] | int) == "list of int or int"
    assert describe(bool) == "bool (true or false)"


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("max_epochs", 3, "ten"),
        ("precision", "bf16-mixed", "bf17"),
        ("gradient_clip_val", 1, "x"),
        ("limit_train_batches", 0.5, "half"),
        ("deterministic", "warn", "always"),
        ("devices", [0, 1], 1.5),
    ],
)
def test_the_annotations_of_another_package(key, good, bad):
    hints = hints_of(Trainer)
    assert fits(good, hints[key])
    assert not fits(bad, hints[key])


def test_an_annotation_that_cannot_be_resolved_lets_everything_through():
    def build(size: "Nowhere", depth: int):  # noqa: F821
        pass

    assert hints_of(build) in ({}, {"depth": int})
