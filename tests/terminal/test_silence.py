"""What libraries print, kept off the terminal."""

import os
import subprocess
from pathlib import Path

import pytest

from museg_ray.terminal.silence import libraries_into


def test_what_other_code_writes_on_the_descriptors_goes_into_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ray.log").write_text("of the run before it was resumed\n")
    with libraries_into(tmp_path / "ray.log") as terminal:
        os.write(1, b"a C++ part\n")
        subprocess.run("echo another process >&2", shell=True, check=True)
        print("the panel", file=terminal, flush=True)
    os.write(1, b"afterwards\n")
    assert (tmp_path / "ray.log").read_text() == "of the run before it was resumed\na C++ part\nanother process\n"
    assert capfd.readouterr() == ("the panel\nafterwards\n", "")
