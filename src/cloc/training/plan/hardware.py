"""GPUs and the machines that they usually stand in: makers' data sheets, which `--assume` overrides."""

from collections.abc import Mapping
from dataclasses import dataclass

from cloc.errors import ConfigError
from cloc.training.flops import data_sheet
from cloc.training.plan.figures import Figure


@dataclass(frozen=True)
class Gpu:
    """A GPU, and its share of a machine.

    Attributes:
        name: as torch names it.
        memory_gib: that programs see.
        link_gb: to the other GPUs of its machine, GB/s one way.
        network_gbit: to other machines, Gbit/s a GPU.
        cores: processor cores a GPU.
        per_node: GPUs a machine.
        machine: that these figures are of.
    """

    name: str
    memory_gib: float
    link_gb: float
    network_gbit: float
    cores: int
    per_node: int
    machine: str


GPUS: Mapping[str, Gpu] = {
    "l4": Gpu("NVIDIA L4", 22.0, 16, 12.5, 12, 8, "AWS g6.48xlarge"),
    "a10": Gpu("NVIDIA A10", 22.0, 16, 25, 16, 4, "four on PCIe 4 in a machine of 64 cores"),
    "l40s": Gpu("NVIDIA L40S", 44.4, 32, 50, 16, 8, "eight on PCIe 4 in a machine of 128 cores"),
    "a100-40": Gpu("NVIDIA A100-SXM4-40GB", 39.4, 300, 200, 16, 8, "NVIDIA DGX A100 data sheet"),
    "a100-80": Gpu("NVIDIA A100-SXM4-80GB", 79.2, 300, 200, 16, 8, "NVIDIA DGX A100 data sheet"),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 79.1, 450, 400, 14, 8, "NVIDIA DGX H100 data sheet"),
    "h200": Gpu("NVIDIA H200", 139.8, 450, 400, 14, 8, "NVIDIA DGX H200 data sheet"),
    "b200": Gpu("NVIDIA B200", 178.0, 900, 400, 14, 8, "NVIDIA DGX B200 data sheet"),
    "mi300x": Gpu("AMD Instinct MI300X", 191.5, 448, 400, 24, 8, "AMD Instinct MI300X platform data sheet"),
}


def gpu(name: str) -> Gpu:
    """The GPU of that name. Raises ConfigError when it is not in the table."""
    if name not in GPUS:
        raise ConfigError(
            f"--gpu {name!r} is unknown; there are: {', '.join(GPUS)}. For another one take the nearest and correct "
            "it, as in --assume gpu_memory=48 --assume gpu_peak=180"
        )
    return GPUS[name]


def figures(of: Gpu, *, bfloat16: bool) -> dict[str, Figure]:
    """A GPU's and its machine's figures, by name.

    Args:
        of: the GPU.
        bfloat16: whether training computes in it.
    """
    peak = data_sheet(of.name, bfloat16=bfloat16)
    assert peak is not None, of.name
    dtype = "bfloat16" if bfloat16 else "float32"
    return {
        "gpu_memory": Figure(of.memory_gib, "GiB", "memory of a GPU that programs see", f"{of.name}, by its driver"),
        "gpu_peak": Figure(peak.flops / 1e12, "TFLOP/s", f"products in {dtype} of a GPU, dense", peak.source),
        "gpu_link": Figure(of.link_gb, "GB/s", "between the GPUs of a machine, one way", of.machine),
        "network": Figure(of.network_gbit, "Gbit/s", "between machines, a GPU", of.machine),
        "cores": Figure(of.cores, "", "processor cores a GPU", of.machine),
    }
