"""Do two photos show the same picture? Hashes find the pairs that may, pixels decide."""

import functools
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from cropkit.data.photos import open_photo

NEAR = 16  # bits of 64 in which either perceptual hash of a pair may differ that is worth opening
TABLES, SAMPLE = 96, 16
FLAT = "0" * 16  # the dhash of a picture without an edge
SIDE = 48  # pixels of the small squares whose pixels are compared
MOST = 0.03 * SIDE  # how far an edge may be moved, in those pixels: a margin of 2 % was cut off, and a little more
DARK, BRIGHT = 15, 240  # nothing is compared beyond: a photo that was made brighter or sharper in contrast is clipped
FAR = 60  # levels (of 255) by which an eighth of a side differs only in other pictures, before any alignment
NOISE, BUSY = 1.9, 0.52  # levels by which copies differ: in any picture, and for each level between its neighbours
FLAT_LEVELS = 4  # standard deviation below which a picture shows too little to be recognised by
ALONG = np.linspace(0, 1, SIDE, dtype=np.float32)


def pictures_of(photos: pd.DataFrame) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Which photos show the same picture, and which pictures are next to the same.

    Args:
        photos: good photos of a catalog; `find_duplicates` says what counts as the same picture.

    Returns:
        A number for each photo, shape (N,): photos of equal bytes, or of equal hashes and like pixels, share it. And
        the pairs of numbers whose pixels agree too. They are not joined: what is like the one need not be like the
        other.

    Raises:
        BadPhoto: if a photo that must be opened is gone.
    """

    @functools.cache
    def square(row: int) -> np.ndarray:
        return small_square(open_photo(Path(photos["root"].iloc[row]) / photos["path"].iloc[row], min_side=2 * SIDE))

    number, of_bytes = np.empty(len(photos), int), {}
    looks: dict[str, list[int]] = {}  # of each pair of hashes, one photo of each picture
    hashes, flat = photos["phash"] + photos["dhash"], photos["dhash"] == FLAT
    for row, (sha, look, is_flat) in enumerate(zip(photos["sha256"], hashes, flat, strict=True)):
        if sha not in of_bytes:
            known = looks.setdefault(look, []) if not is_flat else []  # of pictures without an edge only bytes can tell
            of_bytes[sha] = next((one for one in known if same_picture(square(one), square(row))), row)
            if of_bytes[sha] == row:
                known.append(row)
        number[row] = of_bytes[sha]
    distinct = list(looks)
    candidates = [pair for known in looks.values() for pair in itertools.combinations(known, 2)]
    for one, other in zip(*_near_pairs(pd.Index(distinct)), strict=True):
        candidates += itertools.product(looks[distinct[one]], looks[distinct[other]])
    return number, [(a, b) for a, b in candidates if same_picture(square(a), square(b))]


def _near_pairs(hashes: pd.Index) -> tuple[np.ndarray, ...]:
    """Pairs of places of hashes (hex digits, all different) that are near each other.

    Sampling bits (Indyk and Motwani, STOC 1998): two near hashes agree in most bits, so in some of `TABLES` random
    choices of `SAMPLE` bits they agree wholly, and only those that do are compared.
    """
    if not len(hashes):
        return np.empty(0, int), np.empty(0, int)
    words = np.array([[int(h[k : k + 16], 16) for k in range(0, len(h), 16)] for h in hashes], dtype=np.uint64)
    bits = np.unpackbits(words.view(np.uint8), axis=1)
    allowed = NEAR if words.shape[1] > 1 else NEAR // 2  # one hash alone proves less
    rng = np.random.default_rng(0)
    pairs = [np.empty((2, 0), int)]
    for _ in range(TABLES):
        chosen = rng.choice(bits.shape[1], SAMPLE, replace=False)
        keys = bits[:, chosen] @ (1 << np.arange(SAMPLE))
        order = np.argsort(keys, kind="stable")
        keys, one, step = keys[order], np.arange(len(order)), 1
        while len(one):  # each with the next of the same key, then with the one after that, ...
            one = one[one + step < len(keys)]
            one = one[keys[one] == keys[one + step]]
            pair = np.stack([order[one], order[one + step]])
            differ = np.bitwise_count(words[pair[0]] ^ words[pair[1]])
            pairs.append(pair[:, (differ <= allowed).all(axis=1)])
            step += 1
        pairs = [np.unique(np.sort(np.concatenate(pairs, axis=1), axis=0), axis=1)]  # found before: once is enough
    return tuple(pairs[0])


def small_square(photo: Image.Image) -> np.ndarray:
    """A small copy for `same_picture`, uint8 (3, SIDE, SIDE), blurred so that it can be moved by part of a pixel."""
    square = photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(1))
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def same_picture(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two `small_square`s show one picture: saved again, a margin cut off, slightly brighter, but no more.

    The four edges of one are moved until it lies on the other (least squares, linear in the moves: Lucas and Kanade,
    IJCAI 1981), with one gain and one offset for all colours. Then the worst small block of any colour decides, since
    a white background would hide a small object in every mean. Flat pictures never are: only their bytes can tell.
    """
    a, b = one.astype(np.float32), other.astype(np.float32)
    if _worst_block(a - b, 8) > FAR:  # most candidates end here
        return False
    if a.mean() > b.mean():
        a, b = b, a  # only the brighter one is burnt out
    if np.clip(b, DARK, BRIGHT).std(axis=(1, 2)).max() < FLAT_LEVELS:
        return False
    grey, wanted = a.mean(0), b.mean(0)[1:-1, 1:-1]
    sound = (b.max(0) < 250)[1:-1, 1:-1].ravel()  # not burnt out
    # Moves of the four edges, gain and offset stay where they are unless the picture says more than this.
    hold = np.diag(np.array([100, 100, 100, 100, 1e4, 10], np.float32))
    terms = np.ones((6, SIDE - 2, SIDE - 2), np.float32)
    rows = columns = np.eye(SIDE, dtype=np.float32)
    moves = np.zeros(4)
    for _ in range(3):
        moved = rows @ grey @ columns.T
        inner = terms[4] = moved[1:-1, 1:-1]
        dx, dy = (moved[1:-1, 2:] - moved[1:-1, :-2]) / 2, (moved[2:, 1:-1] - moved[:-2, 1:-1]) / 2
        terms[1], terms[3] = dx * ALONG[1:-1], dy * ALONG[1:-1, None]  # the last column's move, and the last row's
        terms[0], terms[2] = dx - terms[1], dy - terms[3]
        flat = terms.reshape(6, -1)
        weighed = flat * sound
        step = np.linalg.solve(weighed @ flat.T + hold, weighed @ (wanted - inner).ravel())
        moves = np.clip(moves + step[:4], -MOST, MOST)
        columns, rows = _stretch(*moves[:2]), _stretch(*moves[2:])
    gain, offset = np.clip(1 + step[4], 0.85, 1.2), np.clip(step[5], -30, 30)  # no more than a slight change
    fitted = gain * (rows @ a @ columns.T) + offset
    difference = np.clip(fitted, DARK, BRIGHT) - np.clip(b, DARK, BRIGHT)
    busy = np.abs(dx).mean() + np.abs(dy).mean()  # fine detail never lies on itself exactly
    return bool(_worst_block(difference[:, 2:-2, 2:-2], 4) <= NOISE + BUSY * busy)  # the border may have been cut off


def _stretch(first: float, last: float) -> np.ndarray:
    """The matrix that reads a line of pixels with its two ends moved, linearly between pixels."""
    at = np.clip(np.arange(SIDE) + first + (last - first) * ALONG, 0, SIDE - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(SIDE)), dtype=np.float32)


def _worst_block(difference: np.ndarray, size: int) -> float:
    """The largest mean, of any colour and either sign, of a block of size x size pixels."""
    count = difference.shape[1] // size
    return float(np.abs(difference.reshape(3, count, size, count, size).mean(axis=(2, 4))).max())
