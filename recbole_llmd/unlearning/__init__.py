"""Unlearning for recommenders whose scores are X·B: X interactions [users, items], B an item-item mapping.

engine = Unlearner(model, dataset)  # a trained EASE, ItemKNN, SLIMElastic, ADMMSLIM, NCEPLRec or DualEASE
receipt = engine.forget(["u3", "u3"], ["i7", "i9"])  # the model is corrected in place
"""

from recbole_llmd.unlearning.model_hash import fingerprint
from recbole_llmd.unlearning.receipt import Receipt
from recbole_llmd.unlearning.request import Request
from recbole_llmd.unlearning.unlearner import Unlearner

__all__ = ["Receipt", "Request", "Unlearner", "fingerprint"]
