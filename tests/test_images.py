"""Image files of every kind, as a viewer shows them or refused, and folders that are no classes."""

import numpy
import pytest
import torch
from conftest import TRAIN, save_images, tree
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import train
import utils


def read_back(root, image, name="x.png", size=8, **options):
    """The pixels (S, S, 3) of one image in a folder, as the scripts read it."""
    if not root.joinpath("train").exists():
        save_images(root, count=1, test_count=1)
    image.save(root / "train" / "dark" / name, **options)
    images, labels, classes = utils.load_images("folder", root, size)
    assert classes == ["dark", "light"] and labels.tolist() == [0, 0, 1]
    return images[1]


def grey(value, kind="uint16"):
    return Image.fromarray(numpy.full((8, 8), value, kind))


@pytest.mark.parametrize("value,shade", [(0, 0), (1000, 4), (60_000, 233), (65_535, 255)])
@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_16_bit_grey(tmp_path, name, value, shade):
    assert read_back(tmp_path, grey(value), name).unique().tolist() == [shade]


def test_16_bit_big_endian(tmp_path):
    image = Image.frombytes("I;16B", (8, 8), (60_000).to_bytes(2, "big") * 64)
    assert read_back(tmp_path, image, "x.tif").unique().tolist() == [233]


@pytest.mark.parametrize("value,kind", [(0.5, "float32"), (70_000, "int32")])
def test_values_without_a_range_are_refused(tmp_path, monkeypatch, refused, value, kind):
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "d")
    grey(value, kind).save(tmp_path / "d" / "train" / "light" / "x.tif")
    before = tree(tmp_path)
    error = refused(train, TRAIN.replace("shapes", "folder"), "--data", "d", "--save", "new/run")
    assert "d/train/light/x.tif is not an image that can be read: the range of its values" in error
    assert tree(tmp_path) == before and not (tmp_path / "new").exists()
    large = utils.ImageFolder("d/train", pil_to_tensor)  # as ImageNet is read
    with pytest.raises(utils.BadInput, match="x.tif is not an image"):
        large[len(large) - 1]


def half_seen(mode, see, hide):
    image = Image.new(mode, (8, 8), hide)
    image.paste(see, (0, 0, 8, 4))
    return image


@pytest.mark.parametrize(
    "image",
    [
        half_seen("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)),
        half_seen("LA", (0, 255), (0, 0)),
        half_seen("P", 0, 1),
    ],
    ids=["RGBA", "LA", "palette"],
)
def test_transparent_parts_are_white(tmp_path, image):
    options = {}
    if image.mode == "P":
        image.putpalette([0, 0, 0, 10, 10, 10])
        options = dict(transparency=1)
    pixels = read_back(tmp_path, image, **options)
    assert (pixels[:4] == 0).all() and (pixels[4:] == 255).all()


def test_half_transparent_parts(tmp_path):
    assert read_back(tmp_path, Image.new("RGBA", (8, 8), (0, 0, 0, 51))).unique().tolist() == [204]


def test_photographs_stand_upright(tmp_path):
    """Orientation 6: the first row of the file is the right side of the picture."""
    image, exif = half_seen("RGB", "white", "black"), Image.Exif()
    exif[274] = 6
    pixels = read_back(tmp_path, image, "x.jpg", exif=exif)
    assert (pixels[:, :3] < 60).all() and (pixels[:, 5:] > 200).all()
    pixels = read_back(tmp_path, image, "x.jpg", exif=b"Exif\0\0damaged")
    assert (pixels[:3] > 200).all() and (pixels[5:] < 60).all()


@pytest.mark.parametrize("name", ["x.png", "x.gif"])
def test_files_that_are_left_out_are_counted(tmp_path, capsys, name):
    save_images(tmp_path, count=12)
    image = Image.new("L", (8, 8))
    for i in range(8):
        image.save(tmp_path / "train" / "dark" / f"{i}{name}")
    (tmp_path / "train" / "light" / "._0.png").write_bytes(b"beside it on a Mac")
    assert len(utils.load_images("folder", tmp_path, 8)[0]) == (24 if name == "x.gif" else 32)
    error = capsys.readouterr().err
    assert error == (f"{tmp_path}/train: 8 of 32 files left out: .gif\n" if name == "x.gif" else "")


def test_folders_of_systems_are_no_classes(tmp_path):
    save_images(tmp_path)
    before = utils.load_images("folder", tmp_path, 8)
    for place in (tmp_path / "train", tmp_path / "train" / "dark"):
        for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
            (place / name).mkdir()
            grey(0, "uint8").save(place / name / "0.png")
    images, labels, classes = utils.load_images("folder", tmp_path, 8)
    assert torch.equal(images, before[0]) and torch.equal(labels, before[1]) and classes == before[2]


def test_folders_of_systems_alone(tmp_path):
    (tmp_path / "train" / "@eaDir").mkdir(parents=True)
    with pytest.raises(utils.BadInput, match="no images in .*it has no class folder"):
        utils.load_images("folder", tmp_path, 8)


@pytest.mark.parametrize(
    "image,color",
    [
        (Image.new("RGB", (1, 1), (1, 2, 3)), [1, 2, 3]),
        (Image.new("RGB", (20_000, 3), (9, 8, 7)), [9, 8, 7]),
        (Image.new("1", (8, 8), 1), [255, 255, 255]),
        (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), [0, 255, 255]),
        (Image.new("P", (8, 8)), [0, 0, 0]),
    ],
    ids=["one pixel", "20,000 x 3", "1-bit", "CMYK", "palette"],
)
def test_odd_sizes_and_modes(tmp_path, image, color):
    pixels = read_back(tmp_path, image, "x.tif" if image.mode == "CMYK" else "x.png")
    assert pixels.view(-1, 3).unique(dim=0).tolist() == [color]
