"""Benchmark sets alone (Set5, Set14, B100, Urban100, Manga109 ...), for `eval.py`: nothing to train on.

data.benchmarks is the folder that holds them, in a layout of vantage.data.sr_benchmark_sets. Validation sees the same
pictures as the test.
"""

from vantage.data.errors import DataError
from vantage.data.super_resolution import SuperResolutionData
from vantage.data.super_resolution_dataset import PicturePair


class SRBenchmarks(SuperResolutionData):
    def find(self, split: str) -> list[PicturePair] | None:
        if self.benchmarks is None:
            raise DataError("data.benchmarks=null; give the folder of the benchmark sets")
        if split == "train":
            raise DataError(
                "data=sr_benchmarks has nothing to train on; give data.benchmarks to the data that trains, such as "
                f"data=div2k data.benchmarks={self.benchmarks}"
            )
        return self.open("test")
