"""Prints ratios of PyTorch's time to ours, measured in one run: `python -m tests.bench [WORD ...]`.

Words select rows by what their names contain. PyTorch runs eager, unless a row says otherwise, with
as many threads as we do. `--device cuda` measures on a GPU, where larger rows are added and those
about the CPU's compiler and memory left out.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable

import torch

import minigrad as mg
from minigrad.backend.cpu.runtime.driver import num_threads
from tests.bench import memory
from tests.bench.convolution import convolution
from tests.bench.models import gradient_penalty, lenet, resnet18
from tests.bench.normalization import batch_norm_relu, double_backward, named, norm_activation
from tests.bench.overhead import replay_overhead
from tests.bench.penalty import penalty_costs
from tests.bench.start import start_times
from tests.bench.timing import HEADER, Ratio, geometric_mean

BATCH_NORM = [(128, 6, 28, 28), (128, 64, 16, 16), (128, 64, 32, 32), (128, 256, 8, 8)]
MAPS = [(128, 16, 28, 28), (128, 64, 16, 16), (32, 64, 32, 32), (128, 256, 8, 8), (16, 32, 64, 64)]
ROWS_OF_FEATURES = [(4096, 128), (2048, 768), (64, 128, 512), (128, 6, 28, 28), (128, 64, 16, 16)]

ROWS: dict[str, Callable[[], Ratio]] = {
    **{f"bn {named(s)}": batch_norm_relu(s) for s in BATCH_NORM},
    **{f"bn apart {named(s)}": batch_norm_relu(s, together=False) for s in BATCH_NORM[:3]},
    **{f"ln {named(s)}": norm_activation("layer", s) for s in ROWS_OF_FEATURES},
    **{f"ln-gelu {named(s)}": norm_activation("layer", s, "gelu") for s in ROWS_OF_FEATURES},
    **{f"gn {named(s)}": norm_activation("group", s) for s in MAPS},
    **{f"in {named(s)}": norm_activation("instance", s) for s in MAPS},
    "double backward": double_backward((128, 64, 16, 16)),
    "critic plain": gradient_penalty(penalized=False),
    "critic penalty": gradient_penalty(penalized=True),
    "lenet plain": lenet(norm=False),
    "lenet bn": lenet(norm=True),
    "lenet bn lazy": lenet(norm=True, captured=False),
    "lenet bn inductor": lenet(norm=True, inductor=True),
    "conv 3-6": convolution(3, 6, 32, 5, 0),
    "conv 6-16": convolution(6, 16, 14, 5, 0),
    "conv 64-64": convolution(64, 64, 32, 3, 1),
    "conv 128-128": convolution(128, 128, 16, 3, 1),
}
ON_A_GPU: dict[str, Callable[[], Ratio]] = {
    "bn 256x64x56x56": batch_norm_relu((256, 64, 56, 56)),
    "double backward 256x64x56x56": double_backward((256, 64, 56, 56)),
    "resnet18": resnet18(),
}


def main(words: list[str], device: str) -> None:
    """Measure the rows that match every word."""
    torch.set_num_threads(num_threads())
    torch.set_default_device(device)
    mg.set_default_device(device)
    torch.manual_seed(0)
    place = torch.cuda.get_device_name() if device == "cuda" else f"{num_threads()} threads"
    print(f"PyTorch {torch.__version__}, {place}\n{HEADER}")
    families: dict[str, list[float]] = defaultdict(list)
    for key, run in (ROWS | ON_A_GPU if device == "cuda" else ROWS).items():
        if all(word in key.split() for word in words):
            row = run()
            families[key.split()[0]].append(row.ratio)
            print(row, flush=True)
    for family in ("ln", "ln-gelu", "gn", "in"):
        if families[family]:
            print(f"{family}: geometric mean of the ratios {geometric_mean(families[family]):.2f}x")
    if device == "cuda":
        return
    if not words or "overhead" in words:
        print(replay_overhead(), flush=True)
    if not words or "penalty" in words:
        penalty_costs()
    if not words or "start" in words:
        start_times()
    if not words or "memory" in words:
        ours, theirs = memory.compare(num_threads())
        name = "LeNet-5+BN step, peak memory (MB)"
        print(f"{name:52} {ours / 1e6:9.1f} {theirs / 1e6:9.1f} {theirs / ours:7.2f}x", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="what the names of the rows must contain")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    main(arguments.words, arguments.device)
