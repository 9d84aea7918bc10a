"""Unlearning for recommenders whose scores are X·B: X interactions [users, items], B an item-item mapping.

engine = IMCorrect(model, dataset)                 # RecBole's trained EASE, ItemKNN, SLIMElastic or ADMMSLIM
receipt = engine.forget(["u3", "u3"], ["i7", "i9"])  # the model is corrected in place
"""

from recbole_llmd.unlearning.engine import IMCorrect
from recbole_llmd.unlearning.receipt import Receipt, fingerprint

__all__ = ["IMCorrect", "Receipt", "fingerprint"]
