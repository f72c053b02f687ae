"""python train.py [group=choice ...] [key=value ...]: trains a model; --help lists the groups and gives examples."""

from pathlib import Path

from vantage.cli.main import main

if __name__ == "__main__":
    main("train", Path(__file__).resolve().parent / "configs")
