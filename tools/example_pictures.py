"""Cut the README's reference pictures out of photographs that scikit-image carries, by outlines drawn by hand.

    python tools/example_pictures.py

`coffee.png` (Rachel Michetti, CC0) gives the cup, `astronaut.png` (NASA, public domain) the model of a space shuttle.
"""

import pathlib

import skimage
from PIL import Image, ImageDraw, ImageFilter

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "docs" / "pictures"
SMOOTH = 4  # outlines are drawn this much larger, then shrunk
# Picture, outlines in its pixels (four numbers: the box of an ellipse; more: a polygon), side of the result.
CUTS = {
    "cup.png": ("coffee.png", [(80, 52, 479, 386), (173, 17, 408, 212)], 256),
    "rocket.png": (
        "astronaut.png",
        [
            (405, 7, 412, 0, 422, 0, 431, 9, 436, 32, 445, 37, 453, 56, 455, 228)
            + (450, 238, 455, 270, 462, 283, 368, 285, 376, 262, 369, 240, 354, 229)
            + (366, 202, 379, 170, 381, 112, 387, 86, 393, 74, 394, 32)
        ],
        256,
    ),
}


def cut(picture: Image.Image, outlines: list[tuple[int, ...]], side: int) -> Image.Image:
    """What the outlines hold, on a transparent square."""
    large = Image.new("L", (picture.width * SMOOTH, picture.height * SMOOTH), 0)
    draw = ImageDraw.Draw(large)
    for outline in outlines:
        points = [SMOOTH * value for value in outline]
        (draw.ellipse if len(points) == 4 else draw.polygon)(points, fill=255)
    mask = large.resize(picture.size, Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.7))
    subject = picture.convert("RGBA")
    subject.putalpha(mask)
    subject = subject.crop(mask.point(lambda value: 255 * (value > 8)).getbbox())
    subject.thumbnail((side, side), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    square.alpha_composite(subject, ((side - subject.width) // 2, (side - subject.height) // 2))
    return square


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    source = pathlib.Path(skimage.__file__).parent / "data"
    for name, (picture, outlines, side) in CUTS.items():
        with Image.open(source / picture) as opened:
            cut(opened, outlines, side).save(FOLDER / name, optimize=True)
        print(FOLDER / name)


if __name__ == "__main__":
    main()
