"""What a learner predicts before a result is shown: checked when the cell runs, and counted."""

from collections.abc import Mapping

LETTERS = ("a", "b", "c", "d", "e")
_was_right: dict[str, bool] = {}  # by the reason that the question gives: a cell that runs twice counts once


def answer(prediction: str, right: str, why: str, *, hints: Mapping[str, str] | None = None) -> None:
    """Say whether a prediction is right, and why. A prediction that is still ``"?"`` gets no remark.

    Args:
        prediction: the learner's letter, or ``"?"``.
        right: the letter that holds; computed from the cell's results where these can differ.
        why: one sentence; another one for each question of a notebook.
        hints: by wrong letters, what is said instead of the right one, so that one can think again.

    Raises:
        ValueError: if `right` is no letter: the notebook is wrong, not the learner.

    Example:
        >>> answer("A", "a", "A pixel has three numbers.")
        Right, a: A pixel has three numbers.
        >>> answer("?", "a", "A pixel has three numbers.")
    """
    if right not in LETTERS:
        raise ValueError(f"the right answer is {right!r}, but must be one of {', '.join(LETTERS)}.")
    said = prediction.strip(" ().").lower()
    if said in ("", "?"):
        return
    if said not in LETTERS:
        print(
            f'{prediction!r} is no letter of the question. Write one, such as prediction = "a", and run the cell again.'
        )
        return
    _was_right[why] = said == right
    if said != right and said in (hints or {}):
        print(f"Not {said}: {(hints or {})[said]}")
    else:
        print(f"{f'Right, {right}' if said == right else f'Not {said}, but {right}'}: {why}")


def score() -> str:
    """How many predictions of this notebook were right so far.

    Example:
        >>> answer("b", "a", "A photo of three colours has three planes.")
        Not b, but a: A photo of three colours has three planes.
        >>> score().startswith("Predictions written down: ")
        True
    """
    if not _was_right:
        return "No prediction was written down. Try it next time: a wrong guess is remembered better than a right text."
    return f"Predictions written down: {len(_was_right)}. Right: {sum(_was_right.values())}."
