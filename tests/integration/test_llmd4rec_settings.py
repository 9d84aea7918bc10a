"""LLMD4Rec: every setting of the loop acts, and on its side alone."""

import pytest
from recbole.quick_start import run_recbole

from tests.helpers.ids import stable_id

_BASELINE = {}


@pytest.fixture
def baseline(fast_distill):
    """The result of a run with one epoch a phase of round 1, trained once for all tests that compare with it."""
    if not _BASELINE:
        _BASELINE.update(run_recbole(config_dict={**fast_distill, "epochs": 1, "llm_epochs": 1}))
    return _BASELINE


def _epochs(result, side, phase):
    """The figures of a side's epochs in the phases whose label begins with ``phase``."""
    return [figures for figures in result["distillation"][side] if figures["label"].startswith(phase)]


def _labels(result):
    return [phase["label"] for phase in result["distillation"]["phases"]]


def _losses(result, side, phase="warm-up"):
    return [figures["cross-entropy"] for figures in _epochs(result, side, phase)]


def _confidence_weighs_otherwise(result, baseline):
    got, usual = (_epochs(run, "CRM", "round 1")[0] for run in (result, baseline))
    assert got["weight quantiles"] != usual["weight quantiles"] and got["weight std"] > 0


def _temperature_softens(result, baseline):
    """tau^2 KL between softer distributions is another figure, seen by equal students in their first epoch."""
    got, usual = (_epochs(run, "CRM", "round 1")[0] for run in (result, baseline))
    assert got["distillation"] != pytest.approx(usual["distillation"], rel=0.01)
    assert _losses(result, "CRM") == _losses(baseline, "CRM")


def _rank_weighs_otherwise(result, baseline):
    got, usual = (_epochs(run, "CRM", "round 1")[0] for run in (result, baseline))
    assert got["weight quantiles"] != usual["weight quantiles"] and got["weight std"] > 0


def _only_the_llm_is_taught_by_softer_distributions(result, baseline):
    assert (
        _epochs(result, "CRM", "round 1")[0]["distillation"] == _epochs(baseline, "CRM", "round 1")[0]["distillation"]
    )
    got, usual = (_epochs(run, "LLM", "round 1")[0] for run in (result, baseline))
    assert got["distillation"] != pytest.approx(usual["distillation"], rel=0.01)


def _target_ranks_weigh_from_0_to_2(result, baseline):
    """The untaught sides are of very different worth here, so that the means are far from 1."""
    for side in ("CRM", "LLM"):
        (epoch,) = _epochs(result, side, "round 1")
        assert 0 <= epoch["weight quantiles"][0] < 1 < epoch["weight quantiles"][-1] <= 2
        assert abs(epoch["weight mean"] - 1) > 0.02


def _the_llm_comes_first_in_the_round(result, baseline):
    assert [phase["label"] for phase in result["distillation"]["phases"]] == [
        "warm-up, LLM phase",
        "warm-up, CRM phase",
        "round 1, LLM phase (CRM teaches)",
        "round 1, CRM phase (LLM teaches)",
    ]
    assert _losses(result, "LLM") == _losses(baseline, "LLM")  # the warm-up stays as it was
    assert _losses(result, "CRM") == _losses(baseline, "CRM")


def _top_items_bound_the_divergence_from_below(result, baseline):
    got, usual = (_epochs(run, "CRM", "round 1")[0] for run in (result, baseline))
    assert 0 < got["distillation"] < usual["distillation"]


def _uniform_weights_are_one(result, baseline):
    for side in ("CRM", "LLM"):
        (epoch,) = _epochs(result, side, "round 1")
        assert epoch["weight quantiles"] == [1.0] * 5 and epoch["weight std"] == 0


def _second_round_follows(result, baseline):
    assert len(result["distillation"]["phases"]) == len(baseline["distillation"]["phases"]) + 2
    assert len(_epochs(result, "CRM", "round 2")) == len(_epochs(result, "LLM", "round 2")) == 1


def _only_the_llm_reads_otherwise(result, baseline):
    assert _losses(result, "LLM")[0] != _losses(baseline, "LLM")[0]
    assert _losses(result, "CRM") == _losses(baseline, "CRM")


def _only_the_crm_sees_longer_histories(result, baseline):
    assert _losses(result, "CRM")[0] != _losses(baseline, "CRM")[0]
    assert _losses(result, "LLM") == _losses(baseline, "LLM")


def _only_the_llm_is_taught(result, baseline):
    assert "distillation" not in _epochs(result, "CRM", "round 1")[0]
    assert "distillation" in _epochs(result, "LLM", "round 1")[0]


def _fewer_candidates_are_ranked(result, baseline):
    """Twenty negatives instead of all fifty items: the target is found more often; training is the same."""
    assert result["test_result"]["recall@10"] > baseline["test_result"]["recall@10"]
    assert result["llm"]["test_result"]["recall@10"] != baseline["llm"]["test_result"]["recall@10"]
    assert _losses(result, "CRM") == _losses(baseline, "CRM")


def _warm_up_is_all(result, baseline):
    assert _labels(result) == ["warm-up, LLM phase", "warm-up, CRM phase"]
    assert _losses(result, "CRM") == _losses(baseline, "CRM") and not _epochs(result, "CRM", "round")


def _no_warm_up(result, baseline):
    assert [label.split(",")[0] for label in _labels(result)] == ["round 1"] * 2
    assert not _epochs(result, "CRM", "warm-up") and not _epochs(result, "LLM", "warm-up")


def _only_the_llm_learns_otherwise(result, baseline):
    assert _losses(result, "LLM")[1] > 1.01 * _losses(baseline, "LLM")[1]  # plain gradient steps are small
    assert _losses(result, "CRM")[0] == _losses(baseline, "CRM")[0]


def _every_second_epoch_of_the_crm_is_validated(result, baseline):
    """The LLM has an llm_eval_step of its own."""
    for run, side, validated in (
        (result, "CRM", [False, True]),
        (result, "LLM", [True] * 2),
        (baseline, "CRM", [True] * 2),
    ):
        assert ["valid" in figures for figures in _epochs(run, side, "warm-up")] == validated


@pytest.mark.parametrize(
    "more, effects",
    [
        (
            {"distill_weighting": "confidence", "distill_temperature_llm_to_crm": 2.0},
            [_confidence_weighs_otherwise, _temperature_softens],
        ),
        ({"distill_weighting": "rank", "distill_topk": 10}, [_rank_weighs_otherwise]),
        ({"distill_temperature_crm_to_llm": 2.0}, [_only_the_llm_is_taught_by_softer_distributions]),
        (
            {"distill_weighting": "target_rank", "distill_rescale_weights": False, "distill_evidence": False},
            [_target_ranks_weigh_from_0_to_2],
        ),
        ({"distill_first": "LLM"}, [_the_llm_comes_first_in_the_round]),
        ({"distill_topk": 10}, [_top_items_bound_the_divergence_from_below]),
        ({"distill_weighting": "uniform", "distill_rounds": 2}, [_uniform_weights_are_one, _second_round_follows]),
        ({"llm_input": "prompt"}, [_only_the_llm_reads_otherwise]),
        ({"crm_window_overlap": 0.5}, [_only_the_crm_sees_longer_histories]),
        ({"distill_alpha_llm_to_crm": 0.0}, [_only_the_llm_is_taught]),
        (
            {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "pop20"}},
            [_fewer_candidates_are_ranked],
        ),
        ({"distill_rounds": 0}, [_warm_up_is_all]),
        ({"crm_warmup_epochs": 0, "llm_warmup_epochs": 0}, [_no_warm_up]),
        (
            {"llm_learner": "sgd", "eval_step": 2},
            [_only_the_llm_learns_otherwise, _every_second_epoch_of_the_crm_is_validated],
        ),
    ],
    ids=stable_id,
)
def test_every_setting_acts(fast_distill, baseline, more, effects):
    """A run with it goes to its end, and differs from one without it in what the setting is there for."""
    result = run_recbole(config_dict={**fast_distill, "epochs": 1, "llm_epochs": 1, **more})
    assert set(result) == {
        "best_valid_score",
        "valid_score_bigger",
        "best_valid_result",
        "test_result",
        "llm",
        "distillation",
    }
    assert set(result["llm"]) == {"best_valid_score", "best_valid_result", "test_result"}
    assert result["best_valid_score"] == result["best_valid_result"]["ndcg@10"]
    for effect in effects:
        effect(result, baseline)
