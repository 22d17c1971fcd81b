"""The steps of digits.py that compute, one process each: split, train and test.

They hand data on in files of the directory that they run in, and tell results by printing them.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.naive_bayes import MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import SVC

MODELS = {
    "svm": lambda setting: SVC(C=setting),
    "neighbours": lambda setting: KNeighborsClassifier(n_neighbors=int(setting)),
    "bayes": lambda setting: MultinomialNB(alpha=setting),
}
SCALINGS = {"none": "passthrough", "minmax": MinMaxScaler(), "standard": StandardScaler()}


def pipeline(model: str, scaling: str, setting: str) -> Any:
    """The scaling of the pixels and the model after it, not yet trained."""
    return make_pipeline(SCALINGS[scaling], MODELS[model](float(setting)))


def split() -> None:
    """Put a quarter of the digits away for the test."""
    Path("killed").unlink(missing_ok=True)
    images, digits = load_digits(return_X_y=True)
    parts = train_test_split(images, digits, test_size=0.25, stratify=digits, random_state=1)
    for name, pixels, truth in (("train", parts[0], parts[2]), ("test", parts[1], parts[3])):
        np.savez(f"{name}.npz", pixels=pixels, truth=truth)
    print(f"{len(digits)} handwritten digits: {len(parts[0])} to train with, {len(parts[1])} to test with")


def train(model: str, scaling: str, setting: str) -> None:
    """Print the mean accuracy in five-fold cross-validation."""
    try:  # an accident, staged: whichever training comes first is killed, as if memory had run out
        Path("killed").touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
    except FileExistsError:
        pass
    data = np.load("train.npz")
    accuracies = cross_val_score(
        pipeline(model, scaling, setting), data["pixels"], data["truth"], cv=5, error_score="raise"
    )
    print(accuracies.mean())


def test(model: str, scaling: str, setting: str) -> None:
    """Train on all training data, and write down what the model reads in the test data."""
    data, unseen = np.load("train.npz"), np.load("test.npz")
    trained = pipeline(model, scaling, setting).fit(data["pixels"], data["truth"])
    read = trained.predict(unseen["pixels"]).tolist()
    accuracy = float((read == unseen["truth"]).mean())
    result = {"model": model, "scaling": scaling, "setting": setting, "accuracy": accuracy, "read": read}
    Path("test.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    {"split": split, "train": train, "test": test}[sys.argv[1]](*sys.argv[2:])  # type: ignore[operator]
