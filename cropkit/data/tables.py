"""CSV tables that people write: read as text, their lines known."""

import csv
import io
from pathlib import Path

import pandas as pd


def read_table(file: Path, data: bytes | None = None) -> tuple[pd.DataFrame, str]:
    """A CSV table, its rows by their line in the file, and its encoding.

    Everything stays text, since a class may be called "NA" or "007".

    Args:
        file: where it is.
        data: its content, where that is known.

    Raises:
        ValueError: if it is neither UTF-8 nor cp950, or a row is malformed; names the line.
    """
    data = file.read_bytes() if data is None else data
    for encoding in ("utf-8-sig", "cp950"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        break
    else:
        raise ValueError(f"{file}: is neither UTF-8 nor cp950. Save it as UTF-8.")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: dict[int, list[str]] = {}
    try:
        header = next((row for row in lines if row), [])
        for row in lines:
            if any(row[len(header) :]):  # a comma at the end is harmless
                raise csv.Error(f"{len(row)} fields, but the header has {len(header)}")
            if row:
                rows[lines.line_num] = [*row, *[""] * len(header)][: len(header)]
    except csv.Error as error:
        raise ValueError(f"{file}, line {lines.line_num}: is no row of a CSV table ({error}).") from error
    if not header or len(set(header)) < len(header):
        raise ValueError(f"{file}: its first line must name the columns, each once; it is {header}.")
    table = pd.DataFrame.from_dict(rows, orient="index", columns=header, dtype=str)
    return table, encoding.removesuffix("-sig")
