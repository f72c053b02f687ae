"""Runs one evaluation: tests what was trained, predicts for image files, or measures what a model costs.

What it finds goes into files of its own run directory, and to no logger: W&B keeps the runs of train.py.
"""

import json
import logging
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from pytorch_lightning import seed_everything
from rich import get_console

from vantage.analysis.benchmark import benchmark, benchmark_table, precision_context
from vantage.cli.build import build_data, build_group, build_task, build_trainer, load_run
from vantage.cli.table import print_metrics, print_run_dir
from vantage.data.info import DataInfo
from vantage.tasks.base import Task
from vantage.tasks.files import find_files
from vantage.training.pictures import Pictures

logger = logging.getLogger(__name__)

UNKNOWN_CLASSES = 1000  # of a data set that does not tell before it is opened


def run_evaluation(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Does what the config asks for, writes it into run_dir and returns its numbers; `config` is what was trained."""
    checkpoint = load_run(config.run, config.checkpoint)[1] if config.run or config.checkpoint else None
    if any(override.startswith("logger=") for override in (config.get("launch") or {}).get("overrides", [])):
        logger.warning("an evaluation writes files only: logger= is for train.py")
    seed_everything(config.seed, workers=True, verbose=False)
    with open_dict(config):
        config.trainer.default_root_dir = str(run_dir)
        if checkpoint:
            config.model.pretrained = False  # the checkpoint's weights replace them
    numbers = {}
    if config.predict:
        numbers |= predict(config, checkpoint, run_dir)
    if config.benchmark:
        numbers |= measure(config, checkpoint, run_dir)
    if config.predict or config.benchmark:
        write_json(run_dir / "metrics.json", numbers)
        print_run_dir(run_dir)
        return numbers
    numbers = test(config, checkpoint, run_dir)
    print_metrics(numbers, run_dir)
    return numbers


def test(config: DictConfig, checkpoint: Path, run_dir: Path) -> dict[str, float]:
    """The same data, batches, precision and Trainer as in training, so the same numbers to the last digit."""
    data = build_data(config, "test" if config.split == "test" else "validate")
    task = build_task(config, data.info)
    progress = (config.callbacks or {}).get("progress")
    trainer = build_trainer(config, [Pictures(run_dir=str(run_dir)), *build_group({"progress": progress})], [])
    run = trainer.test if config.split == "test" else trainer.validate
    results = run(task, datamodule=data, ckpt_path=str(checkpoint), weights_only=True, verbose=False)
    if not results or not results[0]:
        raise ValueError(
            f"the data has no {config.split} split; use split={'val' if config.split == 'test' else 'test'}"
        )
    numbers = {key: float(value) for key, value in results[0].items()}
    if trainer.is_global_zero:
        write_json(run_dir / "metrics.json", numbers)
    return numbers


def predict(config: DictConfig, checkpoint: Path, run_dir: Path) -> dict[str, float]:
    """predictions.json, pictures and what else the task leaves; the data set it was trained on is not needed."""
    info = stored_info(checkpoint)
    data = instantiate(config.data)  # its options only, no file is opened

    task = load_task(config, checkpoint, info).eval()
    device = device_of(config)
    files = find_files(config.predict)
    with precision_context(config.trainer.precision, device):
        report = task.to(device).predict_files(files, data=data, folder=run_dir, device=device)
    write_json(run_dir / "predictions.json", {"checkpoint": str(checkpoint), **report.content})
    if not report.made:
        file, reason = report.failed[0]
        raise ValueError(f"predict={config.predict}: none of {len(files)} files could be read; {file}: {reason}")
    console = get_console()
    console.print(f"{report.made} of {len(files)} files predicted: predictions.json", highlight=False)
    for file, reason in report.failed[:5]:
        logger.warning("%s could not be read: %s", file, reason)
    if report.failed:
        told = "predictions.json says which and why"
        console.print(f"{len(report.failed)} of {len(files)} files could not be read; {told}", highlight=False)
    return {"predict/files": report.made, "predict/failed": len(report.failed)}


def measure(config: DictConfig, checkpoint: Path | None, run_dir: Path) -> dict[str, float]:
    """benchmark.json and its table, of the trained model or of one fresh from the config."""
    info = stored_info(checkpoint) if checkpoint else assumed_info(config)
    task = load_task(config, checkpoint, info)
    if config.compile:
        task.compile()
    result = benchmark(
        task,
        in_chans=info.in_chans,
        image_size=info.image_size,
        batch_sizes=config.benchmark_batch_sizes,
        device=device_of(config),
        precision=config.trainer.precision,
        channels_last=task.channels_last,
    )
    backbone = task.backbone
    attentions = sorted({attention.label() for _, attention in backbone.installed()}) or ["native"]
    weights = str(checkpoint) if checkpoint else "fresh"
    described = {
        "model": backbone.variant,
        "attention": attentions,
        "num_classes": info.num_classes,
        "weights": weights,
    }
    write_json(run_dir / "benchmark.json", described | {"compiled": bool(config.compile)} | result)
    title = f"{backbone.variant}, attention {', '.join(attentions)}, {info.num_classes} classes, weights {weights}"
    get_console().print(benchmark_table(result, title))
    numbers = {"benchmark/parameters": result["parameters"], "benchmark/gflops": result["flops"] / 1e9}
    for row in result["batches"]:
        if "images_per_second" in row:
            numbers[f"benchmark/images_per_second_{row['batch_size']}"] = row["images_per_second"]
        if row.get("peak_memory_bytes") is not None:
            numbers[f"benchmark/peak_memory_mib_{row['batch_size']}"] = row["peak_memory_bytes"] / 2**20
    return numbers


def load_task(config: DictConfig, checkpoint: Path | None, info: DataInfo) -> Task:
    task = build_task(config, info)
    if checkpoint:
        task.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    return task


def stored_info(checkpoint: Path) -> DataInfo:
    """What the task was told of its data when it was trained."""
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True).get("vantage")
    if not stored:
        raise ValueError(f"{checkpoint} holds no Vantage config; only checkpoints written by train.py can be rebuilt")
    return DataInfo(
        stored["num_classes"],
        stored["class_names"],
        stored["in_chans"],
        tuple(stored["image_size"]),
        stored["mean"],
        stored["std"],
        stored.get("palette"),
        stored.get("wraps", False),
        stored.get("scale", 1),
    )


def assumed_info(config: DictConfig) -> DataInfo:
    """The data's shape from its options, without opening it."""
    data = instantiate(config.data)
    classes = getattr(data, "num_classes", None)
    if classes is None:
        classes = UNKNOWN_CLASSES
        logger.info("the number of classes is known only once the data is opened: %d are assumed", classes)
    size = config.model.get("img_size") or data.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    names = [str(k) for k in range(classes)]
    scale = getattr(data, "scale", 1)
    return DataInfo(classes, names, data.in_chans, size, data.mean, data.std, scale=scale)


def device_of(config: DictConfig) -> torch.device:
    """The device that trainer.accelerator means."""
    accelerator = config.trainer.accelerator
    if accelerator in ("cuda", "gpu", "auto") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if accelerator in ("mps", "gpu", "auto") and torch.backends.mps.is_available():
        return torch.device("mps")
    if accelerator in ("cpu", "auto"):
        return torch.device("cpu")
    raise ValueError(f"trainer.accelerator={accelerator} is not available here; use trainer.accelerator=auto or cpu")


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
