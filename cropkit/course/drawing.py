"""Draw a sample of crop photos: 33 classes with the names of the AI CUP 2022 competition, offline, the same every time.

The pictures are drawn, not photographed: good enough to learn from, and alike where the real crops are alike.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 960, 720  # of the canvas
YELLOW = (255, 225, 0)
Colour = tuple[int, ...]

GREEN, YELLOWISH, UNRIPE = (70, 130, 50), (150, 165, 60), (120, 155, 75)


def _outline(half: np.ndarray, back: float = 0.0) -> np.ndarray:
    """A leaf of length and width 1, its rib on the real axis, from half widths at `T`.

    The lobes of a heart reach back past the stalk.
    """
    upper = T - back * np.exp(-(((T - 0.12) / 0.1) ** 2)) + 0.5j * half
    return np.concatenate([upper, upper[::-1].conj()])


T = np.linspace(0, 1, 13)
OUTLINES = {
    "oval": _outline(np.sin(np.pi * T)),
    "lance": _outline(np.sin(np.pi * T**0.7) * (1 - 0.3 * T)),
    "heart": _outline(np.sqrt(T) * (1 - T) * 2.4, back=0.18),
    "lobed": _outline(np.sin(np.pi * T) * (0.65 + 0.35 * np.abs(np.cos(2.5 * np.pi * T))) * 1.3),
    "frilly": _outline(np.sqrt(np.abs(np.sin(np.pi * T)))),
}


class Canvas:
    """A picture being drawn: lengths in pixels, angles in radians, 0 to the right and pi/2 up."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.horizon = 0
        self.image = Image.new("RGB", (WIDTH, HEIGHT))
        self.draw = ImageDraw.Draw(self.image)
        self.season = rng.uniform([0.85, 0.88, 0.75], [1.25, 1.1, 1.1]).tolist()  # from fresh to dry
        self.ripe = float(rng.uniform(0.15, 1))  # unripe fruit of all crops is green
        self.grown = rng.random() < 0.65  # young plants show no head, pod or flower yet

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def shade(self, colour: Colour, spread: float = 18) -> Colour:
        """The colour, a little lighter or darker and a little off."""
        light, *off = (self.rng.standard_normal(4) * spread).tolist()
        tint = self.season if colour[1] == max(colour) else (1.0, 1.0, 1.0)  # leaves, not fruit
        return tuple(int(min(max(c * t + light + o / 4, 0), 255)) for c, t, o in zip(colour, tint, off, strict=True))

    def ground(self, colour: Colour, *, sky: bool) -> None:
        """Soil, grass or water below, and a sky above if there is to be one."""
        self.horizon = int(self.between(0.15, 0.35) * HEIGHT) if sky else 0
        # Coarse, then smoothly enlarged: clods and tufts, not grains.
        rows = np.linspace(0, 1, HEIGHT // 8)[:, None, None]
        above = np.array(self.shade((165, 195, 225), 25)) + 40 * rows
        below = np.array(self.shade(colour)) * (0.75 + 0.35 * rows)
        rough = self.rng.normal(0, 14, (HEIGHT // 8, WIDTH // 8, 1))
        pixels = np.where(rows * HEIGHT < self.horizon, above + 0.2 * rough, below + rough)
        small = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        self.image.paste(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        if sky:  # trees far away
            for x in range(0, WIDTH, 36):
                self.blob(x, self.horizon, self.between(18, 45), self.between(9, 24), (75, 105, 75))

    def blob(self, x: float, y: float, rx: float, ry: float, colour: Colour, *, shiny: bool = False) -> None:
        """An ellipse with a darker lower edge."""
        fill = self.shade(colour, 10)
        dark = tuple(int(c * 0.65) for c in fill)
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=dark)
        self.draw.ellipse((x - rx, y - ry, x + rx * 0.86, y + ry * 0.84), fill=fill)
        if shiny:
            light = tuple(min(255, c + 70) for c in fill)
            self.draw.ellipse((x - rx * 0.5, y - ry * 0.6, x - rx * 0.1, y - ry * 0.2), fill=light)

    def leaf(
        self,
        x: float,
        y: float,
        length: float,
        width: float,
        angle: float,
        colour: Colour,
        *,
        shape: str = "oval",
    ) -> None:
        """One leaf from its stalk at (x, y); shapes: oval, lance, heart, lobed, frilly."""
        outline = OUTLINES[shape]
        if shape == "frilly":
            outline = outline.real + 1j * outline.imag * (1 + 0.22 * self.rng.standard_normal(len(outline)))
        cos, sin = math.cos(angle), -math.sin(angle)
        placed = complex(x, y) + complex(cos, sin) * (length * outline.real + 1j * width * outline.imag)
        fill = self.shade(colour)
        self.draw.polygon(placed.view(float).tolist(), fill=fill)
        rib = tuple(min(255, c + 28) for c in fill)
        tip = (x + 0.92 * length * cos, y + 0.92 * length * sin)
        self.draw.line([(x, y), tip], fill=rib, width=max(1, int(width / 14)))

    def stem(
        self, x: float, y: float, length: float, angle: float, width: float, colour: Colour, bend: float = 0.0
    ) -> tuple[float, float]:
        """A stem or blade from (x, y) that bends by `bend` radians on its way; returns where it ends."""
        points = [(x, y)]
        for step in range(6):
            here = angle + bend * step / 5
            x, y = x + length / 6 * math.cos(here), y - length / 6 * math.sin(here)
            points.append((x, y))
        self.draw.line(points, fill=self.shade(colour), width=max(1, round(width)), joint="curve")
        return x, y


Plant = Callable[[Canvas, float, float, float], None]  # canvas, x and y of its foot, size


def rosette(
    c: Canvas,
    x: float,
    y: float,
    s: float,
    *,
    leaf: Colour,
    shape: str,
    slim: float,
    heart: str,
    heart_colour: Colour,
) -> None:
    """Leaves round a heart, seen from above: the cabbages and the lettuce."""
    heart = heart if c.grown else "open"
    heart_colour = heart_colour if c.grown else tuple(v + 30 for v in leaf)
    for ring, (reach, count) in enumerate(((1.0, 9), (0.75, 8), (0.5, 7))):
        start = c.between(0, math.tau)
        for k in range(count):
            tone = tuple(int(v + 12 * ring) for v in leaf)
            c.leaf(x, y, s * reach, s * reach * slim, start + math.tau * k / count, tone, shape=shape)
    if heart == "curd":  # many small buds on a dome
        size = s * c.between(0.3, 0.42)
        for _ in range(70):
            r, a = size * math.sqrt(c.between(0, 1)), c.between(0, math.tau)
            c.blob(x + r * math.cos(a), y + 0.85 * r * math.sin(a), s * 0.07, s * 0.06, heart_colour)
    elif heart == "ball":  # leaves that close over one another
        size = s * c.between(0.34, 0.42)
        c.blob(x, y, size, size * 0.92, heart_colour)
        for _ in range(5):
            a = c.between(0, math.tau)
            c.draw.arc(
                (x - size, y - size, x + size, y + size),
                math.degrees(a),
                math.degrees(a) + 90,
                fill=c.shade(heart_colour, 30),
                width=3,
            )
    elif heart == "open":
        for _ in range(10):
            c.leaf(x, y, s * 0.36, s * 0.3, c.between(0, math.tau), heart_colour, shape=shape)


def tuft(
    c: Canvas,
    x: float,
    y: float,
    s: float,
    *,
    leaf: Colour,
    blades: int,
    thick: float,
    spread: float,
    bend: float,
    foot: str = "",
    foot_colour: Colour = (240, 240, 235),
    plume: bool = False,
) -> None:
    """Blades from one foot: onions, chives, grasses, asparagus fern."""
    if foot == "bulb":
        c.blob(x, y, s * 0.17, s * 0.14, foot_colour, shiny=True)
    for _ in range(blades):
        angle = math.pi / 2 + c.rng.normal(0, spread)
        length = s * c.between(0.7, 1.1)
        lean = bend * math.copysign(1, math.pi / 2 - angle)
        tip = c.stem(x + c.rng.normal(0, s * 0.05), y, length, angle, s * thick, leaf, -lean)
        if plume and c.between(0, 1) < 0.4:
            c.leaf(*tip, s * 0.22, s * 0.06, math.pi / 2, (190, 165, 120), shape="lance")
    if foot == "shank":
        for _ in range(blades // 3):
            c.stem(x + c.rng.normal(0, s * 0.05), y, s * 0.25, math.pi / 2, s * thick * 1.1, foot_colour)


def feather(
    c: Canvas,
    x: float,
    y: float,
    s: float,
    *,
    leaf: Colour,
    tilt: float,
    side: float,
    flower: Colour | None = None,
) -> None:
    """A stem with fine leaves to both sides; with flowers, a spike of them on top."""
    for _ in range(3):
        angle = math.pi / 2 + c.rng.normal(0, tilt)
        for k in range(18):
            d = s * (0.12 + 0.85 * k / 18)
            fx, fy = x + d * math.cos(angle), y - d * math.sin(angle)
            for sign in (-1, 1):
                c.leaf(fx, fy, s * side * (1.1 - k / 20), s * 0.045, angle + sign * 1.1, leaf, shape="lance")
        c.stem(x, y, s, angle, s * 0.025, (120, 140, 80))
        if flower and c.grown:
            for k in range(8):
                d = s * (0.75 + 0.05 * k)
                c.blob(
                    x + d * math.cos(angle) + c.rng.normal(0, s * 0.03),
                    y - d * math.sin(angle),
                    s * 0.04,
                    s * 0.035,
                    flower,
                )


def bush(
    c: Canvas,
    x: float,
    y: float,
    s: float,
    *,
    leaf: Colour,
    shape: str,
    size: float,
    slim: float,
    count: int = 26,
    dot: Colour | None = None,
    dots: int = 0,
    dot_size: tuple[float, float] = (0.03, 0.03),
) -> None:
    """A low round plant of many leaves, with pods or flowers as dots."""
    for k in range(count):
        r, a = s * 0.5 * math.sqrt(c.between(0, 1)), c.between(0, math.tau)
        tone = tuple(int(v * (0.7 + 0.3 * k / count)) for v in leaf)
        c.leaf(
            x + r * math.cos(a),
            y - s * 0.35 + 0.6 * r * math.sin(a),
            s * size,
            s * size * slim,
            c.between(0, math.tau),
            tone,
            shape=shape,
        )
    for _ in range(dots if c.grown else 0):
        assert dot is not None
        r, a = s * 0.45 * math.sqrt(c.between(0, 1)), c.between(0, math.tau)
        c.blob(x + r * math.cos(a), y - s * 0.35 + 0.6 * r * math.sin(a), s * dot_size[0], s * dot_size[1], dot)


def shields(c: Canvas, x: float, y: float, s: float, *, leaf: Colour) -> None:
    """Large heart-shaped leaves on long stalks: taro."""
    for k in range(6):
        angle = math.pi * (0.15 + 0.14 * k) + c.rng.normal(0, 0.08)
        tip = c.stem(x, y, s * c.between(0.55, 0.8), angle, s * 0.035, (140, 150, 110))
        c.leaf(*tip, s * 0.55, s * 0.48, angle - math.pi / 2 + c.rng.normal(0, 0.5), leaf, shape="heart")


def canopy(
    c: Canvas,
    x: float,
    y: float,
    s: float,
    *,
    leaf: Colour,
    length: float,
    slim: float,
    fruit: Colour,
    radius: float,
    tall: float = 1.0,
    cluster: int = 1,
    clusters: int = 5,
    bumpy: bool = False,
    shape: str = "oval",
    hang: bool = False,
) -> None:
    """The crown of a fruit tree or vine with fruit in it; (x, y) is the crown's lowest point."""
    cy = y - s * 0.55
    fruit = tuple(round(c.ripe * ripe + (1 - c.ripe) * green) for ripe, green in zip(fruit, UNRIPE, strict=True))
    for k in range(90):
        r, a = s * 0.6 * math.sqrt(c.between(0, 1)), c.between(0, math.tau)
        tone = tuple(int(v * (0.55 + 0.45 * k / 90)) for v in leaf)
        c.leaf(
            x + 1.2 * r * math.cos(a),
            cy + r * math.sin(a),
            s * length,
            s * length * slim,
            c.between(-2.6, -0.5),
            tone,
            shape=shape,
        )
    for _ in range(clusters):
        r, a = s * 0.45 * math.sqrt(c.between(0, 1)), c.between(0, math.tau)
        fx, fy = x + 1.1 * r * math.cos(a), cy + r * math.sin(a)
        for k in range(cluster):
            drop = s * radius * (0.9 * k**0.5 if hang else c.between(-1.6, 1.6) * cluster**0.25)
            ox = s * radius * c.between(-1.2, 1.2) * (cluster**0.35 if cluster > 1 else 0)
            c.blob(fx + ox, fy + drop, s * radius, s * radius * tall, fruit, shiny=not bumpy)
            for _ in range(6 if bumpy else 0):
                r2, a2 = s * radius * 0.7 * math.sqrt(c.between(0, 1)), c.between(0, math.tau)
                c.blob(
                    fx + ox + r2 * math.cos(a2),
                    fy + drop + r2 * math.sin(a2),
                    s * radius * 0.2,
                    s * radius * 0.2,
                    fruit,
                )


def palm(c: Canvas, x: float, y: float, s: float, *, leaf: Colour, fan: bool, fruit: Colour, fruit_size: float) -> None:
    """A bare trunk with a crown: betel nut (feathered fronds) and papaya (hand-shaped leaves)."""
    top = c.stem(x, y, s, math.pi / 2 + c.rng.normal(0, 0.04), s * (0.09 if fan else 0.06), (150, 140, 120))
    for k in range(8):
        c.draw.line([(x - s * 0.03, y - s * k / 8), (x + s * 0.03, y - s * k / 8)], fill=(110, 100, 85), width=2)
    for k in range(9):
        angle = -0.3 + (math.pi + 0.6) * k / 8 + c.rng.normal(0, 0.08)
        tip = c.stem(*top, s * 0.42, angle, s * 0.015, leaf, -0.9 * math.cos(angle))
        for j in range(7 if fan else 14):
            if fan:
                c.leaf(*tip, s * 0.24, s * 0.08, angle + (j - 3) * 0.5, leaf, shape="lobed")
            else:
                share = j / 14
                px, py = top[0] + (tip[0] - top[0]) * share, top[1] + (tip[1] - top[1]) * share
                for sign in (-1, 1):
                    c.leaf(px, py, s * 0.17, s * 0.02, angle + sign * 0.9, leaf, shape="lance")
    for _ in range(8):
        c.blob(
            top[0] + c.rng.normal(0, s * 0.06),
            top[1] + s * c.between(0.04, 0.22),
            s * fruit_size,
            s * fruit_size * 1.4,
            fruit,
            shiny=True,
        )


def bamboo(c: Canvas, x: float, y: float, s: float) -> None:
    """Culms with nodes, and shoots as cones between them."""
    for _ in range(5):
        cx, tone = x + c.rng.normal(0, s * 0.25), c.shade((120, 145, 60))
        c.draw.rectangle((cx - s * 0.025, y - s * 1.3, cx + s * 0.025, y), fill=tone)
        for k in range(7):
            c.draw.line(
                [(cx - s * 0.03, y - s * 0.19 * k), (cx + s * 0.03, y - s * 0.19 * k)],
                fill=(80, 95, 45),
                width=3,
            )
        for _ in range(9):
            c.leaf(
                cx,
                y - s * c.between(0.5, 1.3),
                s * 0.2,
                s * 0.035,
                c.between(-0.9, 4.0),
                (95, 140, 60),
                shape="lance",
            )
    for _ in range(3):
        cx = x + c.rng.normal(0, s * 0.3)
        for k in range(5):
            c.leaf(
                cx,
                y - s * 0.05 * k,
                s * (0.34 - 0.05 * k),
                s * 0.13,
                math.pi / 2 + (-1) ** k * 0.12,
                (125, 95, 55),
                shape="lance",
            )


def hedge(c: Canvas, x: float, y: float, s: float) -> None:
    """A clipped, dense bush with light young tips: tea."""
    c.blob(x, y - s * 0.25, s * 0.75, s * 0.35, (45, 85, 40))
    for _ in range(110):
        a, r = c.between(0, math.tau), math.sqrt(c.between(0, 1))
        young = c.between(0, 1) < 0.35
        c.leaf(
            x + 0.72 * s * r * math.cos(a),
            y - s * 0.25 + 0.33 * s * r * math.sin(a),
            s * 0.1,
            s * 0.045,
            c.between(0.4, 2.7),
            (150, 185, 70) if young else (50, 100, 45),
        )


# fmt: off
PLANTS: dict[str, tuple[str, Plant]] = {
    # ground and plant; crops that people mix up share a way of drawing and differ in a few numbers
    "asparagus": ("soil", partial(feather, leaf=(95, 150, 70), tilt=0.25, side=0.2)),
    "bambooshoots": ("litter", bamboo),
    "betel": ("grass", partial(palm, leaf=(60, 115, 50), fan=False, fruit=(200, 120, 40), fruit_size=0.025)),
    "broccoli": ("soil", partial(rosette, leaf=(76, 120, 84), shape="oval", slim=0.5, heart="curd",
        heart_colour=(85, 120, 75))),
    "cauliflower": ("soil", partial(rosette, leaf=(82, 126, 84), shape="oval", slim=0.5, heart="curd",
        heart_colour=(205, 205, 170))),
    "chinesecabbage": ("soil", partial(rosette, leaf=(128, 168, 80), shape="frilly", slim=0.58, heart="ball",
        heart_colour=(190, 210, 135))),
    "chinesechives": ("soil", partial(tuft, leaf=(66, 132, 66), blades=22, thick=0.032, spread=0.34, bend=0.55)),
    "custardapple": ("grass", partial(canopy, leaf=(75, 120, 60), length=0.2, slim=0.4, fruit=(150, 180, 95),
        radius=0.1, bumpy=True)),
    "grape": ("litter", partial(canopy, leaf=(90, 140, 60), length=0.24, slim=0.9, shape="lobed",
        fruit=(75, 45, 95), radius=0.035, cluster=22, clusters=4, hang=True)),
    "greenonion": ("soil", partial(tuft, leaf=(74, 138, 80), blades=14, thick=0.042, spread=0.26, bend=0.3,
        foot="shank")),
    "kale": ("soil", partial(rosette, leaf=(100, 146, 100), shape="oval", slim=0.66, heart="ball",
        heart_colour=(150, 190, 135))),
    "lemon": ("grass", partial(canopy, leaf=(60, 120, 50), length=0.15, slim=0.45, fruit=(215, 185, 60),
        radius=0.068, tall=1.3, clusters=8)),
    "lettuce": ("soil", partial(rosette, leaf=(136, 178, 80), shape="frilly", slim=0.66, heart="open",
        heart_colour=(185, 215, 115))),
    "litchi": ("grass", partial(canopy, leaf=(50, 105, 50), length=0.18, slim=0.35, fruit=(180, 80, 65),
        radius=0.036, cluster=9, clusters=5, bumpy=True)),
    "longan": ("grass", partial(canopy, leaf=(55, 105, 50), length=0.18, slim=0.35, fruit=(175, 125, 75),
        radius=0.034, cluster=10, clusters=5)),
    "loofah": ("litter", partial(canopy, leaf=(85, 140, 60), length=0.27, slim=0.95, shape="lobed",
        fruit=(110, 155, 70), radius=0.05, tall=4.0, clusters=4)),
    "mango": ("grass", partial(canopy, leaf=(50, 105, 45), length=0.27, slim=0.24, fruit=(205, 150, 60),
        radius=0.076, tall=1.35, clusters=6)),
    "onion": ("soil", partial(tuft, leaf=(78, 138, 82), blades=11, thick=0.045, spread=0.32, bend=0.4, foot="bulb",
        foot_colour=(205, 160, 105))),
    "papaya": ("grass", partial(palm, leaf=(80, 135, 55), fan=True, fruit=(125, 160, 60), fruit_size=0.055)),
    "passionfruit": ("litter", partial(canopy, leaf=(70, 130, 55), length=0.22, slim=0.85, shape="lobed",
        fruit=(95, 50, 70), radius=0.06, clusters=7)),
    "pear": ("grass", partial(canopy, leaf=(85, 130, 60), length=0.14, slim=0.6, fruit=(190, 160, 95),
        radius=0.085, tall=1.1, clusters=5)),
    "pennisetum": ("grass", partial(tuft, leaf=(110, 150, 70), blades=24, thick=0.03, spread=0.3, bend=0.5,
        plume=True)),
    "redbeans": ("soil", partial(bush, leaf=(88, 140, 60), shape="heart", size=0.26, slim=0.75, dot=(215, 190, 70),
        dots=6)),
    "roseapple": ("grass", partial(canopy, leaf=(70, 120, 60), length=0.2, slim=0.32, fruit=(200, 60, 85),
        radius=0.06, tall=1.35, cluster=3, clusters=5)),
    "sesbania": ("grass", partial(feather, leaf=(94, 145, 76), tilt=0.18, side=0.25, flower=(235, 205, 75))),
    "soybeans": ("soil", partial(bush, leaf=(85, 140, 60), shape="oval", size=0.26, slim=0.65, dot=(140, 165, 75),
        dots=12, dot_size=(0.02, 0.06))),
    "sunhemp": ("grass", partial(feather, leaf=(90, 140, 74), tilt=0.14, side=0.2, flower=(242, 212, 55))),
    "sweetpotato": ("soil", partial(bush, leaf=(75, 125, 65), shape="heart", size=0.24, slim=1.0, count=34,
        dot=(180, 130, 175), dots=2, dot_size=(0.05, 0.045))),
    "taro": ("water", partial(shields, leaf=(85, 140, 75))),
    "tea": ("soil", hedge),
    "waterbamboo": ("water", partial(tuft, leaf=(115, 160, 75), blades=18, thick=0.04, spread=0.16, bend=0.2)),
}
# fmt: on
GROUNDS = {"soil": (125, 98, 70), "grass": (105, 125, 65), "litter": (115, 100, 65), "water": (105, 115, 105)}
CLASSES = tuple(sorted([*PLANTS, "greenhouse", "others"]))


def _plant_scene(c: Canvas, name: str) -> None:
    """One crop, either close up among its neighbours or as rows in a field."""
    ground, plant = PLANTS[name]
    close = c.between(0, 1) < 0.6
    c.ground(GROUNDS[ground], sky=not close or c.between(0, 1) < 0.3)
    rosette_like = name in ("broccoli", "cauliflower", "chinesecabbage", "kale", "lettuce")
    if close:
        size = c.between(0.62, 0.95) * HEIGHT * (0.5 if rosette_like else 1)
        for dx, dy, scale in ((-0.45, -0.18, 0.7), (0.45, -0.15, 0.7), (0, 0, 1)):
            x = WIDTH * (0.5 + dx + c.rng.normal(0, 0.05))
            y = HEIGHT * ((0.55 if rosette_like else 0.95) + dy + c.rng.normal(0, 0.04))
            plant(c, x, y, size * scale)
        return
    rows = 4 if ground == "grass" else 5
    for k in range(rows):  # far to near
        near = (k + 1) / rows
        y = c.horizon + (HEIGHT * 0.97 - c.horizon) * near**1.3
        size = HEIGHT * (0.1 + 0.3 * near) * (0.55 if rosette_like else 1)
        step = size * (0.8 if ground == "soil" else 1.1)
        x = -c.between(0, step)
        while x < WIDTH + step:
            plant(c, x, y + c.rng.normal(0, size * 0.04), size * c.between(0.85, 1.15))
            x += step * c.between(0.85, 1.2)


def _greenhouse_scene(c: Canvas) -> None:
    """Hoops and panes over beds, from outside or from within."""
    c.ground(GROUNDS["soil"], sky=True)
    inside = c.between(0, 1) < 0.4
    base, frame = HEIGHT * c.between(0.7, 0.9), c.shade((170, 175, 175))
    for k in range(1 if inside else int(c.between(1, 4))):
        width = WIDTH * (1.3 if inside else c.between(0.45, 0.8))
        x0 = -0.15 * WIDTH if inside else WIDTH * c.between(-0.1, 0.5)
        height = HEIGHT * (1.1 if inside else c.between(0.35, 0.55))
        box = (x0, base - height + 30 * k, x0 + width, base + height)
        c.draw.pieslice(box, 180, 360, fill=c.shade((205, 215, 215), 14))
        for j in range(9):
            inset = width * 0.055 * j
            c.draw.arc((box[0] + inset, box[1] + inset * 0.6, box[2] - inset, box[3]), 180, 360, fill=frame, width=3)
        for j in range(8):
            x = x0 + width * (j + 0.5) / 8
            c.draw.line([(x, base), (x, base - height * 0.8 * math.sin(math.pi * (j + 0.5) / 8))], fill=frame, width=3)
    for _ in range(20 if inside else 6):
        bush(
            c,
            c.between(0, WIDTH),
            HEIGHT * c.between(0.9, 1.02),
            HEIGHT * 0.14,
            leaf=GREEN,
            shape="oval",
            size=0.3,
            slim=0.6,
        )


def _other_scene(c: Canvas) -> None:
    """No crop: a house, a road, a pond, or weeds."""
    c.ground(GROUNDS[("soil", "grass", "water")[int(c.between(0, 3))]], sky=True)
    kind = int(c.between(0, 3))
    if kind == 0:
        for _ in range(int(c.between(1, 4))):
            x, w, h = c.between(0, WIDTH * 0.8), c.between(135, 360), c.between(135, 285)
            foot = c.between(c.horizon + 60, HEIGHT * 0.8)
            c.draw.rectangle((x, foot - h, x + w, foot), fill=c.shade((185, 175, 160), 25))
            c.draw.polygon(
                [(x - 18, foot - h), (x + w / 2, foot - h * 1.4), (x + w + 18, foot - h)],
                fill=c.shade((140, 70, 55)),
            )
            for k in range(3):
                c.draw.rectangle(
                    (x + w * (0.1 + 0.3 * k), foot - h * 0.7, x + w * (0.28 + 0.3 * k), foot - h * 0.4),
                    fill=(70, 85, 100),
                )
    elif kind == 1:
        mid, far = WIDTH * c.between(0.3, 0.7), c.between(15, 38)
        c.draw.polygon(
            [(mid - far, c.horizon), (mid + far, c.horizon), (WIDTH * 0.95, HEIGHT), (WIDTH * 0.05, HEIGHT)],
            fill=c.shade((120, 120, 122)),
        )
        c.draw.line([(mid, c.horizon), (WIDTH / 2, HEIGHT)], fill=(225, 225, 210), width=7)
    for _ in range(14):
        tuft(
            c,
            c.between(0, WIDTH),
            c.between(c.horizon + 45, HEIGHT),
            c.between(30, 90),
            leaf=YELLOWISH,
            blades=7,
            thick=0.05,
            spread=0.5,
            bend=0.6,
        )


class Photo(NamedTuple):
    """A drawn photo: the upright picture, and its target in pixels from the centre, x right and y up."""

    image: Image.Image
    target: tuple[int, int]


def draw_photo(name: str, seed: int, index: int, *, size: tuple[int, int] = (640, 480), target: bool = True) -> Photo:
    """Draw one photo of a class; the same arguments give the same pixels.

    Args:
        name: one of `CLASSES`.
        seed: the sample's seed.
        index: number of the photo in its class.
        size: width and height in pixels; may be upright.
        target: False for bare ground without crop or crosshair; the photo's target is then (0, 0).
    """
    rng = np.random.default_rng([seed, CLASSES.index(name), index])
    c = Canvas(rng)
    if not target:
        c.ground(GROUNDS[PLANTS[name][0]] if name in PLANTS else GROUNDS["soil"], sky=True)
    elif name == "greenhouse":
        _greenhouse_scene(c)
    elif name == "others":
        _other_scene(c)
    else:
        _plant_scene(c, name)
    image = _as_photographed(c.image, rng, size)
    if not target:
        return Photo(image, (0, 0))
    # Most targets lie near the centre, one in five far from it.
    spread = 0.25 if rng.random() < 0.2 else 0.04
    x, y = (int(np.clip(rng.normal(0, spread), -0.4, 0.4) * side) for side in size)
    x = x or 1  # (0, 0) would say that none is recorded
    _crosshair(image, size[0] // 2 + x, size[1] // 2 - y)
    return Photo(image, (x, y))


def _as_photographed(image: Image.Image, rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Another distance, a tilted camera, other light, blur and noise: what makes photos of one crop differ."""
    angle = math.radians(float(rng.normal(0, 6)))
    scale = float(rng.uniform(0.4, 0.8)) * min(WIDTH / size[0], HEIGHT / size[1])  # of the canvas, for a pixel
    mx = WIDTH / 2 + (WIDTH - size[0] * scale) * rng.uniform(-0.25, 0.25)
    my = HEIGHT / 2 + (HEIGHT - size[1] * scale) * rng.uniform(-0.25, 0.25)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    x0, y0 = mx - (cos * size[0] - sin * size[1]) / 2, my - (sin * size[0] + cos * size[1]) / 2
    image = image.transform(size, Image.Transform.AFFINE, (cos, -sin, x0, sin, cos, y0), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.filter(ImageFilter.GaussianBlur(float(rng.choice([0.7, 1.5, 3.0, 5.0])) * size[0] / 640))
    light = rng.uniform(0.5, 1.3) * rng.uniform([0.85, 0.9, 0.8], [1.2, 1.05, 1.15])
    noise = rng.standard_normal((size[1], size[0], 1), dtype=np.float32) * rng.uniform(1, 5)
    lit = np.asarray(image, dtype=np.float32) * light.astype(np.float32) + np.float32(rng.uniform(0, 40)) + noise
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8))


def _crosshair(image: Image.Image, x: int, y: int) -> None:
    """Burn in the yellow ring that marks what was looked at."""
    draw, radius, width = ImageDraw.Draw(image), max(image.size) // 40, max(2, max(image.size) // 220)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=YELLOW, width=width)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        start = (x + dx * radius * 0.6, y + dy * radius * 0.6)
        draw.line([start, (x + dx * radius * 1.5, y + dy * radius * 1.5)], fill=YELLOW, width=width)
