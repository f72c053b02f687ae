"""Two processes with half of a batch each get the gradients of one process with all of it."""

import subprocess
import sys

WORKER = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from vantage.ops import neighborhood_attention

rank, store = int(sys.argv[1]), sys.argv[2]


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.bias = nn.Parameter(torch.randn(2, 5, 5))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).unbind(3)
        return neighborhood_attention(q, k, v, 3, bias=self.bias).flatten(3)


dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
layer, alone = Layer(), Layer()
alone.load_state_dict(layer.state_dict())
x = torch.randn(4, 14, 16, 8)  # wide enough for native
parallel = DistributedDataParallel(layer)
parallel(x[2 * rank : 2 * rank + 2]).square().mean().backward()
alone(x).square().mean().backward()
for ours, theirs in zip(layer.parameters(), alone.parameters()):
    torch.testing.assert_close(ours.grad, theirs.grad)
dist.destroy_process_group()
"""


def test_gradients_of_halves_average(tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=300)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
