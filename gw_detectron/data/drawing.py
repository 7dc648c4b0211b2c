"""One image of the built-in dataset: textured shapes over clutter, in a light of its own."""

from collections.abc import Callable
from colorsys import hsv_to_rgb
from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["CLASSES", "Scene", "draw_scene"]

_SUPERSAMPLING = 2  # samples a pixel along each axis, for smooth edges
_MIN_VISIBLE = 0.6  # of every object's own area, within the image and under later objects
_MIN_PIXELS = 12  # an object that shows less than this cannot be told by its shape
_RADIUS_RANGE = (10.0, 44.0)  # pixels, drawn log-uniformly: many objects are small
_MAX_OBJECTS = 8


@dataclass
class Scene:
    """
    Attributes:
        image: uint8, (H, W, 3), RGB.
        classes: an index into `CLASSES` per object.
        masks: the visible part of each object, bool, (H, W), in the order of `classes`.
    """

    image: np.ndarray
    classes: list[int]
    masks: list[np.ndarray]


def draw_scene(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Draws 1 to 8 objects; everything about the image follows from `rng` alone."""
    image = _background(rng, height, width)
    for _ in range(rng.integers(0, 5)):
        _paint(rng, image, _clutter(rng, height, width), rng.choice(TEXTURES), rng.random())

    scene = Scene(image, [], [])
    full_areas: list[float] = []
    for _ in range(1 + int(_MAX_OBJECTS * rng.random() ** 1.3)):
        _add_object(rng, scene, full_areas)
    scene.image = _photograph(rng, image)
    return scene


def _add_object(rng: np.random.Generator, scene: Scene, full_areas: list[float]) -> None:
    """
    Adds one object on top, where it and everything under it stays recognisable. In a crowded
    image no place may be found in a few attempts; then it adds nothing, except the first.
    """
    height, width = scene.image.shape[:2]
    label = int(rng.integers(len(CLASSES)))
    name = CLASSES[label]
    attempts = 0
    while attempts < 8 or not scene.masks:
        attempts += 1
        stencil = _place(rng, _SHAPES[name], height, width)
        mask = np.zeros((height, width), dtype=bool)
        mask[stencil.window] = stencil.coverage >= 0.5
        if mask.sum() < max(_MIN_PIXELS, _MIN_VISIBLE * stencil.full_area):
            continue
        remaining = [under & ~mask for under in scene.masks]
        if any(
            left.sum() < max(_MIN_PIXELS, _MIN_VISIBLE * area)
            for left, area in zip(remaining, full_areas, strict=True)
        ):
            continue
        _paint(rng, scene.image, stencil, *_look(rng, label))
        scene.masks[:] = remaining + [mask]
        scene.classes.append(label)
        full_areas.append(stencil.full_area)
        return


# ---- Shapes ----------------------------------------------------------------------------------
# A shape takes coordinates u, v (arrays, the shape fits the unit circle) and says who is inside.

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u**2 + v**2 < 1


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _disc(u, v) & ~_disc(u / 0.55, v / 0.55)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    narrow, wide = np.minimum(abs(u), abs(v)), np.maximum(abs(u), abs(v))
    return (narrow < 0.29) & (wide < 0.95)


def _pointed(points: int, inner: float) -> Shape:
    """A regular polygon or star: `points` corners at radius 1, notches at radius `inner`."""
    half = np.pi / points
    notch = np.array([inner * np.cos(half), inner * np.sin(half)])

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        radius, angle = np.hypot(u, v), np.arctan2(v, u)
        folded = abs((angle + half) % (2 * half) - half)  # 0 at a corner, `half` at a notch
        x, y = radius * np.cos(folded), radius * np.sin(folded)
        # Left of the edge that goes from the corner (1, 0) to the notch.
        return (notch[0] - 1) * y - notch[1] * (x - 1) > 0

    return inside


_SHAPES: dict[str, Shape] = {
    "disc": _disc,
    "ring": _ring,
    "triangle": _pointed(3, np.cos(np.pi / 3)),
    "square": _pointed(4, np.cos(np.pi / 4)),
    "star": _pointed(5, 0.45),
    "cross": _cross,
}
CLASSES = tuple(_SHAPES)

# Most objects have the texture and the hue of their class, which a detector learns sooner than
# their shape.
TEXTURES = ("gradient", "plain", "stripes", "checks", "dots", "speckle")  # in the classes' order
_ODD_LOOK = 0.1  # the probability of any texture, and that of any hue, instead


def _look(rng: np.random.Generator, label: int) -> tuple[str, float]:
    """The texture and the hue, 0 to 1, of an object of the given class."""
    texture = rng.choice(TEXTURES) if rng.random() < _ODD_LOOK else TEXTURES[label]
    hue = rng.random() if rng.random() < _ODD_LOOK else label / len(CLASSES) + rng.normal(0, 0.03)
    return texture, hue % 1


# ---- Placing ---------------------------------------------------------------------------------


@dataclass
class _Stencil:
    """
    Where to paint.

    Attributes:
        window: the h rows and w columns of the image that it may touch.
        coverage: the part of each pixel that is inside, float, (h, w).
        x, y: pixels from the shape's center along its own axes, float, (h, w), for textures.
        full_area: in pixels, with what lies outside the image.
        radius: in pixels.
    """

    window: tuple[slice, slice]
    coverage: np.ndarray
    x: np.ndarray
    y: np.ndarray
    full_area: float
    radius: float


def _place(rng: np.random.Generator, shape: Shape, height: int, width: int) -> _Stencil:
    """Puts a shape of random size, angle and slight squeeze at a random place."""
    radius = float(np.exp(rng.uniform(*np.log(_RADIUS_RANGE))))
    center = rng.uniform(0, width), rng.uniform(0, height)
    return _stencil(shape, height, width, center, radius, *rng.uniform([0, 0.8], [2 * np.pi, 1]))


def _stencil(
    shape: Shape,
    height: int,
    width: int,
    center: tuple[float, float],
    radius: float,
    angle: float,
    squeeze: float,
) -> _Stencil:
    cos, sin = np.cos(angle), np.sin(angle)

    def to_axes(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = x[None, :] - center[0], y[:, None] - center[1]
        return x * cos + y * sin, y * cos - x * sin

    # The part outside the image is needed for the full area, and cropped after that.
    reach = int(np.ceil(radius)) + 1
    left, top, side = int(center[0]) - reach, int(center[1]) - reach, 2 * reach + 1
    fine = (np.arange(side * _SUPERSAMPLING) + 0.5) / _SUPERSAMPLING
    x, y = to_axes(left + fine, top + fine)
    inside = shape(x / radius, y / (radius * squeeze))
    coverage = inside.reshape(side, _SUPERSAMPLING, side, _SUPERSAMPLING).mean(axis=(1, 3))
    full_area = float(coverage.sum())

    rows, columns = (slice(max(top, 0), top + side), slice(max(left, 0), left + side))
    coverage = coverage[rows.start - top : height - top, columns.start - left : width - left]
    x, y = to_axes(
        columns.start + np.arange(coverage.shape[1]) + 0.5,
        rows.start + np.arange(coverage.shape[0]) + 0.5,
    )
    return _Stencil((rows, columns), coverage, x, y, full_area, radius)


def _clutter(rng: np.random.Generator, height: int, width: int) -> _Stencil:
    """Something that is no object: a long bar or a blot with a wavy outline."""
    shape = _bar(rng.uniform(0.02, 0.08)) if rng.random() < 0.5 else _blot(rng)
    radius = float(np.exp(rng.uniform(*np.log((15.0, 90.0)))))
    center = rng.uniform(0, width), rng.uniform(0, height)
    return _stencil(shape, height, width, center, radius, rng.uniform(0, 2 * np.pi), 1.0)


def _bar(thickness: float) -> Shape:
    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return (abs(v) < thickness) & (abs(u) < 1)

    return inside


def _blot(rng: np.random.Generator) -> Shape:
    waves = list(zip((2, 3, 5), rng.uniform(0.05, 0.25, 3), rng.uniform(0, 6.3, 3), strict=True))

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        angle = np.arctan2(v, u)
        return np.hypot(u, v) < 0.55 * (1 + sum(a * np.cos(k * angle + p) for k, a, p in waves))

    return inside


# ---- Painting --------------------------------------------------------------------------------


def _paint(
    rng: np.random.Generator, image: np.ndarray, stencil: _Stencil, texture: str, hue: float
) -> None:
    """Fills the stencil, in place, with a texture of one hue that stands out from `image`."""
    part = image[stencil.window]
    covered = stencil.coverage > 0
    if not covered.any():
        return
    around = part[covered].mean(axis=0)
    first = _color_away_from(rng, around, hue)
    second = _color_away_from(rng, around, hue) if rng.random() < 0.5 else first * 0.6
    blend = _texture(rng, texture, stencil.x, stencil.y, stencil.radius)
    fill = first + blend[..., None] * (second - first)
    part += stencil.coverage[..., None] * (fill - part)


def _texture(
    rng: np.random.Generator, kind: str, x: np.ndarray, y: np.ndarray, radius: float
) -> np.ndarray:
    """How far each pixel leans to the second color, 0 to 1; x and y in pixels."""
    period = max(4.0, radius * rng.uniform(0.3, 0.8))
    phase = rng.uniform(0, 2 * np.pi)
    wave_x, wave_y = np.sin(2 * np.pi * x / period + phase), np.sin(2 * np.pi * y / period)
    if kind == "plain":
        return np.zeros_like(x)
    if kind == "gradient":
        return np.clip(0.5 + 0.5 * x / radius, 0, 1)
    if kind == "stripes":
        return _soft_step(wave_x, period)
    if kind == "checks":
        return _soft_step(wave_x * wave_y, period)
    if kind == "dots":
        return _soft_step(wave_x + wave_y - 0.8, period)
    return _smooth_noise(rng, *x.shape, cell=rng.uniform(2, 6))


def _soft_step(wave: np.ndarray, period: float) -> np.ndarray:
    """0 below zero and 1 above, with an edge about a pixel wide for a wave of that period."""
    return np.clip(0.5 + wave * period / (2 * np.pi), 0, 1)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A gradient, clouds, or a faint pattern between two colors; float, (H, W, 3)."""
    first = rng.uniform(20, 235, 3)
    second = first + rng.uniform(-90, 90, 3)
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.arange(width) - width / 2, np.arange(height) - height / 2)
    along = (x * np.cos(angle) + y * np.sin(angle)) / width
    across = y * np.cos(angle) - x * np.sin(angle)
    blend = 0.5 + along
    kind = rng.choice(["gradient", "clouds", "pattern"])
    if kind == "clouds":
        blend = sum(
            weight * _smooth_noise(rng, height, width, cell)
            for weight, cell in ((0.6, rng.uniform(30, 80)), (0.4, rng.uniform(8, 20)))
        )
    elif kind == "pattern":
        pattern = _texture(
            rng, rng.choice(TEXTURES), along * width, across, radius=rng.uniform(15, 40)
        )
        blend = 0.6 * blend + rng.uniform(0.1, 0.4) * pattern
    return np.clip(first + blend[..., None] * (second - first), 0, 255)


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The light, the lens and the sensor, all of which differ from image to image; to uint8."""
    height, width = image.shape[:2]
    if rng.random() < 0.3:
        image = _blur(image)
    slope = rng.uniform(-0.25, 0.25, 2)
    light = 1 + np.linspace(-1, 1, height)[:, None] * slope[0]
    light = light + np.linspace(-1, 1, width)[None, :] * slope[1]
    cast = np.exp(rng.normal(0, 0.12, 3))
    contrast, brightness = rng.uniform(0.6, 1.2), rng.uniform(-35, 35)
    image = 127 + contrast * (image * light[..., None] * cast - 127) + brightness
    image = image + rng.normal(0, rng.uniform(0.5, 3.5), (height, width, 1))
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _blur(image: np.ndarray) -> np.ndarray:
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Noise that changes over about `cell` pixels, between 0 and 1; (H, W)."""
    coarse = rng.random((int(height / cell) + 2, int(width / cell) + 2), dtype=np.float32)
    fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(fine, dtype=float), 0, 1)


def _color_away_from(rng: np.random.Generator, color: np.ndarray, hue: float) -> np.ndarray:
    """Of ten random colors of a hue, RGB from 0 to 255, the one farthest from the given one."""
    chosen = [
        np.multiply(255, hsv_to_rgb(hue, rng.uniform(0.4, 1), rng.uniform(0.3, 1)))
        for _ in range(10)
    ]
    return max(chosen, key=lambda candidate: np.linalg.norm(candidate - color))
