"""What do only the notebooks need? Their settings, the drawn sample, questions and drawings, and what they record."""

from cropkit.course.answers import answer, score
from cropkit.course.diagrams import draw_model, draw_road
from cropkit.course.records import keep_page, record
from cropkit.course.settings import (
    ARCH,
    CACHE,
    FAST,
    FOLDER,
    OUT,
    data_folder,
    load_catalog,
    runs_folder,
    sample_folder,
    some_photos,
)
