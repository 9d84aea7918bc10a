"""The mapping models that can be corrected: each a module here with two functions over NumPy and SciPy arrays alone.

``fit(X, params, dtype)``
    The mapping matrix B [n_items, n_items] of the interactions X [n_users, n_items], as RecBole's model defines it.
``correct(state, change, tolerance)``
    B after a change of X, as a :class:`~recbole_llmd.unlearning.mapping.correction.Correction`. It may write into
    ``state.B`` as its last step, if it restores it when that step fails.

and three constants: ``PARAMETERS`` (the keys of RecBole's Config that ``params`` holds), ``MATRIX`` (the attribute of
the model that holds B) and ``TOLERANCE`` (the residual allowed, by dtype). A model that keeps more than X and B
has a third function ``derived(X, B)``: its other attributes by name; ``REQUIRED`` has the parameters that must have one
value. To add a model, add its file and register it (:func:`recbole_llmd.registry.register_mapping`).
"""

from recbole_llmd.registry import mapping_module as mapping_of

__all__ = ["mapping_of"]
