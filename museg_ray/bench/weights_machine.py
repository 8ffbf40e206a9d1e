"""A second machine on this one, for `museg bench weights`: a network namespace, reached through a pair of interfaces
that count what crosses."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from museg_ray.bench.apart import Facts, measure_apart
from museg_ray.bench.weights_roles import made_up
from museg_ray.weights.host import WeightHost
from museg_ray.weights.tensors import fill, tensor_layout
from museg_ray.weights.transfer import Address

HERE, THERE = "10.213.77.1", "10.213.77.2"
COUNTER = "/sys/class/net/{interface}/statistics/tx_bytes"


def second_machine(size_bytes: int) -> Facts | None:
    """Seconds to fetch the weights (`fetch_s`), and bytes over the wire for each byte of them (`crossed`). None where
    this user may make no namespace, or there is no `ip`."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return None
    weights = made_up(size_bytes)
    layout, host = tensor_layout(weights), WeightHost(host=HERE)
    host.reserve(layout)
    with _namespace() as name:
        fill(host.begin(1, 0.0), layout, weights)
        host.commit(1)
        counter = Path(COUNTER.format(interface=name))
        before = int(counter.read_text())
        facts = measure_apart(fetch, size_bytes, *host.address(), within=("ip", "netns", "exec", name))
        crossed = int(counter.read_text()) - before
        host.close()
    return facts | {"crossed": crossed / layout.size_bytes}


@contextmanager
def _namespace() -> Iterator[str]:
    """Its name, which is also that of this machine's end of the wire."""
    name = f"museg{os.getpid()}"
    commands = [
        f"netns add {name}",
        f"link add {name} type veth peer name there netns {name}",
        f"addr add {HERE}/24 dev {name}",
        f"link set {name} up",
        f"-n {name} addr add {THERE}/24 dev there",
        f"-n {name} link set there up",
    ]
    try:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True, capture_output=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def fetch(size_bytes: int, host_name: str, port: int, token: str) -> Facts:
    """Runs on the second machine."""
    layout, host = tensor_layout(made_up(size_bytes, "meta")), WeightHost(host=THERE)
    host.reserve(layout)
    host.begin(1, 0.0)
    began_s = time.perf_counter()
    host.fetch(1, {Address(host_name, port, token): [(len(layout.header), layout.size_bytes)]})
    took_s = time.perf_counter() - began_s
    host.commit(1)
    return {"fetch_s": took_s}
