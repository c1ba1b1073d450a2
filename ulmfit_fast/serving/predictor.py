"""Predictions in the order of the texts, in memory that a chunk of them bounds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from ulmfit_fast.data.reading.corpus import Label, Source, is_text, read_texts
from ulmfit_fast.data.tokens.texts import BLOCK_CHARACTERS

__all__ = ["CHUNK_SIZE", "Prediction", "Predictor"]

CHUNK_SIZE = 1024
Probabilities = npt.NDArray[np.float32]


class Prediction(NamedTuple):
    """What a classifier says of one text.

    Attributes:
        label: the most probable label.
        probability: its probability.
        probabilities: of each class, in the order of the model's `labels`.
    """

    label: Label
    probability: float
    probabilities: tuple[float, ...]


class Predictor:
    """What can be asked of anything that classifies lists of texts: one model, or several.

    A text's probabilities do not depend on the texts beside it, nor on `batch_size` and
    `chunk_size`, but for the rounding of products of other sizes: below 1e-5 in float32. Only a
    model in int8 measures its texts together, see `quantize`.

    A string is a path where something of that name exists or it ends in .txt, .csv, .tsv, .xlsx,
    .jsonl or .parquet, with .gz behind it or without; any other string is one text.

    Attributes:
        labels: the classes, in the order of the probabilities.
    """

    labels: list[Label]

    def _require_classifier(self) -> None:
        """Raise if there is nothing that could classify."""
        raise NotImplementedError

    def _probabilities(self, texts: list[str], batch_size: int) -> Probabilities:
        """Return the probability of each class, `(N, C)`, for texts that fit into memory."""
        raise NotImplementedError

    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        texts: str,
        *,
        text_column: str = "text",
        delimiter: str | None = None,
        encoding: str | None = None,
        batch_size: int = 64,
    ) -> Label | list[Label]: ...

    @overload
    def predict(
        self,
        texts: Source,
        *,
        text_column: str = "text",
        delimiter: str | None = None,
        encoding: str | None = None,
        batch_size: int = 64,
    ) -> list[Label]: ...

    def predict(
        self,
        texts: Source,
        *,
        text_column: str = "text",
        delimiter: str | None = None,
        encoding: str | None = None,
        batch_size: int = 64,
    ) -> Label | list[Label]:
        """Return the most probable label of each text, in the order of the texts.

        Example:
            >>> import ulmfit_fast as uf
            >>> texts, labels = ["a fine film", "a dull evening"] * 20, ["good", "bad"] * 20
            >>> model = uf.ULMFiT(emb_size=8, hidden_size=16, num_layers=2, min_freq=1,
            ...                   progress=False)
            >>> _ = model.fit_classifier(texts, labels, epochs=4, lr=0.05, batch_size=8)
            >>> model.predict(["a dull film", "a fine evening"]), model.predict("so fine a film")
            (['bad', 'good'], 'good')

        Args:
            texts: what to classify, as `read_texts` takes it; or one text, see `Predictor`.
            text_column: column of a file or table.
            delimiter: of .csv and .tsv files, as for `data.read_texts`.
            encoding: of text files, as for `data.read_texts`.
            batch_size: texts at a time; the result does not depend on it.

        Returns:
            A label for each text, of the kind that the classifier was fitted on: str, int or bool;
            of one text its label, without a list.

        Raises:
            ValueError: if no classifier has been fitted, there are no texts, or a probability is
                not finite.
        """
        stream = self.predict_stream(
            texts,
            text_column=text_column,
            delimiter=delimiter,
            encoding=encoding,
            batch_size=batch_size,
        )
        found = [prediction.label for prediction in stream]
        return found[0] if is_text(texts) else found

    def predict_proba(
        self,
        texts: Source,
        *,
        text_column: str = "text",
        delimiter: str | None = None,
        encoding: str | None = None,
        batch_size: int = 64,
    ) -> Probabilities:
        """Return the probability of each class, classes in the order of `labels`.

        Args:
            texts: what to classify, as `read_texts` takes it; or one text, see `Predictor`.
            text_column: column of a file or table.
            delimiter: of .csv and .tsv files, as for `data.read_texts`.
            encoding: of text files, as for `data.read_texts`.
            batch_size: texts at a time; the result does not depend on it.

        Returns:
            float32, `(N, C)`; of one text `(C,)`.

        Raises:
            ValueError: if no classifier has been fitted, there are no texts, or a probability is
                not finite.
        """
        form = {"text_column": text_column, "delimiter": delimiter, "encoding": encoding}
        chunks = list(self._stream(texts, form, CHUNK_SIZE, batch_size))
        found = np.concatenate(chunks)  # (N, C)
        return found[0] if is_text(texts) else found

    def predict_stream(
        self,
        texts: Source,
        *,
        text_column: str = "text",
        delimiter: str | None = None,
        encoding: str | None = None,
        chunk_size: int = CHUNK_SIZE,
        batch_size: int = 64,
    ) -> Iterator[Prediction]:
        """Classify texts one chunk after the other, as they are read.

        Memory is bounded by a chunk and not by the number of texts, which may have no end. A chunk
        is read, sorted by length in batches, and answered before the next one is read.

        Example:
            >>> import ulmfit_fast as uf
            >>> texts, labels = ["a fine film", "a dull film"] * 20, ["good", "bad"] * 20
            >>> model = uf.ULMFiT(emb_size=8, hidden_size=16, num_layers=2, min_freq=1,
            ...                   progress=False)
            >>> _ = model.fit_classifier(texts, labels, epochs=1)
            >>> stream = model.predict_stream((text for text in texts), chunk_size=8)
            >>> len(next(stream).probabilities)
            2

        Args:
            texts: what to classify, as `read_texts` takes it; a generator is read as it goes. One
                text, see `Predictor`, has one prediction.
            text_column: column of a file or table.
            delimiter: of .csv and .tsv files, as for `data.read_texts`.
            encoding: of text files, as for `data.read_texts`.
            chunk_size: texts that are read ahead, fewer where they have more than a million
                characters together. With 1 each text is answered before the next one is read.
            batch_size: texts of a chunk at a time.

        Returns:
            An iterator over a `Prediction` for each text, in the order of the texts.

        Raises:
            ValueError: if no classifier has been fitted, or a size is below 1; and, as the texts
                are read, what `read_texts` raises, and if a probability is not finite.
        """
        form = {"text_column": text_column, "delimiter": delimiter, "encoding": encoding}
        chunks = self._stream(texts, form, chunk_size, batch_size)
        return (self._prediction(row) for chunk in chunks for row in chunk)

    def _stream(
        self, texts: Source, form: Mapping[str, Any], chunk_size: int, batch_size: int
    ) -> Iterator[Probabilities]:
        """Check everything that can be checked now, and classify chunk by chunk later."""
        self._require_classifier()
        for name, size in (("chunk_size", chunk_size), ("batch_size", batch_size)):
            if size < 1:
                raise ValueError(f"{name} is {size}, expected at least 1")
        source = [texts] if is_text(texts) else texts
        chunks = _chunks(read_texts(source, **form), chunk_size)
        return self._checked(chunks, batch_size)

    def _checked(self, chunks: Iterable[list[str]], batch_size: int) -> Iterator[Probabilities]:
        """Yield the probabilities of each chunk; one that is no number is no answer."""
        before = 0
        for chunk in chunks:
            found = self._probabilities(chunk, batch_size)  # (N, C)
            fine = np.isfinite(found).all(axis=1)  # (N,)
            if not fine.all():
                row = int(fine.argmin())
                raise ValueError(
                    f"the probabilities of text {before + row} are {found[row].tolist()!s:.60}, "
                    "expected numbers: the weights, or products of them, are not finite; train the "
                    "model again with a lower rate"
                )
            before += len(chunk)
            yield found

    def _prediction(self, row: Probabilities) -> Prediction:
        best = int(row.argmax())
        return Prediction(self.labels[best], float(row[best]), tuple(row.tolist()))


def _chunks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) >= size or characters >= BLOCK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
