"""Typed keys of the config: its root, the trainer's node and a data node.

A field is a key and the values it may take; the defaults live in `configs/`. `vantage.cli.check` reads these classes:
a root key that is not a field is refused, and a field's value must fit its type. Keys of a trainer or data node that
are not listed here are checked against the signature of the node's `_target_`, as every other node is.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_type_hints

Node = dict[str, Any]


@dataclass
class Root:
    """What training and evaluation share."""

    task: Node
    model: Node
    attention: Node | None
    position: Node | None
    plug: Node | None
    data: Node
    augment: Node | None
    optimizer: Node
    scheduler: Node
    trainer: Node
    callbacks: Node | None
    logger: Node | None
    paths: Node
    seed: int
    run_dir: str | None
    compile: bool
    channels_last: bool | None
    name: str | None
    group: str | None
    tags: list[str] | None


@dataclass
class TrainRoot(Root):
    test: bool
    resume: str | None


@dataclass
class EvalRoot(TrainRoot):
    run: str | None
    checkpoint: str | None
    predict: str | None
    split: Literal["val", "test"]
    benchmark: bool
    benchmark_batch_sizes: list[int]


@dataclass
class Trainer:
    """The arguments of `pytorch_lightning.Trainer` that people change; the signature covers the others."""

    accelerator: str
    strategy: str | Node
    devices: int | str | list[int]
    num_nodes: int
    precision: int | str | None
    fast_dev_run: int | bool
    max_epochs: int | None
    min_epochs: int | None
    max_steps: int
    min_steps: int | None
    max_time: str | dict[str, int] | None
    limit_train_batches: int | float | None
    limit_val_batches: int | float | None
    limit_test_batches: int | float | None
    limit_predict_batches: int | float | None
    overfit_batches: int | float
    val_check_interval: int | float | None
    check_val_every_n_epoch: int | None
    num_sanity_val_steps: int | None
    log_every_n_steps: int | None
    enable_checkpointing: bool | None
    enable_progress_bar: bool | None
    enable_model_summary: bool | None
    accumulate_grad_batches: int
    gradient_clip_val: int | float | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    deterministic: bool | Literal["warn"] | None
    benchmark: bool | None
    detect_anomaly: bool
    profiler: str | Node | None
    default_root_dir: str | None


@dataclass
class Data:
    """The keywords data modules have in common."""

    root: str | None
    download: bool
    image_size: int | list[int] | None
    batch_size: int
    eval_batch_size: int | None
    num_workers: int | Literal["auto"]
    val_fraction: float
    seed: int
    on_bad_sample: Literal["raise", "skip"]


@dataclass
class Paths:
    data_dir: str
    log_dir: str
    run_dir: str | None


ROOTS = {"train": TrainRoot, "eval": EvalRoot}
NODES = {"trainer": Trainer, "data": Data, "paths": Paths}

# Nodes that are one object, described by a `_target_`; {} and null mean none where the root's type allows it.
OBJECT_GROUPS = (
    "task",
    "model",
    "attention",
    "position",
    "plug",
    "data",
    "augment",
    "optimizer",
    "scheduler",
    "trainer",
)

# Nodes that are a mapping from a name to an object.
NAMED_GROUPS = ("callbacks", "logger")

# Arguments the code gives when it builds a node, so that a config must not.
SUPPLIED = {
    "task": ("backbone", "data", "optimizer", "scheduler", "channels_last", "compile"),
    "attention": ("dim", "num_heads", "position"),
    "position": ("head_dim", "num_heads"),
    "trainer": ("callbacks", "logger"),
}

# What `roles` under an attention may name: the slots' roles, and `shifted` for a backbone's shifted blocks.
ROLE_KEYS = ("local", "global", "full", "shifted")


def types_of(schema: type) -> dict[str, Any]:
    """Field name -> type."""
    hints = get_type_hints(schema)
    return {field.name: hints[field.name] for field in fields(schema)}
