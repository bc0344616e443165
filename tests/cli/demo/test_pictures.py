"""Uploaded pictures: how many pixels of them are kept, and how much memory they take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from hlwq_cli.errors import UsageError
from hlwq_cli.ui.demo.pictures import MAX_MESSAGE_PIXELS, keep_shrunk, open_picture, pixels_seen

MEASURE = """
import resource, sys
from pathlib import Path
from hlwq_cli.ui.demo.pictures import open_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
held = [open_picture(Path(sys.argv[1])) for _ in range(3)]
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_pictures_of_36_megapixels_take_little_memory(tmp_path: Path) -> None:
    Image.new("RGB", (6000, 6000)).save(tmp_path / "bomb.png", compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "bomb.png"], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(done.stdout) < 260  # three of them take 324 MB at full size, and one more to decode


def test_large_pictures_are_shrunk_to_what_is_seen(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((3000, 1500)).save(tmp_path / "wide.png")
    found = open_picture(tmp_path / "wide.png", 200 * 100)
    assert (found.mode, found.size) == ("RGB", (200, 100))
    seen = [found.getpixel((x, y)) for x, y in ((0, 0), (100, 50), (199, 99))]
    for value, true in zip(seen, (0, 128, 254), strict=True):
        assert value == (value[0],) * 3  # type: ignore[index]
        assert abs(value[0] - true) <= 2  # type: ignore[index]
    assert open_picture(tmp_path / "wide.png").size == (2896, 1448)
    Image.new("L", (40_000, 1)).save(tmp_path / "line.png")
    assert open_picture(tmp_path / "line.png", 100).size == (2000, 1)


def test_small_pictures_keep_every_pixel(tmp_path: Path) -> None:
    noise = Image.effect_noise((40, 30), 90).convert("RGB")
    noise.save(tmp_path / "noise.png")
    kept, pixels = keep_shrunk(tmp_path / "noise.png", tmp_path, 40 * 30)
    assert pixels == 1200
    assert kept.parent.parent == tmp_path
    assert open_picture(kept).tobytes() == noise.tobytes()


def test_shrunk_pictures_stand_upright_on_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (400, 200), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    picture.save(tmp_path / "phone.png", exif=exif)
    found = open_picture(tmp_path / "phone.png", 40 * 20)
    assert found.size == (20, 40)
    assert (found.getpixel((10, 5)), found.getpixel((10, 35))) == ((255, 255, 255), (255, 0, 0))


def test_jpegs_are_decoded_at_a_fraction_of_their_size(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 4000), (0, 200, 0)).save(tmp_path / "photo.jpg")
    found = open_picture(tmp_path / "photo.jpg", 500 * 500)
    assert found.size == (500, 500)
    assert all(abs(a - b) < 4 for a, b in zip(found.getpixel((250, 250)), (0, 200, 0), strict=True))  # type: ignore[arg-type]


def test_pictures_that_cannot_be_read_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    with pytest.raises(UsageError, match="is not a picture"):
        keep_shrunk(tmp_path / "holiday.png", tmp_path, 100)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.png"]


@pytest.mark.parametrize(
    ("size", "others", "pixels"),
    [
        ({"height": 224, "width": 300}, {}, 4 * 224 * 300),
        ({"height": 384, "width": 384}, {"do_image_splitting": True}, 2048**2),
        ({"height": 448, "width": 448}, {"crop_to_patches": False}, 4 * 448**2),
        ({"height": 9000, "width": 9000}, {}, 2048**2),
        ({"shortest_edge": 3136, "longest_edge": 12_845_056}, {}, 12_845_056),
        ({"longest_edge": 10**12}, {}, MAX_MESSAGE_PIXELS // 2),
        ({"shortest_edge": 336}, {}, 2048**2),
        ({"height": "x", "width": None}, {}, 2048**2),
        (None, {}, 2048**2),
    ],
)
def test_pixels_follow_from_the_processor(size: object, others: dict[str, object], pixels: int) -> None:
    processor = SimpleNamespace(image_processor=SimpleNamespace(size=size, **others))
    assert pixels_seen(processor) == pixels


def test_a_tokenizer_sees_no_pictures() -> None:
    assert pixels_seen(SimpleNamespace()) == 2048**2
