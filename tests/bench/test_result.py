import io

from museg_ray.bench.result import BenchResult, Target
from museg_ray.terminal.console import SafeConsole


def test_a_target_that_is_missed_is_called_so() -> None:
    console = SafeConsole(width=100, file=io.StringIO())
    targets = (Target("fast", 5.0, 10.0, met=False), Target("small", 1.0, 2.0, met=True))
    BenchResult("x", ({"way": "a", "1/s": 1234.5},), targets).print(console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert any(line.startswith("missed fast: 5 (target 10)") for line in lines)
    assert any(line.startswith("met    small: 1 (target 2)") for line in lines)
    assert any("a" in line and "1,234" in line for line in lines)
