"""How well are wrong labels found? `find_label_errors` against plain loss and cleanlab, where the wrong ones are known.

    pip install cleanlab
    python benchmarks/label_errors.py <folder of photos> [seed ...]

The sample: its own answer key. The folder: 5 % of the labels flipped, at random or to the class that a head takes the
photo's class for most often, by three seeds other than those by which the ranking was chosen. Last, the 20 most
doubtful photos of the folder as it is. With seeds given, the folder alone.
"""

import sys
import tempfile
import time

import numpy as np
import pandas as pd
from cleanlab.rank import get_label_quality_scores
from machine import machine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from threadpoolctl import threadpool_limits

import cropkit
from cropkit.course.fetch import data_home
from cropkit.course.sample import make_sample, true_labels
from cropkit.data import good_photos
from cropkit.evaluation.label_errors import BACKBONE, C, _features

SHARE, SEEDS = 0.05, (10, 11, 12)


def heads() -> LogisticRegression:
    return LogisticRegression(C=C, max_iter=300, tol=1e-3)


def rankings(catalog: pd.DataFrame, model: object, cache: str) -> dict[str, pd.Series]:
    """Doubt of each photo by each method, in the catalog's order."""
    names = cropkit.class_names(catalog)
    start = time.perf_counter()
    ours = cropkit.find_label_errors(catalog, model=model, cache=cache).set_index("path")["score"]
    print(f"find_label_errors: {time.perf_counter() - start:.0f} s for {len(catalog)} photos", flush=True)
    vectors, targets = _features(catalog, names, model, cache)
    rows = np.arange(len(targets))
    with threadpool_limits(1, user_api="blas"):
        seen = heads().fit(vectors, targets).predict_proba(vectors)
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        unseen = cross_val_predict(heads(), vectors, targets, cv=folds, method="predict_proba")
    return {
        "loss of a head that saw the photo": pd.Series(-np.log(seen[rows, targets])),
        "cleanlab, self confidence": pd.Series(-get_label_quality_scores(targets, unseen, method="self_confidence")),
        "cleanlab, normalized margin": pd.Series(
            -get_label_quality_scores(targets, unseen, method="normalized_margin")
        ),
        "find_label_errors": catalog["path"].map(ours),
    }


def score(wrong: np.ndarray, doubts: dict[str, pd.Series]) -> pd.DataFrame:
    """Average precision, and the share of wrong labels among the first k, k their number and half of it."""
    rows = []
    for name, doubt in doubts.items():
        order = np.argsort(-doubt.to_numpy(), kind="stable")
        row = {"ranking": name, "average precision": average_precision_score(wrong, doubt)}
        for k in (wrong.sum() // 2, wrong.sum()):
            row[f"precision at {k}"] = wrong[order[:k]].mean()
        rows.append(row)
    return pd.DataFrame(rows).set_index("ranking")


def flipped(catalog: pd.DataFrame, similar: dict[str, str] | None, seed: int) -> pd.DataFrame:
    rng, labels = np.random.default_rng(seed), catalog["label"].to_numpy().copy()
    names = sorted(set(labels))
    for row in rng.choice(len(labels), round(SHARE * len(labels)), replace=False):
        others = [name for name in names if name != labels[row]]
        labels[row] = rng.choice(others) if similar is None else similar[labels[row]]
    return catalog.assign(label=labels)


def planted(model: object, cache: str) -> None:
    """The wrong labels of the sample's answer key."""
    sample = make_sample(data_home() / "sample")
    catalog, _ = cropkit.data.drop_leaks(good_photos(cropkit.scan(sample)))
    wrong = catalog["path"].isin(list(true_labels(sample))).to_numpy()
    print(f"\nthe sample: {wrong.sum()} of {len(catalog)} labels are wrong")
    print(score(wrong, rankings(catalog, model, cache)).round(3).to_string(), flush=True)


def flips(root: str, model: object, cache: str, seeds: tuple[int, ...]) -> None:
    """Labels of a folder, flipped at random or to the class that each is taken for most often."""
    catalog = good_photos(cropkit.scan(root))
    names = cropkit.class_names(catalog)
    vectors, targets = _features(catalog, names, model, cache)
    with threadpool_limits(1, user_api="blas"):
        told = cross_val_predict(heads(), vectors, targets, cv=5, method="predict_proba")
    mean = pd.DataFrame(told, columns=names).groupby(catalog["label"].to_numpy()).mean().to_numpy().copy()
    np.fill_diagonal(mean, 0)
    similar = {name: names[k] for name, k in zip(names, mean.argmax(axis=1), strict=True)}
    for kind, to in (("at random", None), ("to the most similar class", similar)):
        tables = []
        for seed in seeds:
            one = flipped(catalog, to, seed)
            tables.append(score((one["label"] != catalog["label"]).to_numpy(), rankings(one, model, cache)))
        print(f"\n{SHARE:.0%} flipped {kind}, mean over seeds {seeds}")
        print((sum(tables) / len(tables)).round(3).to_string(), flush=True)
    print("\nas it is, the first 20")
    suspects = cropkit.find_label_errors(catalog, model=model, cache=cache)
    print(suspects[["path", "label", "suggested", "score"]].head(20).round(2).to_string(index=False))


def main(root: str, *seeds: str) -> None:
    print(machine(), flush=True)
    model = cropkit.create_model(BACKBONE)
    with tempfile.TemporaryDirectory() as cache:
        if not seeds:
            planted(model, cache)
        flips(root, model, cache, tuple(map(int, seeds)) or SEEDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
