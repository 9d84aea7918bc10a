"""The errors that a user of this package can meet. Each message has the value, the rule and the remedy.

The command line prints any of them as one line and exits with status 2; a program can catch :class:`LLMDError` for all.
"""


class LLMDError(Exception):
    """What every error of this package is.

    >>> try:
    ...     raise SettingsError("llm_layers = -1: must be a whole number of at least 0.")
    ... except LLMDError as error:
    ...     print(error)
    llm_layers = -1: must be a whole number of at least 0.
    """


class SettingsError(LLMDError, ValueError):
    """A setting, an option or a property file is wrong."""


class DataError(LLMDError, ValueError):
    """An atomic file, or the dataset read from it, lacks something or does not fit."""


class CheckpointError(LLMDError, ValueError):
    """A checkpoint is not there, is of another kind, or belongs to other data."""


class ModelError(LLMDError, ValueError):
    """A model cannot do what is asked of it: a CRM that gives no distribution, a backbone with too few layers."""


class RequestError(LLMDError, ValueError):
    """A request to forget or to learn names something unknown, or something that is not there."""


class LedgerError(LLMDError, ValueError):
    """A ledger of erasures is damaged, or does not belong to the checkpoint or the model it is held against."""


class OutputError(LLMDError, OSError):
    """A file cannot be written where it was asked for."""


class MappingMismatch(LLMDError, ValueError):
    """B is not the mapping matrix of X: a correction would start from a wrong model."""


class UnsolvedError(LLMDError, ArithmeticError):
    """A corrected mapping matrix does not solve its equations to tolerance."""
