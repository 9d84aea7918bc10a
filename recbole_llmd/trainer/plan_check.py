"""Refusing plans of a distillation in which a side would learn from a CRM that nobody has trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_llmd.errors import SettingsError
from recbole_llmd.trainer.llmd4rec import plan


def refuse_impossible_plan(values: Mapping[str, Any]) -> None:
    """Refuse settings of which each is right but which do not go together.

    An untrained LLM may teach: it knows which texts are alike.

    Args:
        values: every setting of the run.

    Raises:
        SettingsError: if the CRM would teach, or give the LLM its item vectors, before it was trained; if the LLM is to
            read item vectors and the items' texts as tokens.
    """
    reads = values["llm_item_vectors"]
    if reads != "own" and values["llm_input"] != "item":
        raise SettingsError(
            f"llm_item_vectors = {reads!r}: llm_input = {values['llm_input']!r} reads the items' texts and no item "
            "vectors. Set llm_input: item, or llm_item_vectors: own."
        )
    trained = False  # whether the CRM is, so far
    for phase in plan(values):
        learns = phase.taught and values["distill_alpha_crm_to_llm"] > 0
        if phase.student == "LLM" and not trained and (learns or reads != "own"):
            what = "the CRM" if reads == "own" else f"the CRM's item vectors (llm_item_vectors = {reads!r})"
            remedy = "Set crm_warmup_epochs above 0"
            if phase.round == 0:
                remedy += ", or llm_warmup_epochs: 0 and distill_first: CRM"
            elif values["distill_first"] == "LLM":
                remedy += ", or distill_first: CRM"
            raise SettingsError(
                f"crm_warmup_epochs = {values['crm_warmup_epochs']}: in its {phase.label.split(' (')[0]} the LLM would "
                f"learn from {what} before the CRM is trained. {remedy}."
            )
        trained = trained or phase.student == "CRM"
