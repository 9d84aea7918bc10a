"""IMCorrect by the model flag and ``unlearn --evaluate``: trained, unlearned, and compared with retraining."""

import copy
import csv
import json

import numpy as np
import pytest
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_model, get_trainer

from recbole_llmd import cli
from recbole_llmd.registry import mapping_module
from recbole_llmd.unlearning.forget_file import read_forget_file
from tests.helpers.mapping_models import MODELS, evaluate, retained

ARMS = ["original", "no-op", "X only", "one step", "corrected", "SISA", "RecEraser-mean", "retrained"]


@pytest.fixture
def unlearned(workdir, trained):
    """``unlearned(name, ...)`` runs IMCorrect with a mapping model on the tiny dataset; gives RecBole's result."""

    def _unlearned(name, **more):
        settings = dict(trained(name)[0].external_config_dict)
        settings.update({"model": "IMCorrect", "mapping_model": name, "unlearn_seeds": [2], "unlearn_ratio": 0.1})
        settings.update({"data_path": settings["data_path"], "unlearn_shards": 2, **more})
        return run_recbole("IMCorrect", "tiny", config_dict=settings)

    return _unlearned


def by_arm(rows):
    approximate = {"one step"} if rows[0]["model"] == "EASE" else set()
    assert [row["arm"] for row in rows] == [arm for arm in ARMS if arm != "one step" or arm in approximate]
    return {row["arm"]: row for row in rows}


def forget_set(workdir, config):
    (path,) = (workdir / "saved" / "unlearning").glob("*.forget")
    return read_forget_file(path, config)


@pytest.mark.parametrize("name", MODELS)
def test_the_run_gives_what_a_refit_on_the_retained_interactions_gives(unlearned, trained, workdir, name):
    result = unlearned(name)
    config, (train, valid, test), _ = trained(name)
    users, items = forget_set(workdir, config)
    dataset = train.dataset
    pairs = dataset.token2id("user_id", users), dataset.token2id("item_id", items)
    assert len(users) > 20
    mapping = mapping_module(name)
    refitted = get_model(name)(config, retained(dataset, *pairs))
    refitted.item_similarity = refitted.w = mapping.fit(refitted.interaction_matrix, config.final_config_dict)
    derived = mapping.derived(refitted.interaction_matrix, refitted.w, config.final_config_dict)
    for attribute, value in derived.items():
        setattr(refitted, attribute, value)
    for loader, metrics in ((valid, result["best_valid_result"]), (test, result["test_result"])):
        for user in np.unique(pairs[0]):  # RecBole masks what was forgotten no more
            gone = set(pairs[1][pairs[0] == user].tolist())
            history = loader.uid2history_item[user]
            if history is not None:
                kept = [item not in gone for item in history.tolist()]
                loader.uid2history_item[user] = history[kept]
        assert metrics == pytest.approx(evaluate(config, refitted, loader), abs=1e-6)
    arms = by_arm(result["unlearning"]["rows"])
    assert arms["retrained"]["test_ndcg@10"] == arms["corrected"]["test_ndcg@10"] == result["test_result"]["ndcg@10"]
    assert arms["corrected"]["B_frobenius"] < 1e-4 < 0.01 < arms["X only"]["B_frobenius"]
    assert arms["no-op"]["scores_frobenius"] == arms["original"]["scores_frobenius"] > 0.01
    assert arms["corrected"]["overlap@10"] > 0.999 > arms["no-op"]["overlap@10"]
    assert arms["corrected"]["interactions"] == len(users)


def test_the_saved_model_is_recboles_own_and_has_forgotten(unlearned, workdir):
    unlearned("EASE")
    (path,) = (workdir / "saved").glob("IMCorrect-*.pth")
    config, model, dataset, train, _, _ = load_data_and_model(str(path))
    assert type(model).__name__ == config["model"] == "EASE"
    assert not [key for key in config.final_config_dict if key.startswith("unlearn_")]
    users, items = forget_set(workdir, config)
    pairs = dataset.token2id("user_id", users), dataset.token2id("item_id", items)
    assert np.all(np.asarray(model.interaction_matrix[pairs]) == 0)
    assert model.interaction_matrix.nnz + len(users) == len(
        set(zip(*(train.dataset.inter_feat[f].tolist() for f in ("user_id", "item_id"))))
    )


def test_a_correction_that_forgets_to_correct_B_is_seen_in_the_figures(unlearned, monkeypatch):
    from recbole_llmd.unlearning.mapping import ease
    from recbole_llmd.unlearning.mapping.correction import Correction

    monkeypatch.setattr(ease, "correct", lambda state, change, tolerance: Correction(state.B, "planted bug"))
    arms = by_arm(unlearned("EASE")["unlearning"]["rows"])
    for figure in ("B_frobenius", "scores_frobenius", "overlap@10", "rbo@20", "membership_auc_mapping"):
        assert arms["corrected"][figure] == arms["X only"][figure] != arms["retrained"][figure]


def test_sensitive_items_leave_the_recommendations_checkpoint_by_checkpoint(unlearned):
    rows = unlearned("EASE", unlearn_scenario="sensitive", unlearn_sensitive={"genre": "Space"})["unlearning"]["rows"]
    points = sorted({row["checkpoint"] for row in rows})
    assert len(points) == 4 and points[-1] == 1
    assert [sum(row["arm"] == "corrected" for row in rows)] == [4]
    last = by_arm(rows[-len(ARMS) :])
    assert last["corrected"]["requests"] == last["corrected"]["users"]  # one user a request
    assert last["corrected"]["sensitive_exposure@10"] == pytest.approx(last["retrained"]["sensitive_exposure@10"])
    assert last["corrected"]["sensitive_exposure@10"] < last["original"]["sensitive_exposure@10"]


def test_spam_users_are_injected_and_their_targets_fall_again(unlearned):
    result = unlearned(
        "EASE", unlearn_scenario="spam", unlearn_ratio=0.3, unlearn_spam_targets=2, unlearn_spam_fillers=5
    )
    arms = by_arm(result["unlearning"]["rows"])
    assert arms["original"]["spam_hit@10"] > arms["corrected"]["spam_hit@10"] == arms["retrained"]["spam_hit@10"]
    assert "forgetting_ndcg@10" not in arms["corrected"]  # no real user forgets


def test_what_was_learned_again_is_the_original_model(unlearned):
    rows = unlearned("EASE", unlearn_relearn=True, unlearn_scenario="interactions")["unlearning"]["rows"]
    learned = {row["arm"]: row for row in rows if row["phase"] == "learn"}
    assert list(learned) == ["X only", "corrected", "retrained"]
    assert learned["corrected"]["B_frobenius"] < 1e-5
    original = next(row for row in rows if row["arm"] == "original")
    assert learned["corrected"]["test_ndcg@10"] == pytest.approx(learned["retrained"]["test_ndcg@10"], abs=1e-6)
    assert original["B_frobenius"] > 0.01


def test_drift_is_of_rounding_and_smaller_in_float64(unlearned):
    drift = unlearned("EASE", unlearn_drift_requests=5)["unlearning"]["drift"]
    assert [(row["dtype"], row["requests"]) for row in drift] == [
        (t, n) for t in ("float32", "float64") for n in (1, 2, 4, 5)
    ]
    assert all(row["B_frobenius"] < (1e-5 if row["dtype"] == "float32" else 1e-12) for row in drift)
    assert all(row["B_frobenius"] > 1e-9 for row in drift if row["dtype"] == "float32")


def test_the_command_evaluates_models_and_scenarios_into_one_report(workdir, trained, capsys):
    path = trained("EASE")[0].external_config_dict["data_path"]
    arguments = [
        "unlearn",
        "--evaluate",
        "--models=EASE,ItemKNN",
        "--scenarios=users,noise",
        "--dataset=tiny",
        "--out=report",
        f"--data_path={path}",
        "--unlearn_seeds=[2,3]",
        "--unlearn_ratio=[0.05,0.1]",
        "--state=ERROR",
        "--show_progress=False",
        "--unlearn_shards=2",
        "--reg_weight=10",
        "--k=8",
        "--valid_metric=MRR@10",
    ]
    assert cli.main(arguments) == 0
    record = json.loads((workdir / "report" / "evaluation.json").read_text())
    assert len(record["rows"]) == 2 * 2 * 2 * (2 * len(ARMS) - 1)  # one step is EASE's
    sisa = [row["scores_frobenius"] for row in record["rows"] if row["arm"] == "SISA" and row["scenario"] == "users"]
    assert len(set(sisa)) == 8 and max(sisa) < 1  # of each ratio, seed and model its own
    assert [fit["model"] for fit in record["fits"]] == ["EASE", "ItemKNN"]
    assert record["command"].startswith("recbole-llmd unlearn --evaluate --models=EASE,ItemKNN --scenarios=users,noise")
    with open(workdir / "report" / "evaluation.csv") as file:
        assert len(list(csv.DictReader(file))) == len(record["rows"])
    assert "<html" in (workdir / "report" / "evaluation.html").read_text()
    printed = capsys.readouterr().out
    assert "Completeness is measured against the retrained arm" in printed and "ItemKNN" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model=IMCorrect", "--mapping_model=BPR", "--dataset=tiny"],
            "mapping_model = 'BPR': must be one of 'EASE'",
        ),
        (["--model=IMCorrect", "--unlearn_ratios=0.1", "--dataset=tiny"], "nearest valid name is unlearn_ratio"),
        (["--model=EASE", "--unlearn_ratio=0.1", "--dataset=tiny"], ""),
        (["unlearn", "--out=x", "--forget-file=f"], "--checkpoint is missing"),
        (["unlearn", "--evaluate", "--out=x"], "Give --model=... and --dataset"),
    ],
)
def test_bad_input_is_refused(arguments, message, workdir, capsys, trained):
    path = trained("EASE")[0].external_config_dict["data_path"]
    if "--dataset=tiny" in arguments:
        arguments = [*arguments, f"--data_path={path}", "--state=ERROR", "--show_progress=False"]
    assert cli.main(arguments) == (2 if message else 0)
    assert message in capsys.readouterr().err


def test_sampled_evaluation_is_refused(unlearned):
    from recbole_llmd.errors import SettingsError

    with pytest.raises(SettingsError, match="mode: full"):
        unlearned(
            "EASE", eval_args={"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "RO", "mode": "uni100"}
        )


def test_scoring_another_model_leaves_the_trainers_own_in_place(trained):
    from recbole_llmd.trainer.imcorrect import IMCorrectTrainer

    config, (_, _, test), model = trained("EASE")
    trainer = IMCorrectTrainer(config, model)
    other = copy.copy(model)
    other.item_similarity = np.zeros_like(model.item_similarity)
    assert trainer.score(other, test) != trainer.score(model, test) == trainer.evaluate(test, load_best_model=False)
    assert trainer.model is model


def test_the_classes_are_recboles_to_find():
    from recbole_llmd.model.imcorrect import IMCorrect
    from recbole_llmd.trainer.imcorrect import IMCorrectTrainer

    assert get_model("IMCorrect") is IMCorrect
    assert get_trainer(IMCorrect.type, "IMCorrect") is IMCorrectTrainer
