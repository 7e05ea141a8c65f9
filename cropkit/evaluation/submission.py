"""The file that a competition is given: one row a test photo, checked before it is written."""

import os
from pathlib import Path, PurePosixPath

import pandas as pd

from cropkit.data.files import replace_text
from cropkit.data.tables import read_table
from cropkit.evaluation.metrics import classes_of

COLUMNS = ["filename", "label"]


def write_submission(
    predictions: pd.DataFrame, template: str | os.PathLike[str], path: str | os.PathLike[str]
) -> pd.DataFrame:
    """Write a competition's submission: the rows of its template, in its order, with the predicted classes.

    A photo's row is found by its path, or by its file name where the template holds only names. Nothing is written
    unless each row has its answer, and each answer its row.

    Args:
        predictions: of the test photos, from `predict` or `average`.
        template: the competition's sample submission, a CSV table of ``filename`` and ``label``. Its labels may be
            empty; those that are not must be classes of the model.
        path: the file to write; it is replaced as a whole or stays as it was.

    Returns:
        What was written: ``filename``, ``label``.

    Raises:
        FileNotFoundError: if there is no template.
        ValueError: if the template is none, the photos are not the same, one could not be read, or the model names
            other classes than the competition; says which row.
        OSError: if the file cannot be written.

    Example:
        >>> _ = Path("template.csv").write_text("filename,label\\n2.jpg,\\n1.jpg,\\n")
        >>> answers = pd.DataFrame({"path": ["0/1.jpg", "1/2.jpg"], "predicted": ["taro", "tea"]})
        >>> answers = answers.assign(p_taro=[0.9, 0.2], p_tea=[0.1, 0.8])
        >>> write_submission(answers, "template.csv", "submission.csv")["label"].tolist()
        ['tea', 'taro']
    """
    template = Path(template).expanduser()
    if not template.is_file():
        raise FileNotFoundError(f"{template}: no such template. Name the competition's sample submission.")
    rows, _ = read_table(template)
    if list(rows.columns) != COLUMNS or rows.empty:
        raise ValueError(f"{template}: has {len(rows)} rows of {list(rows.columns)}, but must have rows of {COLUMNS}.")
    names = classes_of(predictions)
    answers = predictions.set_index("path")["predicted"]
    if not rows["filename"].str.contains("/").any():  # names without their folders
        answers.index = answers.index.map(lambda one: PurePosixPath(one).name)
    if answers.index.has_duplicates:
        twice = answers.index[answers.index.duplicated()][0]
        raise ValueError(f"two photos are called {twice!r}, so a row of {template} could be either. Give it paths.")
    for line, row in rows.iterrows():
        where = f"{template}, line {line}: {row['filename']!r}"
        if row["filename"] not in answers.index:
            raise ValueError(f"{where} is none of the {len(answers)} photos that were predicted. Name their folder.")
        if row["label"] and row["label"] not in names:
            raise ValueError(
                f"{where} has the label {row['label']!r}, which the model does not know: {', '.join(names)}."
            )
        if answers[row["filename"]] not in names:
            raise ValueError(f"{where} could not be read, so it has no answer. Copy it again, or give it a class.")
    if (twice := rows["filename"].duplicated()).any():
        raise ValueError(f"{template}, line {rows.index[twice][0]}: {rows['filename'][twice].iloc[0]!r} comes twice.")
    if lost := sorted(set(answers.index) - set(rows["filename"])):
        raise ValueError(f"{len(lost)} photos have no row in {template}, such as {lost[0]!r}. Predict its photos only.")
    table = pd.DataFrame({"filename": rows["filename"], "label": answers[rows["filename"]].to_numpy()})
    table = table.reset_index(drop=True)
    replace_text(Path(path).expanduser(), table.to_csv(index=False, lineterminator="\n"))
    return table
