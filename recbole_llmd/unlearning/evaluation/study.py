"""The arms of unlearning compared: completeness, utility and efficiency, each beside the retrained model.

Every arm answers the same requests and is judged over the same users, with the same history mask (the retained
interactions) and by the same timers. Without the retrained arm there is no figure.
"""

import numpy as np
from tqdm import tqdm

from recbole_llmd.unlearning.evaluation import metrics
from recbole_llmd.unlearning.evaluation.arm_metrics import Judge
from recbole_llmd.unlearning.evaluation.arms import Arm, Retrained, Sisa, clone
from recbole_llmd.unlearning.mapping import mapping_of
from recbole_llmd.unlearning.unlearner import Unlearner


class Study:
    """What all scenarios of an evaluation share.

    Args:
        config: RecBole's Config of the run.
        model: the trained mapping model, fitted to the end (``Unlearner.refit``); it is not changed.
        eval_data: RecBole's full-sort loader of the part to evaluate on.
        evaluate: ``evaluate(model, loader)`` gives RecBole's metrics.
    """

    def __init__(self, config, model, eval_data, evaluate):
        self.config, self.model, self.eval_data, self.evaluate = config, model, eval_data, evaluate
        self._parts = None

    def run(self, scenario):
        """All rows of a scenario: one for each arm at each checkpoint.

        Returns:
            list of dict: as ``docs/unlearning.md`` describes them.
        """
        model = clone(self.model, mapping_of(type(self.model).__name__))
        inject(model, self.config, scenario)
        arms = self._arms(model, scenario)
        judge = Judge(self, scenario, model)
        rows, answered = [], []
        bar = tqdm(scenario.requests, desc=scenario.label, ncols=100, disable=not self.config["show_progress"])
        for done, (users, items) in enumerate(bar, 1):
            receipts = [arm.answer("forget", users, items) for arm in arms.values() if arm.name != "original"]
            answered.append(next(receipt for receipt in receipts if receipt and receipt.mode == "mapping"))
            if done in scenario.checkpoints:
                rows += judge.rows(arms, done, "forget")
        if self.config["unlearn_relearn"]:
            learning = {name: arms[name] for name in ("X only", "IMCorrect", "retrained")}
            for arm in learning.values():
                arm.seconds = []
            for receipt in reversed(answered):
                for arm in learning.values():
                    arm.answer("learn", receipt.users, receipt.items, receipt.values)
            rows += judge.rows(learning, len(answered), "learn")
        return rows

    def _arms(self, model, scenario):
        arms = [
            Arm(name, model, self.config, mode)
            for name, mode in (
                ("original", "none"),
                ("no-op", "none"),
                ("X only", "interaction"),
                ("IMCorrect", "mapping"),
            )
        ]
        if scenario.injected is None and self._parts is None:
            self._parts = Sisa(model, self.config).parts
        sisa = Sisa(model, self.config, self._parts if scenario.injected is None else None)
        arms += [sisa, Retrained(model, self.config)]
        return {arm.name: arm for arm in arms}


def inject(model, config, scenario):
    """Train the model, in place, on what the scenario injects beside the dataset."""
    if scenario.injected is not None:
        Unlearner(model, config, mode="retrain", hashes=False).learn(
            *scenario.injected, ids="internal", grow=True
        )


def drift(config, model):
    """How far B moves from a float64 fit over sequential requests, for each type of number that the model has.

    Each request forgets one interaction, drawn at random; ``unlearn_drift_requests`` says how many.

    Args:
        config: RecBole's Config.
        model: a trained mapping model; it is not changed.

    Returns:
        list of dict: after 1, 2, 4, ... and all requests.
    """
    rows, seed = [], config["seed"]
    mapping = mapping_of(type(model).__name__)
    users, items = model.interaction_matrix.nonzero()
    chosen = np.random.default_rng(seed).permutation(len(users))[: config["unlearn_drift_requests"]]
    for dtype in mapping.TOLERANCE:
        engine = Arm("IMCorrect", model, config, "mapping").engine
        engine.refit(dtype)
        seconds = 0.0
        for done, pair in enumerate(chosen, 1):
            seconds += engine.forget(users[pair], items[pair], ids="internal").seconds
            if done & (done - 1) == 0 or done == len(chosen):
                exact = mapping.fit(engine.X, engine.params, list(mapping.TOLERANCE)[-1])
                rows.append(
                    {
                        "model": engine.name,
                        "dataset": config["dataset"],
                        "dtype": dtype,
                        "seed": seed,
                        "requests": done,
                        "B_frobenius": metrics.relative_frobenius(engine.B, exact),
                        "seconds_total": seconds,
                    }
                )
    return rows
