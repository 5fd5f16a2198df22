"""What the makers say of their chips, and the names of TPU pods: the numbers behind a plan and
behind a share of the peak."""
from typing import NamedTuple

from vit_efficient.settings.values import nearest


class Chip(NamedTuple):
    """One chip, its cores together: bf16 peak in FLOP/s (a multiply-add is two), memory in bytes,
    its bandwidth and that of all its links one way in bytes/s, the cores' clock in Hz; `config` is
    what the compiler wants to hear so that two cores are one device."""
    peak: float
    memory: int
    bandwidth: float
    network: float
    clock: float
    config: str | None = None


# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read in 2026-11; v4's links from "TPU v4: An
# Optically Reconfigurable Supercomputer" (arXiv 2304.01433: six of 50 GB/s). The pages give the
# links of v5e, v5p and v6e in both directions together, and v5e's memory in one place as 819 GB/s,
# in another as 800 "GiBps". They do not name the clock, which is the peak divided by two FLOPs a
# cycle of each cell of the matrix units: 8 x 128 x 128 (v4, v5p), 4 x 128 x 128 (v5e) and, of v6e,
# 4 x 256 x 256: its page says two such units, but libtpu counts 369,000 FLOPs in a cycle of a
# large matrix product, more than two can do.
CHIPS = {
    "v4": Chip(peak=275e12, memory=32 << 30, bandwidth=1200e9, network=300e9, clock=1.05e9,
               config="megacore"),
    "v5e": Chip(peak=197e12, memory=16 << 30, bandwidth=819e9, network=200e9, clock=1.5e9),
    "v5p": Chip(peak=459e12, memory=95 << 30, bandwidth=2765e9, network=600e9, clock=1.75e9),
    "v6e": Chip(peak=918e12, memory=32 << 30, bandwidth=1638e9, network=400e9, clock=1.75e9),
}

# Dense bfloat16 FLOP/s of a device by the name that JAX gives its kind (TPUs: tpu_info.py of its
# Pallas); GPUs from NVIDIA's data sheets of the A100, H100 SXM and H200 SXM, half of what the
# latter two print for sparse matrices.
PEAKS = {"TPU v4": CHIPS["v4"].peak, "TPU v5 lite": CHIPS["v5e"].peak, "TPU v5": CHIPS["v5p"].peak,
         "TPU v5p": CHIPS["v5p"].peak, "TPU v6 lite": CHIPS["v6e"].peak,
         "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12,
         "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}


def chip_of(topology: str) -> Chip:
    """The chip of a pod, `v5e:4x4`; ValueError with the nearest name for another."""
    name, colon, sides = topology.partition(":")
    if name not in CHIPS:
        raise ValueError(f"--topology={topology}: {nearest(name, CHIPS)}, as v5e:4x4")
    if not colon or not all(side.isdecimal() and int(side) for side in sides.split("x")):
        raise ValueError(f"--topology={topology}: must be the chip and the sides of the pod, "
                         f"as {'v5e:4x4' if name in ('v5e', 'v6e') else name + ':2x2x4'}")
    return CHIPS[name]
