"""Odd files become RGB images that are upright, or errors with a reason; names may hold any character."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pl_fed.errors import FederatedConfigError
from pl_fed.isa import images
from pl_fed.isa.images import ImageFile, ImageReadError, find_images, printable, read_image, shrink, unescaped
from tests.helpers.isa import picture


def read(path: Path) -> images.LoadedImage:
    return read_image(ImageFile(path, path.name))


def test_exif_rotation(tmp_path: Path) -> None:
    """Orientation 6 means: turn by 90 degrees clockwise. The left column becomes the top row."""
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 1), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    found = read(tmp_path / "a.png").pixels
    assert found.size == (2, 4) and found.getpixel((0, 0)) == (255, 0, 0)


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    """65535 / 257 = 255, 257 / 257 = 1."""
    Image.fromarray(np.array([[0, 257], [32896, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    found = read(tmp_path / "a.png")
    assert np.asarray(found.pixels)[..., 0].tolist() == [[0, 1], [128, 255]] and found.note == "16 bits scaled to 8"


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").pixels.getpixel((0, 0)) == (255, 255, 255)


def test_other_modes(tmp_path: Path) -> None:
    picture().convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture().convert("P").save(tmp_path / "palette.png")
    picture().convert("L").save(tmp_path / "grey.pgm")
    notes = {name: read(tmp_path / name).note for name in ("cmyk.jpg", "palette.png", "grey.pgm")}
    assert notes == {"cmyk.jpg": "converted from CMYK", "palette.png": "", "grey.pgm": ""}
    assert all(read(tmp_path / name).pixels.mode == "RGB" for name in notes)


def test_the_first_frame_of_several(tmp_path: Path) -> None:
    frames = [picture(seed) for seed in range(3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    found = read(tmp_path / "a.tif")
    assert found.note == "first of 3 frames" and np.array_equal(found.pixels, frames[0])


def test_errors_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture().save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)).save(tmp_path / "wide.tif")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    reasons = {
        "cut.jpg": "[Tt]runcated",
        "empty.png": "an empty file",
        "text.png": "no image of a format that Pillow reads",
        "float.tif": "floating-point",
        "wide.tif": "beyond 16 bits",
        "pipe.png": "not a regular file",
        "gone.png": "no such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageReadError, match=reason):
            read(tmp_path / name)
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    with pytest.raises(ImageReadError, match="above the limit of 10"):
        read(tmp_path / "whole.jpg")
    monkeypatch.undo()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 1,200 pixels, also above twice the limit
    with pytest.raises(ImageReadError, match="exceeds limit"):
        read(tmp_path / "whole.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # where Pillow alone would only warn
    with pytest.raises(ImageReadError, match="exceeds limit"):
        read(tmp_path / "whole.jpg")


def test_a_file_that_may_not_be_read() -> None:
    """Root may read everything, so it becomes somebody else for a moment."""
    with tempfile.TemporaryDirectory() as folder:  # others may not look into pytest's own folders
        Path(folder).chmod(0o755)
        path = Path(folder, "a.png")
        picture().save(path)
        path.chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(ImageReadError, match="Permission denied"):
                read(path)
        finally:
            os.seteuid(user)


def test_folders_files_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a/x.png", "a/b/x.JPG", "a/.hidden/x.png", "a/.x.png", "a/notes.txt", "c[1].png", "odd.bin"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert [f.name for f in find_images(["a"])] == ["b/x.JPG", "x.png"]
    assert [f.name for f in find_images(["odd.bin", "c[1].png", "a", "a/x.png"])] == [
        "odd.bin",
        "c[1].png",
        "b/x.JPG",
        "x.png",
    ]
    assert [f.name for f in find_images(["*/x.*"])] == ["x.png"]
    assert [f.name for f in find_images(["a/b/x.JPG", "a/b", "./a"])] == ["x.JPG", "x.png"]
    with pytest.raises(FederatedConfigError, match="'nope' to be a file, a folder or a glob"):
        find_images(["nope"])
    with pytest.raises(FederatedConfigError, match=r"Expected images in nope\* but got none"):
        find_images(["nope*"])


def test_photographs_of_telephones_are_not_left_out_in_silence(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (found,) = find_images([tmp_path])
    with pytest.raises(ImageReadError, match="no image of a format that Pillow reads"):
        read_image(found)


def test_same_names_get_their_paths(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").touch()
    found = find_images([tmp_path / "a", tmp_path / "b"])
    assert [f.name for f in found] == [str(tmp_path / "a" / "x.png"), str(tmp_path / "b" / "x.png")]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n.png")
    picture().save(tmp_path / name, "PNG")
    (found,) = find_images([tmp_path])
    assert found.name == r"caf\xe9\n.png" and read_image(found).pixels.size == (40, 30)
    assert printable("猫 'a\"<b>.png") == "猫 'a\"<b>.png"


def test_spaces_of_names_stay() -> None:
    """What a Mac writes before AM, a space that does not break, a wide one; other separators end a line."""
    name = "Screenshot 9.41.00\u202fAM\xa0\u3000.png"
    assert printable(name) == name and printable("\u2028\u2029\x1b\ud800\0") == r"\u2028\u2029\x1b\ud800\x00"


def test_escapes_lead_back_to_the_file(tmp_path: Path) -> None:
    """A name that has a backslash itself wins over one that is written so."""
    for name in ("a\nb/c\td.png", "a\nb/e\\tf.png", "a\nb/e\tf.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert unescaped(tmp_path / r"a\nb" / r"c\td.png") == tmp_path / "a\nb/c\td.png"
    assert unescaped(tmp_path / r"a\nb" / r"e\tf.png") == tmp_path / "a\nb" / r"e\tf.png"
    for name in (r"a\nb/no\ne.png", r"no\ne/x\ny.png", r"a\nb/c\td.png/x\ny", "\0.png"):
        assert not unescaped(tmp_path / name).exists()


def test_shrink_keeps_the_shape() -> None:
    assert shrink(Image.new("RGB", (400, 1)), 100).size == (100, 1)
    assert shrink(Image.new("RGB", (40, 30)), 100).size == (40, 30)
