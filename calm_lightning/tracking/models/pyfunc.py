"""A trained model as MLflow's python_function: text in, text out.

MLflow finds a model in a file that calls `mlflow.models.set_model` ("models from code"), so nothing is ever pickled.
That file is `calm_lightning/programs/pyfunc.py`; it is copied into every logged model and calls `serve` here.
Both are kept working for models that were logged by earlier versions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from calm_lightning.errors import SamplingError

FILES = "run"
"""Name of the artifact that holds the files of the run directory."""
INPUT, OUTPUT = "prompt", "completion"
"""Columns of texts."""
_UNNAMED = (INPUT, "0")


TextModel = Callable[[Sequence[str], Mapping[str, Any]], list[str]]
"""An opened model: returns one text for each text, given what the model's signature has as parameters."""


class ServedModel(PythonModel):
    """What MLflow loads and asks.

    Args:
        open_model: Opens the model whose files are in a directory.
    """

    def __init__(self, open_model: Callable[[Path], TextModel]) -> None:
        self._open = open_model
        self._model: TextModel | None = None
        self._drawing = threading.Lock()  # torch has one state of random numbers, and servers have several threads

    def load_context(self, context: Any) -> None:
        """Open the model.

        Args:
            context: MLflow's: where the model's files are.

        Raises:
            CheckpointError: They are damaged.
        """
        self._model = self._open(Path(context.artifacts[FILES]))

    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        """Continue prompts, or restore texts.

        Args:
            context: MLflow's; not needed any more.
            model_input: Texts, in a column called "prompt" or without a name. MLflow makes that of lists of strings,
                too, and asks for this annotation: with others it complains whenever a model is loaded.
            params: What the signature has as parameters; what is missing has its default.

        Returns:
            One text for each, without the prompt.

        Raises:
            SamplingError: The model, a prompt or a parameter does not allow it.
        """
        assert self._model is not None, "MLflow calls load_context first"
        with self._drawing:
            return self._model(_texts(model_input), params or {})


def serve(open_model: Callable[[Path], TextModel]) -> None:
    """Tell MLflow what the file is that it is loading.

    Args:
        open_model: As `ServedModel`.
    """
    set_model(ServedModel(open_model))


def _texts(model_input: Any) -> list[str]:
    """Return the texts of a list or of the only column of a data frame.

    Raises:
        SamplingError: The column has another name: then it may hold anything.
    """
    columns = getattr(model_input, "columns", None)
    if columns is None:
        return [str(text) for text in ([model_input] if isinstance(model_input, str) else model_input)]
    if str(columns[0]) not in _UNNAMED:
        raise SamplingError(
            f"the first column of the data frame is {columns[0]!r}: give one column named {INPUT!r}, or a list of texts"
        )
    return [str(text) for text in model_input.iloc[:, 0]]
