"""The published loop of LLMD4Rec: an LLM that reads the CRM's item vectors, and rounds that go on."""

import pytest
import torch
import yaml
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_trainer

from recbole_llmd.config import PROPERTIES
from recbole_llmd.errors import ModelError
from recbole_llmd.trainer.llmd4rec import plan
from tests.helpers.ids import stable_id


@pytest.fixture
def published(fast_distill):
    """The property file's settings, with little training."""
    given = yaml.safe_load((PROPERTIES / "published.yaml").read_text(encoding="utf-8"))
    return {**fast_distill, **given, "crm_warmup_epochs": 2, "distill_rounds": 3}


def _trained(build, settings, **more):
    """The trainer, and what the vectors of both sides were before every epoch: (label, epoch, the LLM's, the CRM's)."""
    config, (train, valid, _), model = build(settings, **more)
    trainer, seen = get_trainer(config["MODEL_TYPE"], config["model"])(config, model), []

    def look(student, epoch):
        seen.append((student.label, epoch, model.llm.crm_vectors.clone(), model.crm_vectors().clone()))

    trainer.on_epoch_begin.append(look)
    trainer.fit(train, valid, saved=False, verbose=False)
    return trainer, seen


def _of_unit_length(vectors):
    """By hand: no padding item, and a mean square length of 1."""
    rows = vectors[1:].double().tolist()
    mean = sum(x * x for row in rows for x in row) / len(rows)
    return torch.tensor([[0.0] * len(rows[0])] + [[x / mean**0.5 for x in row] for row in rows])


# --- what the LLM reads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["crm", "both"])
def test_soft_tokens_are_projected_vectors_of_the_crm_and_texts(build, fast_distill, reads):
    _, (train, _, _), model = build(fast_distill, llm_item_vectors=reads)
    llm, texts = model.llm.eval(), []
    layer = llm.input_projection.register_forward_hook(lambda _module, args, _out: texts.append(args[0]))
    item_seq = train.dataset[torch.arange(5)]["item_id_list"]
    with torch.no_grad():
        llm.position_outputs(item_seq, item_seq > 0, llm.item_vectors())
        layer.remove()
        by_hand = _of_unit_length(model.crm.item_embedding.weight) @ llm.crm_projection.weight.t()
        by_hand = by_hand + llm.text @ llm.text_projection.weight.t()
        if reads == "both":
            by_hand = by_hand + llm.item_embedding.weight
        expected = llm.input_norm(by_hand.float()[item_seq])
    torch.testing.assert_close(texts[0], expected, rtol=1e-4, atol=1e-5)
    assert expected[item_seq > 0].std() > 0.5


def test_of_items_known_by_text_alone_no_vector_is_read(build, fast_distill):
    _, _, model = build(fast_distill, llm_item_vectors="crm")
    model.llm.text_only_items = torch.arange(model.n_items) == 7
    rows = model.llm.brought_to_unit_length(model.crm_vectors())
    assert (~rows.any(1)).nonzero().flatten().tolist() == [0, 7]
    assert rows.square().sum().item() == pytest.approx(model.n_items - 2, rel=1e-5)


def test_vectors_are_no_parameters_and_the_llm_learns_from_them(build, published):
    trainer, _ = _trained(build, published, distill_rounds=1)
    llm = trainer.model.llm
    assert "crm_vectors" in llm.state_dict() and "crm_vectors" not in dict(llm.named_parameters())
    assert not torch.equal(llm.crm_projection.weight, trainer.sides["LLM"].initial_state["crm_projection.weight"])


@pytest.mark.parametrize("crm", ["FPMC", "FOSSIL"])
def test_a_crm_without_item_vectors_is_refused(build, fast_distill, crm):
    if crm == "FOSSIL":  # it has them
        _, _, model = build(fast_distill, crm_model=crm, llm_item_vectors="crm")
        assert model.llm.crm_vectors.shape[0] == model.n_items
        return
    with pytest.raises(
        ModelError, match=r"crm_model = 'FPMC'.*no item vectors in item_embedding.*llm_item_vectors: own"
    ):
        build(fast_distill, crm_model=crm, llm_item_vectors="crm")


def test_a_mask_token_of_the_crm_is_no_item(build, fast_distill):
    _, _, model = build(fast_distill, crm_model="BERT4Rec", llm_item_vectors="crm")
    assert len(model.crm.item_embedding.weight) > model.n_items == len(model.llm.crm_vectors)


# --- when it reads what -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("refresh", [True, False])
def test_vectors_are_frozen_in_a_phase_and_refreshed_between(build, published, restart, refresh):
    _, seen = _trained(build, published, distill_refresh_vectors=refresh, distill_restart=restart)
    read = {}
    for label, _, of_llm, of_crm in seen:
        if "LLM phase" in label:
            read.setdefault(label[:7], []).append(of_llm)
            current = torch.allclose(of_llm, _of_unit_length(of_crm), atol=1e-5)
            assert current == (refresh or label.startswith("round 1"))
    assert list(read) == ["round 1", "round 2", "round 3"]
    for vectors in read.values():
        assert len(vectors) == 2 and torch.equal(*vectors)
    assert torch.equal(read["round 1"][0], read["round 2"][0]) != refresh


def test_the_best_weights_keep_the_vectors_that_they_were_trained_for(build, published):
    """With a learning rate that ruins every later round, the LLM of round 1 stays, with the vectors of round 1."""
    config, (train, valid, _), model = build(published)
    trainer, read = get_trainer(config["MODEL_TYPE"], config["model"])(config, model), []

    def ruin(student, epoch):
        if student.side == "LLM" and epoch == 0:
            read.append(model.llm.crm_vectors.clone())
            for group in student.optimizer.param_groups:
                group["lr"] = 0.002 if len(read) == 1 else 5.0

    trainer.on_epoch_begin.append(ruin)
    trainer.fit(train, valid, saved=False, verbose=False)
    assert len(read) == 3 and not torch.equal(read[0], read[2])
    assert torch.equal(model.llm.crm_vectors, read[0])
    again = trainer.sides["LLM"].evaluate(valid, load_best_model=False)
    assert again["ndcg@10"] == trainer.sides["LLM"].best_valid_score


def test_the_crm_is_warmed_up_before_the_llm_that_reads_it(build, fast_distill):
    for reads, first in (("own", "LLM"), ("crm", "CRM"), ("both", "CRM")):
        config, _, _ = build(fast_distill, llm_item_vectors=reads)
        assert [phase.student for phase in plan(config)][:2] == [first, {"CRM": "LLM", "LLM": "CRM"}[first]]


# --- rounds that go on ------------------------------------------------------------------------------------------------


def test_phases_go_on_with_a_fresh_optimizer_and_an_own_patience(build, published):
    """Each phase begins with its side's best weights so far, and its own count of epochs without a better result."""
    config, (train, valid, _), model = build(published, stopping_step=1, epochs=4, llm_stopping_step=1, llm_epochs=4)
    trainer, begun = get_trainer(config["MODEL_TYPE"], config["model"])(config, model), []
    most = {phase.label: phase.epochs for phase in plan(config)}

    def look(student, epoch):
        if epoch == 0:
            begun.append(student.label)
            assert not student.optimizer.state and student.cur_step == 0
            if student.best is not None:
                for name, value in student.best.state.items():
                    if name != "crm_vectors":
                        assert torch.equal(value, student.model.state_dict()[name])

    trainer.on_epoch_begin.append(look)
    trainer.fit(train, valid, saved=False, verbose=False)
    assert begun == list(most) and len(begun) == 7
    for side in trainer.sides.values():
        phases = {}
        for figures in side.figures:
            phases.setdefault(figures["label"], []).append(figures["valid"])
        for label, scores in phases.items():
            worse, best_so_far = 0, -1.0
            for number, score in enumerate(scores):  # RecBole ends after more than one epoch without a better result
                worse = 0 if score >= best_so_far else worse + 1
                best_so_far = max(score, best_so_far)
                assert (worse > 1 or number == most[label] - 1) == (number == len(scores) - 1)
        assert side.best_valid_score == max(max(scores) for label, scores in phases.items() if "teaches" in label)


# --- files ------------------------------------------------------------------------------------------------------------


def test_checkpoint_and_adapter_hold_the_vectors(published, workdir):
    run_recbole(config_dict=dict(published))
    (checkpoint,) = (workdir / "saved").glob("*.pth")
    _, model, *_ = load_data_and_model(str(checkpoint))
    llm, batch = model.llm.eval(), model.llm.n_items
    item_seq = torch.arange(1, 11).repeat(3, 1) % batch
    lengths = torch.tensor([10, 10, 10])
    interaction = {"item_id_list": item_seq, "item_length": lengths}
    with torch.no_grad():
        expected = llm.full_sort_predict(interaction)
        vectors = llm.crm_vectors.clone()
        for tensor in llm.head_state().values():
            tensor.add_(1.0)
        assert not torch.equal(llm.train().eval().full_sort_predict(interaction), expected)
        (adapter,) = (workdir / "saved").glob("*-adapter")
        llm.load_adapter(adapter)
        assert torch.equal(llm.crm_vectors, vectors) and vectors.any()
        assert torch.equal(llm.full_sort_predict(interaction), expected)


def test_the_experiment_measures_the_property_file():
    """properties/published.yaml and the variant of that name are the same method; each other variant lacks one part."""
    method = yaml.safe_load((PROPERTIES / "published.yaml").read_text(encoding="utf-8"))
    content = yaml.safe_load((PROPERTIES / "experiment" / "published-loop.yaml").read_text(encoding="utf-8"))
    variants = content["variants"]
    assert variants["published"] == {"model": "LLMD4Rec", **method}
    for name in ("without loop", "uniform weights", "rescaled weights", "vectors of the warm-up", "own vectors"):
        changed = [key for key in variants["published"] if variants[name][key] != variants["published"][key]]
        assert len(changed) == 1, name


@pytest.mark.parametrize(
    "more", [{"crm_model": "GRU4Rec"}, {"llm_item_vectors": "both", "llm_match_rank": 4}], ids=stable_id
)
def test_it_composes(published, more):
    result = run_recbole(config_dict={**published, "epochs": 1, "llm_epochs": 1, **more})
    assert [phase["label"] for phase in result["distillation"]["phases"][:3]] == [
        "warm-up, CRM phase",
        "round 1, LLM phase (CRM teaches)",
        "round 1, CRM phase (LLM teaches)",
    ]
    assert len(result["distillation"]["phases"]) == 7
