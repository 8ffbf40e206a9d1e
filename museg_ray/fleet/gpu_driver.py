"""Whether a machine's NVIDIA driver can run what is installed: libraries say so late, and each in its own words."""

import ctypes
import socket
from contextlib import suppress

from museg_ray.errors import ResourceError

LEAST_CUDA = 13000
"""CUDA 13.0, as the driver counts: what the pinned torch and vLLM are built for. It comes with driver 580."""


def check_gpu_driver(library: str = "libcuda.so.1") -> None:
    """Ask the driver's own library, which may also be one of NVIDIA's compatibility packages on an older driver. To be
    called on the machine of a process that has reserved GPUs.

    Raises:
        ResourceError: there is none, or it is too old.
    """
    version = ctypes.c_int()
    with suppress(OSError):  # the library is not there
        ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(version))
    if version.value < LEAST_CUDA:
        newest = f"supports CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        found = newest if version.value else "is not there, or not seen by this process (is it in a container?)"
        raise ResourceError(
            f"The NVIDIA driver of {socket.gethostname()} {found}; torch and vLLM of requirements/gpu.txt need CUDA "
            "13.0. Install driver 580 or newer (`nvidia-smi` shows which one there is)."
        )
