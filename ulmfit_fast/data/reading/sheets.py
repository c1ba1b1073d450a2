"""Rows of the first sheet of an Excel file, one at a time."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from ulmfit_fast.system.scoped import ignoring

__all__ = ["sheet_rows"]

# An XML parser's error is a SyntaxError.
_DAMAGE = (BadZipFile, zlib.error, EOFError, KeyError, ValueError, SyntaxError)


def sheet_rows(
    path: Path, refuse: Callable[[ValueError], None]
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the number and the values of each row that is not blank, a formula's being its result.

    Args:
        path: an existing .xlsx file.
        refuse: called for a file that is damaged or none of Excel's.

    Raises:
        ImportError: if the package openpyxl is missing.
    """
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError as error:
        raise ImportError(
            f"{path} needs the package openpyxl; pip install 'ulmfit-fast[excel]'"
        ) from error
    with path.open("rb") as file:
        try:
            # Of what an Excel file can have that is no value, styles and the like.
            with ignoring(UserWarning):
                book = load_workbook(file, read_only=True, data_only=True)
            if not book.worksheets:
                return
            sheet = book.worksheets[0]
            # Some programs write a size that is too small.
            sheet.reset_dimensions()
            for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
                if any(value is not None for value in row):
                    yield number, row
        except (*_DAMAGE, InvalidFileException) as error:
            reason = " ".join(str(error).split())
            refuse(
                ValueError(
                    f"{path} is no whole Excel file ({reason:.200}); save it anew as .xlsx, or as "
                    "CSV UTF-8"
                )
            )
