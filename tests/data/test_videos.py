from pathlib import Path

import pytest

from museg_ray.data.videos import FileLength, VideoFiles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mkv", "a.json", "b.c.webm", "d.avi", "d.mov", "e.mp4", "e.mkv", "f.MOV", "g"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("video", "found"),
    [
        ("a.mp4", ["a.mkv"]),
        ("a", ["a.mkv"]),
        ("b.c.mp4", ["b.c.webm"]),
        ("b.c", ["b.c.webm"]),
        ("b.mp4", []),
        ("d.mp4", ["d.avi", "d.mov"]),
        ("e.mp4", ["e.mp4"]),
        ("f.mp4", ["f.MOV"]),
        ("g", ["g"]),
        ("nowhere/a.mp4", []),
    ],
)
def test_a_video_is_the_file_of_its_name_or_else_those_of_its_stem(folder: Path, video: str, found: list[str]) -> None:
    assert VideoFiles().find(str(folder / video)) == [str(folder / name) for name in found]


def test_urls_are_not_looked_up_and_files_are_measured_once(folder: Path) -> None:
    asked = list[str]()

    def measure(path: str) -> FileLength:
        asked.append(path)
        return FileLength(2.0, 25.0)

    videos = VideoFiles(measure)
    assert videos.find("s3://bucket/a.mp4") == ["s3://bucket/a.mp4"]
    assert videos.length("s3://bucket/a.mp4") is None
    path = str(folder / "e.mp4")
    assert [videos.length(path), videos.length(path)] == [FileLength(2.0, 25.0)] * 2
    assert asked == [path]
