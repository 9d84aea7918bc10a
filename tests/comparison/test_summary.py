"""The figures of a comparison from records made by hand."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from recbole_llmd.comparison import statistics, summary
from recbole_llmd.comparison.experiment import Cell
from recbole_llmd.comparison.runner import duration, time_left

USERS = np.arange(1, 41)


def _record(vocabulary="v", seconds=10.0):
    cost = {"train_seconds": seconds, "serving_microseconds": 5.0, "peak_bytes": 2**20}
    return {
        "status": "finished",
        "commit": "c",
        "data": {"vocabulary": vocabulary},
        "cost": cost,
        "best_valid_result": {"ndcg@10": 0.5},
        "llm": {"best_valid_result": {"ndcg@10": 0.7}},
        "seconds": seconds,
    }


def _result(variant, values, llm=False, users=USERS, **record):
    """``values``: for each seed an array ``[n_users]``."""
    known = {"user": users, "target": users, "history": users, "popularity": np.maximum(users - 10, 0)}
    name = "llm/ndcg@10" if llm else "ndcg@10"
    return summary.VariantResult(
        "d", variant, llm, {s: _record(**record) for s in values}, {s: {**known, name: v} for s, v in values.items()}
    )


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    return {
        name: {seed: rng.random(40) + shift for seed in (1, 2, 3)} for name, shift in (("a", 0), ("b", 0.3), ("c", 0.1))
    }


def test_result_rows(values):
    served, side = summary.result_rows(
        [_result("a", values["a"], seconds=None), _result("a", values["a"], llm=True)], ["ndcg@10"]
    )
    means = [np.mean(v) for v in values["a"].values()]
    assert served["ndcg@10"] == pytest.approx((np.mean(means), np.std(means, ddof=1), 3))
    assert served["train_seconds"].mean is None and served["serving_seconds"].mean == pytest.approx(5e-6)
    assert (served["valid"].mean, side["valid"].mean) == pytest.approx((0.5, 0.7))
    assert side["serving_seconds"].n == 0


def test_differences_are_tested_paired_and_corrected(values):
    results = [_result("a", values["a"]), _result("b", values["b"]), _result("c", values["c"])]
    rows = {row["variant"]: row for row in summary.differences(results, "a", ["ndcg@10"])}
    assert list(rows) == ["b", "c"]
    raw = {}
    for name, row in rows.items():
        ours, base = (np.array(list(values[v].values())) for v in (name, "a"))
        assert row["difference"] == pytest.approx(ours.mean() - base.mean())
        assert row["relative"] == pytest.approx(ours.mean() / base.mean() - 1)
        raw[name] = stats.ttest_rel(ours.mean(axis=0), base.mean(axis=0)).pvalue
        assert row["p_users_uncorrected"] == pytest.approx(raw[name])
        assert row["p_seeds_uncorrected"] == pytest.approx(stats.ttest_rel(ours.mean(axis=1), base.mean(axis=1)).pvalue)
        assert (row["users"], row["seeds"]) == (40, 3)
    assert raw["b"] < raw["c"]
    assert (rows["b"]["p_users"], rows["c"]["p_users"]) == pytest.approx((2 * raw["b"], max(2 * raw["b"], raw["c"])))


def test_named_pairs_are_tested_beside_the_baseline_and_corrected_with_all(values):
    results = [_result(name, values[name]) for name in "abc"] + [_result("b", values["a"], llm=True)]
    tests = [["b", "c"], ["c", "a"], ["b · LLM", "c"], ["c · LLM", "a"]]  # the second is there already, the last is not
    rows = summary.differences(results, "a", ["ndcg@10"], tests)
    assert [(row["variant"], row["reference"]) for row in rows] == [
        ("b", "a"), ("c", "a"), ("b · LLM", "a"), ("b", "c"), ("b · LLM", "c")
    ]  # fmt: skip
    named = rows[3]
    ours, base = (np.array(list(values[name].values())) for name in "bc")
    assert named["relative"] == pytest.approx(ours.mean() / base.mean() - 1)
    assert named["interval"] == statistics.relative_interval(ours.mean(axis=0), base.mean(axis=0))
    assert named["interval"][0] < named["relative"] < named["interval"][1]
    assert [row["p_users"] for row in rows] == statistics.holm([row["p_users_uncorrected"] for row in rows])
    # the LLM of b is the baseline itself: no difference, no interval around anything else
    assert (rows[2]["difference"], rows[2]["interval"]) == (0.0, (0.0, 0.0))


def _phase(side, number, score, **more):
    taught = {"taught": number > 0, "counts": number > 0}
    about = {"label": f"{side} {number}", "side": side, "round": number, "epochs": 4, "seconds": 2.0}
    return {**about, "best_valid_score": score, **taught, **more}


def test_phases_are_those_of_a_side_over_the_seeds(values):
    served, llm = (_result("a", values["a"], llm=llm) for llm in (False, True))
    for result in (served, llm):
        for seed, record in result.records.items():
            phases = [_phase("LLM", 0, 0.9), _phase("CRM", 1, 0.1 * seed), _phase("LLM", 1, 0.4, epochs=seed)]
            record["distillation"] = {"phases": [*phases, _phase("CRM", 2, 0.5)]}
    rows = summary.phase_rows([served, llm, _result("b", values["b"])])
    assert [(row["variant"], row["label"], row["counts"]) for row in rows] == [
        ("a", "CRM 1", True),
        ("a", "CRM 2", True),
        ("a · LLM", "LLM 0", False),
        ("a · LLM", "LLM 1", True),
    ]
    assert rows[0]["valid"] == pytest.approx((0.2, 0.1, 3)) and rows[3]["epochs"] == pytest.approx((2.0, 1.0, 3))
    shown = summary.result_rows([served, llm, _result("b", values["b"])], ["ndcg@10"])[:2]
    assert [row["trainings"] for row in shown] == [2, 1]


def test_models_that_do_not_know_the_validation_item_are_told(values):
    without = _result("b", values["b"])
    for record in without.records.values():
        record.update(variant="b", knows_validation_item=False)
    (note,) = summary.notes([], [], [_result("a", values["a"]), without], False)
    assert note.startswith("Without the user's validation item at test") and ": b. " in note


def test_an_llm_is_compared_with_the_baselines_llm_where_there_is_one(values):
    base, base_llm = _result("a", values["a"]), _result("a", values["b"], llm=True)
    other, other_llm = _result("b", values["b"]), _result("b", values["c"], llm=True)
    results = [base, base_llm, other, other_llm]
    assert [summary.reference_of(result, results, "a") for result in results] == [base, base_llm, base, base_llm]
    assert summary.reference_of(other_llm, [base, other, other_llm], "a") is base
    assert [row["reference"] for row in summary.differences(results, "a", ["ndcg@10"])] == ["a", "a · LLM"]


def test_what_was_measured_on_other_data_is_not_compared(values):
    results = [_result("a", values["a"]), _result("b", values["b"], vocabulary="w")]
    (row,) = summary.differences(results, "a", ["ndcg@10"])
    assert row["difference"] is None and row["p_users"] is None
    assert ["same users and items" in note for note in summary.notes([], [], results, False)] == [True]


def test_users_that_only_some_are_tested_on_are_told_and_left_out(values):
    fewer = {seed: v[:30] for seed, v in values["b"].items()}
    results = [_result("a", values["a"]), _result("b", fewer, users=USERS[:30])]
    (row,) = summary.differences(results, "a", ["ndcg@10"])
    expected = np.mean([fewer[s] - values["a"][s][:30] for s in fewer])
    assert row["users"] == 30 and row["difference"] == pytest.approx(expected)
    assert ["not all variants are tested on the same users" in n for n in summary.notes([], [], results, False)] == [
        True
    ]


def test_breakdown_by_popularity(values):
    results = [_result("a", values["a"]), _result("b", values["b"])]
    rows = summary.breakdown(results, "ndcg@10", "popularity", summary.NEVER)
    cold = [row for row in rows if row["popularity"] == summary.NEVER]
    assert [(row["variant"], row["users"]) for row in cold] == [("a", 10), ("b", 10)]
    expected = [np.mean(v[:10]) for v in values["b"].values()]
    assert cold[1]["ndcg@10"] == pytest.approx((np.mean(expected), np.std(expected, ddof=1), 3))
    assert sum(row["users"] for row in rows if row["variant"] == "a") == 40


def test_notes_of_failures_interruptions_and_commits(values):
    cell = Cell("d", "b", "BPR", 7, {}, [], False, "k")
    failed = {**_record(), "status": "failed", "error": ["x", "ValueError: y"]}
    result = _result("a", values["a"], seconds=None)
    result.records[2]["commit"] = "e"
    notes = summary.notes([cell, cell], [failed, _record()], [result], False)
    assert notes[0] == "Failed: d, b, seed 7: ValueError: y"
    assert "leave out the cells that were interrupted" in notes[1] and notes[2].endswith("different commits: c, e.")


def test_the_time_left_is_that_of_finished_cells_of_the_same_variant():
    a, b = (Cell("d", name, "BPR", 1, {}, [], False, "k") for name in "ab")
    again = [dataclasses.replace(cell, seed=2) for cell in (a, b)]
    assert time_left([a, b], {}) == ""
    assert time_left([b, *again], {a: _record(seconds=100.0)}) == "; at least 2 min left"
    assert time_left(again, {a: _record(seconds=3600.0), b: _record(seconds=7200.0)}) == "; about 3 h 0 min left"
    assert (duration(30.4), duration(5400)) == ("30 s", "1 h 30 min")
