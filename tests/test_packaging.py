"""The package, its pins, and the torchvision repair that is installed with it."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hatchling import build

from museg_ray.fleet.gpu_driver import LEAST_CUDA

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(requirements: Iterable[str]) -> dict[str, str]:
    """Package -> version of `name[extra]==version` lines."""
    versions = {}
    for requirement in requirements:
        name, separator, version = requirement.partition("==")
        assert separator, f"{requirement!r} is not pinned"
        versions[canonical(name.partition("[")[0])] = version
    return versions


def requirement_lines(file_name: str) -> list[str]:
    lines = (ROOT / "requirements" / file_name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_cpu_lock_pins_what_pyproject_pins() -> None:
    lock = pins(requirement_lines("cpu.txt"))
    lock["torch"] = lock["torch"].removesuffix("+cpu")
    direct = pins(PROJECT["dependencies"] + EXTRAS["cpu"] + EXTRAS["dev"])
    assert direct == {name: lock.get(name) for name in direct}


def test_cpu_lock_is_sorted_and_names_each_package_once() -> None:
    names = [canonical(line.partition("==")[0]) for line in requirement_lines("cpu.txt")]
    assert names == sorted(set(names))


def test_cpu_lock_holds_no_cuda_builds_that_break_vllm() -> None:
    assert not {"torchaudio", "torchcodec"} & pins(requirement_lines("cpu.txt")).keys()


def test_gpu_lock_pins_what_pyproject_pins_and_all_else_as_the_cpu_lock() -> None:
    lock, on_cpu = pins(requirement_lines("gpu.txt")), pins(requirement_lines("cpu.txt"))
    direct = pins(PROJECT["dependencies"] + EXTRAS["gpu"])
    assert direct == {name: lock.get(name) for name in direct}
    assert {name for name in lock.keys() & on_cpu.keys() if lock[name] != on_cpu[name]} == {"torch", "apache-tvm-ffi"}


def test_gpu_lock_is_whole_sorted_and_of_the_cuda_whose_driver_is_checked() -> None:
    names = [canonical(line.partition("==")[0]) for line in requirement_lines("gpu.txt")]
    assert names == sorted(set(names))
    assert {"setuptools", "triton", "xgrammar"} <= set(names), "what the direct ones pull in"
    lock, cuda = pins(requirement_lines("gpu.txt")), f"{LEAST_CUDA // 1000}.{LEAST_CUDA % 1000 // 10}."
    assert lock["cuda-toolkit"].startswith(cuda) and lock["nvidia-cuda-runtime"].startswith(cuda), "that torch is for"


def test_every_import_of_the_package_is_a_declared_dependency() -> None:
    imported = set()
    for file in (ROOT / "museg_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    distributions = importlib.metadata.packages_distributions()
    declared = pins(PROJECT["dependencies"] + EXTRAS["cpu"] + EXTRAS["liger"] + EXTRAS["decord"])
    foreign = imported - sys.stdlib_module_names - {"museg_ray"}
    packages = {name: {canonical(package) for package in distributions.get(name, [name])} for name in foreign}
    assert not {name for name in foreign if not packages[name] & declared.keys()}


@pytest.mark.parametrize("build_wheel", [build.build_wheel, build.build_editable], ids=["wheel", "editable"])
def test_wheels_carry_the_torchvision_repair_and_the_configs(
    build_wheel: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # build backends work on the current folder
    names = zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))).namelist()
    assert {"museg_torchvision_ops.py", "museg_torchvision_ops.pth", "museg_ray/configs/demo.yaml"} <= set(names)


def test_torchvision_imports_in_every_process() -> None:
    code = """
import torch
from torchvision.transforms.v2 import functional
print(tuple(functional.resize(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [4, 4]).shape))
"""
    assert run_python(code) == "(2, 3, 4, 4)\n"


def test_repair_leaves_a_torchvision_with_working_operators_alone() -> None:
    code = """
import sys
import torch
import museg_torchvision_ops

loaded = torch.library.Library("torchvision", "DEF")  # stands for what torchvision/_C.so registers
for operator in museg_torchvision_ops.OPERATORS:
    loaded.define(operator)
import torchvision

hooks = [finder for finder in sys.meta_path if isinstance(finder, museg_torchvision_ops.TorchvisionOperators)]
print([hook.library for hook in hooks])
"""
    assert run_python(code) == "[None]\n"


def test_starting_python_imports_neither_torch_nor_the_package() -> None:
    modules = run_python("import sys; print(*sys.modules)").split()
    assert "museg_torchvision_ops" in modules
    assert not {"torch", "torchvision", "museg_ray"} & set(modules)


def test_set_up_refuses_an_unusable_python_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for part in ("scripts", "startup", "requirements"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": "/bin/false"}
    result = subprocess.run(["bash", "scripts/setup.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "usable Python 3.11 to 3.14: /bin/false" in result.stderr
    assert not (tmp_path / ".venv").exists()
