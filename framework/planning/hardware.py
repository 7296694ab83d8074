"""Rates and memory of one device, as a file of conf/hardware gives them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from framework.errors import ConfigError, check_at_least

GIGA, TERA = 1e9, 1e12
_HALF = ("bfloat16", "float16")


@dataclass(frozen=True)
class Hardware:
    """A GPU with its share of a node, or a CPU. GB are 1e9 bytes, as in data sheets.

    Attributes:
        name: Name for reports.
        device: Device type of the tensors, which chooses kernels and precision.
        bf16_tflops: Peak of dense matrix products in bf16, in 1e12 operations per second.
        fp32_tflops: The same in fp32.
        fp8_tflops: The same in float8; None: the device has no such products.
        memory_gb: Memory that CUDA reports, or that a process on a CPU may use.
        memory_gb_per_second: Bandwidth of the memory.
        node_gb_per_second: Bandwidth to the other devices of the node, in one direction.
        network_gb_per_second: Bandwidth to other nodes, in one direction.
        operator_seconds: Time to start an operator, beside that of its work; 0 on a GPU, whose host starts operators
            while the device computes.
        bf16_product_seconds: Time to start a matrix product in bf16, or a batch of them, beside that of its operations.
        fp32_product_seconds: The same in fp32.
        matmul_share: Lowest and highest share of the peak that matrix products reach.
        memory_share: Lowest and highest share of the memory bandwidth that other operators reach.
        link_share: Lowest and highest share of the link bandwidth that collectives reach.
        reserve_gb: Memory in use beside torch's tensors.
        fragment_share: Memory that the allocator loses, as a share of the tensors' memory.
        latency_seconds: Time that a collective takes at least, within a node and for each doubling of the nodes.
        storage_gb_per_second: Rate at which a node writes checkpoints.
        price_per_hour: Price of an hour; None: unknown.
    """

    name: str
    device: Literal["cuda", "cpu"]
    bf16_tflops: float
    fp32_tflops: float
    memory_gb: float
    memory_gb_per_second: float
    node_gb_per_second: float
    network_gb_per_second: float
    matmul_share: Sequence[float]
    memory_share: Sequence[float]
    link_share: Sequence[float]
    reserve_gb: float
    fragment_share: float
    latency_seconds: float
    storage_gb_per_second: float
    price_per_hour: float | None = None
    fp8_tflops: float | None = None
    operator_seconds: float = 0.0
    bf16_product_seconds: float = 0.0
    fp32_product_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("bf16_tflops", "fp32_tflops", "memory_gb", "memory_gb_per_second", "storage_gb_per_second"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"hardware.{name} is {getattr(self, name)}. It must be above 0. Give the data sheet's."
                )
        for name in ("reserve_gb", "operator_seconds", "bf16_product_seconds", "fp32_product_seconds"):
            check_at_least(f"hardware.{name}", getattr(self, name), 0)
        for name in ("matmul_share", "memory_share", "link_share"):
            share = getattr(self, name)
            if len(share) != 2 or not 0 < share[0] <= share[1] <= 1:
                raise ConfigError(
                    f"hardware.{name} is {list(share)}. It must be two shares in (0, 1], the lower one first. Give for "
                    "example [0.4, 0.7]."
                )

    def peak_flops(self, dtype: str) -> float:
        """Returns the peak of matrix products in operations per second.

        Args:
            dtype: Name of torch's dtype, for example "bfloat16".

        Raises:
            ConfigError: The dtype is a float8, and the device has none.
        """
        if dtype.startswith("float8"):
            if self.fp8_tflops is None:
                raise ConfigError(
                    f"hardware={self.name} has no fp8_tflops, but precision=float8 multiplies in float8. Use "
                    "precision=bf16, or another device."
                )
            return TERA * self.fp8_tflops
        return TERA * (self.bf16_tflops if dtype in _HALF else self.fp32_tflops)

    def product_seconds(self, dtype: str, count: int, flops: float) -> float:
        """Returns the time of matrix products with this many operations together, at the peak."""
        start = self.bf16_product_seconds if dtype in _HALF else self.fp32_product_seconds
        return flops / self.peak_flops(dtype) + start * count

    @property
    def memory_bytes(self) -> float:
        """Returns the memory of the device with its reserves."""
        return GIGA * self.memory_gb

    @property
    def usable_bytes(self) -> float:
        """Returns the memory for torch's tensors, without reserves and fragments."""
        return GIGA * (self.memory_gb - self.reserve_gb) / (1 + self.fragment_share)

    def link_rate(self, num_ranks: int, nodes: int) -> float:
        """Returns the bytes per second of a ring over ranks: between nodes their links to the network add up."""
        if nodes == 1:
            return GIGA * self.node_gb_per_second
        return GIGA * min(self.node_gb_per_second, self.network_gb_per_second * num_ranks / nodes)
