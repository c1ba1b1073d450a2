"""Vocabularies of fastai and awd-lstm-lm as ours, and where their words stood.

Ours have the nine specials of fastai v2 at the ids 0 to 8, whatever the order was before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ulmfit_fast.data.tokens.vocab import SPECIALS, Vocab

__all__ = ["vocabulary_from_fastai"]

# fastai fills a vocabulary up to a multiple of 8 with it; no text yields it.
_PADDING = "xxfake"
# What a special was called before, the likeliest first: fastai 0.7, then awd-lstm-lm.
_OLD_NAMES = {
    "xxunk": ("_unk_", "<unk>"),
    "xxpad": ("_pad_",),
    "xxbos": ("xbos", "_bos_"),
    "xxeos": ("_eos_", "<eos>"),
    "xxfld": ("xfld",),
    "xxrep": ("tk_rep",),
    "xxwrep": ("tk_wrep",),
    "xxup": ("t_up",),
}


def vocabulary_from_fastai(itos: Sequence[str]) -> tuple[Vocab, Tensor]:
    """Turn a vocabulary of fastai v2, v1 or 0.7, or of awd-lstm-lm, into one of ours.

    The specials come to the front. One that is missing is looked for under its older names
    (`xbos`, `t_up`, `<eos>` and so on), the first of which that is there becomes the special; an
    older name beside the special itself stays a word like any other. A special that the old
    vocabulary has under no name has no row, and a model gives it the mean of all. `xxfake`, with
    which fastai fills up, is dropped. Of a word that occurs several times the last row counts, as
    in fastai.

    Example:
        >>> vocab, index = vocabulary_from_fastai(["_unk_", "_pad_", "the", "t_up", "xxfake"])
        >>> vocab.words[7:], index
        (('xxup', 'xxmaj', 'the'), tensor([ 0,  1, -1, -1, -1, -1, -1,  3, -1,  2]))

    Args:
        itos: the words in the order of their ids.

    Returns:
        The vocabulary, and for each of its words the old id, or -1: int64, `(V_new,)`, for
        `use_rows`.

    Raises:
        TypeError: for a single string, or a word that is not a string.
        ValueError: if there are no words.

    Source:
        Howard & Ruder 2018 and the code that accompanies it: what is not there gets the mean row.
    """
    if isinstance(itos, str):
        raise TypeError(f"itos is the string {itos!r:.60}, expected a list of words")
    for position, word in enumerate(itos):
        if not isinstance(word, str):
            raise TypeError(
                f"itos[{position}] is {word!r:.60} ({type(word).__name__}), expected a str"
            )
    rows = {word: row for row, word in enumerate(itos) if word != _PADDING}
    if not rows:
        raise ValueError("itos has no words, expected the words of a language model")
    for special, old_names in _OLD_NAMES.items():
        old_name = next((name for name in old_names if name in rows), None)
        if special not in rows and old_name is not None:
            rows[special] = rows.pop(old_name)
    vocab = Vocab([word for word in rows if word not in SPECIALS])
    index = [rows.get(word, -1) for word in vocab.words]
    return vocab, torch.tensor(index, dtype=torch.int64, device="cpu")
