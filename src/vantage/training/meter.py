"""What one epoch of training adds up to: means and images per second, without a metric object on every step."""

import time

from torch import Tensor


class EpochMeter:
    """Sums stay on the device until somebody asks; the clock stands still during validation."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.images = 0
        self._seconds = 0.0
        self._since: float | None = None

    def start_clock(self) -> None:
        self._since = time.perf_counter()

    def stop_clock(self) -> None:
        self._seconds = self.seconds
        self._since = None

    @property
    def seconds(self) -> float:
        return self._seconds + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def add(self, images: int, sums: dict[str, Tensor]) -> None:
        """`sums` are sums over the batch, detached."""
        for key, value in sums.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value
        self.images += images

    def means(self) -> dict[str, Tensor]:
        return {key: value / self.images for key, value in self.sums.items()}

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0
