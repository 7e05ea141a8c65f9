"""What pages for a notebook are made of: photos as data addresses, and names that are safe in HTML."""

import base64
import html
import io
from pathlib import Path

from cropkit.data.crops import CHINESE
from cropkit.data.photos import BadPhoto, contain, open_photo


def picture(path: Path, side: int, quality: int) -> str:
    """A photo of at most `side` pixels as a data address (JPEG), or the reason why there is none."""
    try:
        photo = contain(open_photo(path.expanduser(), min_side=side), side)
    except BadPhoto as error:
        return text(error.reason)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def img(address: str, side: int, alt: str) -> str:
    """What `picture` gave as an element; a reason stays as it is."""
    if not address.startswith("data:"):
        return address
    return f'<img src="{address}" alt="{text(alt)}" style="max-width:{side}px;margin:0px">'


def text(value: object) -> str:
    """Escaped for HTML; bytes of a file's name that are no text become question marks."""
    return html.escape(str(value).encode("utf-8", "replace").decode())


def both(name: str) -> str:
    """A class's name, with its Chinese one where that is known."""
    return f"{name} {CHINESE[name]}" if name in CHINESE else name
