"""python eval.py run=RUN_DIR | checkpoint=FILE: tests, predicts with or benchmarks what train.py made; see --help."""

from pathlib import Path

from vantage.cli.main import main

if __name__ == "__main__":
    main("eval", Path(__file__).resolve().parent / "configs")
