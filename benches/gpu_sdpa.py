"""PyTorch's best scaled_dot_product_attention for one decode step: 32 query and 8 KV heads, 128 dimensions, bf16.

Prints lines of `batch tokens microseconds`: the fastest backend, replayed from a CUDA graph over layers that take turns,
the median of samples on the device.
"""
import statistics
import sys
import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

warnings.filterwarnings("ignore")  # of backends that refuse

QUERY_HEADS, KV_HEADS, DIM, SAMPLES = 32, 8, 128, 15


def microseconds(layers, attend):
    """Of a layer, or None if the backend refuses."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for layer in layers[:2]:
            attend(*layer)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in layers:
            attend(*layer)
    graph.replay()
    samples = []
    for _ in range(SAMPLES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(4):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        samples.append(start.elapsed_time(end) * 1e3 / (4 * len(layers)))
    return statistics.median(samples)


def main():
    sizes = [tuple(map(int, size.split("x"))) for size in sys.argv[1:]]
    for batch, tokens in sizes:
        count = min(32, max(4, -(-6 * 2**30 // (batch * KV_HEADS * tokens * DIM * 4))))
        rows = (batch, KV_HEADS, tokens, DIM)
        layers = [
            (
                torch.randn(batch, QUERY_HEADS, 1, DIM, device="cuda", dtype=torch.bfloat16),
                torch.randn(rows, device="cuda", dtype=torch.bfloat16),
                torch.randn(rows, device="cuda", dtype=torch.bfloat16),
            )
            for _ in range(count)
        ]
        best = None
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            # The heads of a group as the positions of one head are the same numbers, and read the cache once.
            for how, attend in (
                ("gqa", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)),
                ("group", lambda q, k, v: F.scaled_dot_product_attention(q.view(batch, KV_HEADS, -1, DIM), k, v)),
            ):
                try:
                    with sdpa_kernel(backend):
                        time = microseconds(layers, attend)
                except RuntimeError:
                    continue
                print(f"{batch}x{tokens} {backend.name} {how}: {time:.1f}", file=sys.stderr)
                best = min(best or time, time)
        if best:
            print(batch, tokens, f"{best:.1f}", flush=True)


main()
