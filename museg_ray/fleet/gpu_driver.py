"""Whether a machine's NVIDIA driver can run what is installed: libraries say so late, and each in its own words."""

import ctypes
import socket

from museg_ray.errors import ResourceError

LEAST_CUDA = 13000
"""CUDA 13.0, as the driver counts: what the pinned torch and vLLM are built for. It comes with driver 580."""


def check_gpu_driver(library: str = "libcuda.so.1") -> None:
    """Ask the driver's own library, which may also be one of NVIDIA's compatibility packages on an older driver. To be
    called on the machine of a process that has reserved GPUs.

    Raises:
        ResourceError: there is none, or it is too old.
    """
    version, machine = ctypes.c_int(), socket.gethostname()
    try:
        ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(version))
    except OSError as error:
        raise ResourceError(
            f"{machine} offers GPUs, but has no NVIDIA driver that this process can see: {error}. Install "
            "driver 580 or newer; in a container, use NVIDIA's container runtime."
        ) from None
    if version.value < LEAST_CUDA:
        found = f"{version.value // 1000}.{version.value % 1000 // 10}"
        raise ResourceError(
            f"The NVIDIA driver of {machine} supports CUDA {found}; torch and vLLM of requirements/gpu.txt need CUDA "
            "13.0. Install driver 580 or newer (`nvidia-smi` shows which one there is)."
        )
