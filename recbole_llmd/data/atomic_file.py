"""Reading RecBole's atomic files as text."""

import csv

import pandas as pd


def read_atomic_file(path, config):
    """All columns of an atomic file as strings, untouched by ``load_col`` and by guesses about missing values.

    Returns:
        tuple: the frame, with the names of the fields as columns, and their types by name ("" where none is given).
    """
    # Quotation marks in titles (inches, for one) are text, never a quoted field; a title may be "NA" or "None".
    frame = pd.read_csv(
        path,
        sep=config["field_separator"],
        dtype=str,
        encoding=config["encoding"],
        engine="python",
        quoting=csv.QUOTE_NONE,
        keep_default_na=False,
    )
    head = [column.split(":") for column in frame.columns]
    frame.columns = [name for name, *_ in head]
    return frame.fillna(""), {name: kind[0] if kind else "" for name, *kind in head}
