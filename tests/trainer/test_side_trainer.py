"""The phases of a side, and its evaluation without padding."""

import pytest
import torch
from recbole.trainer import Trainer

from recbole_llmd.distill.training_path import crm_path, llm_path
from recbole_llmd.trainer.objective import Objective
from recbole_llmd.trainer.phase_run import FitArguments, Interruption, PhaseRun
from recbole_llmd.trainer.side_trainer import SideTrainer


@pytest.mark.parametrize("dtype, precision", [("bfloat16", "medium"), ("float32", "highest")])
def test_float32_products_are_as_exact_as_the_backbone(build, fast, dtype, precision):
    """Only while an epoch of the LLM lasts, also when it fails."""
    config, (train, _, _), model = build({**fast, "model": "LLMRec"}, llm_dtype=dtype)
    llm = SideTrainer(config, model, "LLM")
    llm.prepare(llm_path(model, config, train, 0.0))
    seen = []

    class Failing(Objective):
        def __call__(self, batch):
            seen.append(torch.get_float32_matmul_precision())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        llm.run_phase(PhaseRun(0, "LLM", 1, Failing(llm.path), FitArguments(train)))
    assert seen == [precision] and torch.get_float32_matmul_precision() == "highest"


@pytest.fixture
def crm_side(build, fast_distill):
    """``crm_side(**settings)`` gives a new CRM's trainer that is ready, and its loaders."""

    def _crm_side(**settings):
        config, (train, valid, _), model = build(fast_distill, **settings)
        crm = SideTrainer(config, model.crm, "CRM")
        crm.prepare(crm_path(model.crm, config, train, 0.0))
        return crm, train, valid

    return _crm_side


def _weights(side):
    return {name: value.clone() for name, value in side.model.state_dict().items()}


def _equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_phase_tells_when_an_epoch_begins(crm_side):
    """Before its first batch: the weights are those that the phase begins with, or the epoch before has left."""
    crm, train, _ = crm_side()
    built_with, seen = _weights(crm), []
    run = PhaseRun(
        3,
        "a phase",
        2,
        crm.own_objective(),
        FitArguments(train),
        on_epoch_begin=lambda epoch: seen.append((epoch, _weights(crm))),
    )
    crm.run_phase(run)
    assert [epoch for epoch, _ in seen] == [0, 1]
    assert _equal(seen[0][1], built_with) and not _equal(seen[1][1], built_with)
    assert [(figures["label"], figures["epoch"]) for figures in crm.figures] == [("a phase", 0), ("a phase", 1)]


def test_the_first_phase_and_a_restart_begin_with_the_initial_weights_given(crm_side):
    crm, train, _ = crm_side()
    built_with, name = _weights(crm), "item_embedding.weight"
    given, seen = torch.full_like(built_with[name], 0.5), []
    crm.start_from({name: given})
    for number, restart in enumerate((False, True, False)):
        crm.run_phase(
            PhaseRun(
                number,
                f"phase {number}",
                1,
                crm.own_objective(),
                FitArguments(train),
                restart=restart,
                on_epoch_begin=lambda epoch: seen.append(_weights(crm)),
            )
        )
    for weights in seen[:2]:
        assert torch.equal(weights.pop(name), given)
        assert _equal(weights, built_with)
    assert not torch.equal(seen[2][name], given)


def test_a_side_ends_with_the_best_phase_that_counts_and_goes_on_from_the_best_of_all(crm_side):
    """A phase that supersedes the ones before it is worse than they: it is what the side ends with all the same."""
    crm, train, valid = crm_side(learning_rate=0.01, stopping_step=20)

    def phase(number, epochs, **more):
        run = PhaseRun(number, f"phase {number}", epochs, crm.own_objective(), FitArguments(train, valid), **more)
        crm.run_phase(run)
        return crm.phases[-1]["best_valid_score"]

    long = phase(0, 12)
    best_of_all = _weights(crm)
    short = phase(1, 1, restart=True, supersedes=True)
    assert short < long and crm.best.score == long and crm.best_that_counts.score == short
    assert _equal(_weights(crm), best_of_all)
    later = phase(2, 1, restart=True)  # another draw of the same training
    crm.finish()
    assert crm.best_valid_score == max(short, later) == crm.best_valid_result["ndcg@10"]
    assert crm.evaluate(valid, load_best_model=False)["ndcg@10"] == max(short, later)
    first = crm.phases[0]
    valids = [figures["valid"] for figures in crm.figures if figures["label"] == "phase 0"]
    assert (first["epochs"], first["best_epoch"], first["best_valid_score"]) == (12, valids.index(long), long)
    assert first["seconds"] == sum(figures["seconds"] for figures in crm.figures[:12])


def test_an_interrupted_phase_goes_on_before_its_epoch(crm_side):
    """With optimizer, weights and count: the epochs after it end with the weights of an uninterrupted phase."""
    progress = {}

    def keep(side, epoch):
        if epoch == 2:
            torch.save(side.progress(), "progress.pth")

    for interruption in (False, True):
        crm, train, valid = crm_side()
        if interruption:
            interruption = Interruption(2, torch.load("progress.pth", weights_only=False))
        crm.run_phase(
            PhaseRun(
                1,
                "a phase",
                4,
                crm.own_objective(),
                FitArguments(train, valid),
                interruption=interruption or None,
                on_epoch_begin=lambda epoch, crm=crm: keep(crm, epoch),
            )
        )
        progress[bool(interruption)] = crm.progress()
    assert len(progress[True]["figures"]) == 4
    for name in ("state_dict", "best_state"):
        assert _equal(progress[False][name], progress[True][name])


def test_validation_of_a_causal_crm_computes_no_padding(crm_side):
    """The metrics are those of RecBole's own evaluation; every pass is as wide as its longest history."""
    crm, train, valid = crm_side(MAX_ITEM_LIST_LENGTH=30)
    model, widths = crm.model, []
    forward = model.forward  # full_sort_predict calls it past the hooks

    def seen(item_seq, item_seq_len):
        widths.append((item_seq.shape[1], int(item_seq_len.max())))
        return forward(item_seq, item_seq_len)

    model.forward = seen
    crm.eval_collector.data_collect(train)
    got = crm.evaluate(valid, load_best_model=False)
    assert widths and all(width == longest for width, longest in widths)
    del model.forward
    plain = Trainer(crm.config, model)
    plain.eval_collector.data_collect(train)
    assert got == plain.evaluate(valid, load_best_model=False)
