"""What a table of predictions says."""

import pandas as pd
from sklearn import metrics


def confusion_matrix(predictions: pd.DataFrame) -> pd.DataFrame:
    """Count the photos of each class by what they were taken for.

    Args:
        predictions: from `predict`.

    Returns:
        Shape (K, K), int; rows are the true class, columns the predicted one, both in the model's order.
    """
    names = [column.removeprefix("p_") for column in predictions.columns if column.startswith("p_")]
    counts = metrics.confusion_matrix(predictions["target"], predictions["predicted"], labels=names)
    return pd.DataFrame(counts, index=pd.Index(names, name="true"), columns=pd.Index(names, name="predicted"))


def most_confused(predictions: pd.DataFrame) -> pd.DataFrame:
    """The pairs of classes that were mixed up, most often first.

    Returns:
        One row for each cell off the diagonal that is not 0: ``true``, ``predicted``, ``photos``.
    """
    wrong = predictions[predictions["target"] != predictions["predicted"]]
    pairs = wrong.groupby(["target", "predicted"]).size().rename("photos").reset_index()
    pairs = pairs.rename(columns={"target": "true"})
    return pairs.sort_values(["photos", "true", "predicted"], ascending=[False, True, True]).reset_index(drop=True)
