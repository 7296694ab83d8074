"""The cases of `tests.benchmarks.gpu_step`: one process measures one case and prints what it found as JSON lines."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tests.benchmarks.gpu_step import ROW
from tests.support.training.workloads import Workload, workload

TINY = (("hidden_size", 32), ("num_layers", 2), ("num_heads", 2), ("intermediate_size", 48), ("vocab_size", 200))


def emit(**fields: Any) -> None:
    """Reports fields of the row; what is reported stays if the process fails later."""
    print(f"{ROW}{json.dumps(fields)}", flush=True)


def seconds_of(function: Callable[[], Any], device: str, repeats: int) -> float:
    """Returns the median seconds of a call on the device, after three warm-up calls."""
    for _ in range(3):
        function()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / 1e3)
        else:
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def parse_model(text: str, quick: bool) -> Workload:
    """Returns the workload of MODEL[:LENGTH[:TOKENS]]; a quick one has a tiny encoder and eight short sequences."""
    name, *sizes = text.split(":")
    drawn = workload(name, *(int(size) for size in sizes))
    if not quick:
        return drawn
    window = (("local_attention_window", 8),) if name.startswith("modernbert") else ()
    return replace(drawn, max_length=24, min_length=4, sequences=8, overrides=TINY + window)


def measure_ceilings(device: str, quick: bool) -> None:
    """Measures the rates that bound every step: bf16 matrix products, and copies within the memory of the device."""
    if device == "cpu":
        emit(note="the CPU stands in for the GPU")
    repeats, measured = (3, {}) if quick else (20, {})
    shapes = [(64, 64, 64)] if quick else [(8192, 8192, 8192), (16384, 768, 3072), (16384, 768, 768), (768, 384, 384)]
    for rows, inner, columns in shapes:
        a = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
        b = torch.randn(columns, inner, device=device, dtype=torch.bfloat16)
        seconds = seconds_of(lambda a=a, b=b: functional.linear(a, b), device, repeats)
        rate = 2 * rows * inner * columns / seconds / 1e12
        measured[f"matrix product {rows} x {inner} x {columns}"] = f"{rate:.1f} TFLOP/s"
    source = torch.randn(1 << (16 if quick else 30), device=device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), device, repeats)
    measured["copy, read and written"] = f"{2 * source.nbytes / seconds / 1e9:,.0f} GB/s"
    emit(measured=measured)


def attention_shapes(quick: bool) -> dict[str, tuple[np.ndarray, int, int, int | None]]:
    """Returns lengths, heads, size of a head and window of attention in the models of the benchmark."""
    if quick:
        return {"tiny": (np.array([5, 9, 2]), 2, 16, None)}
    drawn = workload("bert_base", 512)
    return {
        "BERT-base, 8 to 512 tokens": (drawn.lengths(drawn.sequences), 12, 64, None),
        "ModernBERT, global, 1,024 tokens": (np.full(16, 1024), 12, 64, None),
        "ModernBERT, window 128, 1,024 tokens": (np.full(16, 1024), 12, 64, 128),
        "MiniLM, SST-2": (workload("minilm_sst2").lengths(32), 12, 32, None),
    }


def attention_kernels(lengths: np.ndarray, window: int | None, device: str) -> dict[str, Callable[..., Tensor]]:
    """Returns the kernels that are compared, by name: functions of query, key and value (tokens, heads, head_dim)."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.attention.varlen import varlen_attn

    from framework.nn.attention_backend import attention

    offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int32)).to(device)
    tokens, longest = int(lengths.sum()), int(lengths.max())
    owners = torch.repeat_interleave(torch.arange(len(lengths)), torch.from_numpy(lengths)).to(device)
    side = -1 if window is None else window // 2

    def sees(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        same = owners[query] == owners[key]
        return same if window is None else same & ((query - key).abs() <= side)

    def flex(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = (part.transpose(0, 1)[None] for part in (query, key, value))
        return compiled(*parts, block_mask=mask)[0].transpose(0, 1)

    kernels: dict[str, Callable[..., Tensor]] = {
        "Cloze": lambda q, k, v: attention(q, k, v, offsets, tuple(lengths.tolist()), longest, window=window)
    }
    if device == "cuda":
        mask = create_block_mask(sees, None, None, tokens, tokens, device=device)
        compiled = torch.compile(flex_attention, dynamic=False)
        sides = (side, side)
        kernels["varlen_attn"] = lambda q, k, v: varlen_attn(
            q, k, v, offsets, offsets, longest, longest, window_size=sides
        )
        kernels["FlexAttention, document mask"] = flex
    return kernels


def measure_attention(device: str, quick: bool) -> None:
    """Measures forward and backward of attention by every kernel that runs here."""
    measured: dict[str, str] = {}
    if device == "cpu":
        emit(note="only the attention of the CPU runs here, it stands in for the kernels of CUDA")
    for shape, (lengths, heads, head_dim, window) in attention_shapes(quick).items():
        seen = float((lengths * np.minimum(lengths, lengths if window is None else window + 1)).sum())
        for name, kernel in attention_kernels(lengths, window, device).items():
            inputs = [
                torch.randn(int(lengths.sum()), heads, head_dim, device=device, dtype=torch.bfloat16).requires_grad_()
                for _ in range(3)
            ]
            gradient = torch.randn_like(inputs[0])

            def both(kernel: Any = kernel, inputs: Any = inputs, gradient: Any = gradient) -> None:
                torch.autograd.grad(kernel(*inputs), inputs, gradient)

            try:
                seconds = seconds_of(both, device, 3 if quick else 20)
            except (RuntimeError, ValueError, TypeError, ImportError) as error:
                measured[f"{shape}: {name}"] = f"not available: {str(error).splitlines()[0][:120]}"
            else:
                rate = 3.5 * 4 * seen * heads * head_dim / seconds / 1e12
                measured[f"{shape}: {name}"] = f"{seconds * 1e6:,.0f} us, {rate:.1f} TFLOP/s"
            emit(measured=measured)


def prepare_operations(drawn: Workload) -> Callable[[], None]:
    """Returns a function that counts the operations of a step by activity."""
    from tests.support.training.counted_step import count_step, describe, total

    def count() -> None:
        phases = count_step(drawn)
        emit(kernels=total(phases), measured={"by activity": "\n" + describe(phases)})

    return count


def prepare(case: str, model: str, device: str, quick: bool) -> Callable[[], None]:
    """Imports the modules of a case without touching the device; returns the function that measures it."""
    if case in ("ceilings", "attention"):
        measure = measure_ceilings if case == "ceilings" else measure_attention
        return partial(measure, device, quick)
    drawn = parse_model(model, quick)
    if case == "operations":
        return prepare_operations(drawn)
    if case == "transformers":
        from tests.benchmarks.gpu_peer import measure_trainer

        return partial(measure_trainer, drawn, device, quick)
    from tests.benchmarks.gpu_training import measure_training

    return partial(measure_training, case, drawn, device, quick)


def main(arguments: list[str] | None = None) -> None:
    """Runs one case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("model")
    parser.add_argument("--device", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--wait", action="store_true", help="wait for a line of the standard input before measuring")
    given = parser.parse_args(arguments)
    try:
        measure = prepare(given.case, given.model, given.device, given.quick)
    except ImportError as error:
        emit(state="not available", note=str(error))
        return
    if given.wait:
        sys.stdin.readline()
    if given.device == "cuda" and given.case != "operations" and not torch.cuda.is_available():
        emit(state="not available", note="torch sees no GPU")
    else:
        measure()


if __name__ == "__main__":
    main()
