"""A pooled teacher's distributions, over training samples and synthetic histories, against plain ones."""

import numpy as np
import pytest
import torch

from recbole_llmd.data.windows import number_samples
from recbole_llmd.distill.evidence import USUAL
from recbole_llmd.trainer.llmd4rec import LLMD4RecTrainer, Phase

CRMS = ["SASRec", "BERT4Rec"]  # over windows, and sample by sample


@pytest.fixture
def trainer_of(build, fast_distill):
    def make(**settings):
        config, (train, valid, _), model = build(
            {**fast_distill, "distill_topk": 0, "distill_temperature_llm_to_crm": 1.0, "MAX_ITEM_LIST_LENGTH": 40},
            model="LLMD4Rec",
            **settings,
        )
        number_samples(train.dataset)
        trainer = LLMD4RecTrainer(config, model)
        trainer.prepare(train, valid)
        return trainer, train.dataset, valid.dataset

    return make


@torch.no_grad()
def _log_probabilities(model, dataset):
    model.eval()
    scores = model.full_sort_predict(dataset[np.arange(len(dataset))])
    return torch.log_softmax(scores.view(len(dataset), -1)[:, 1:], dim=-1), scores


@pytest.mark.parametrize("crm", CRMS)
@pytest.mark.parametrize("student", ["CRM", "LLM"])
def test_the_teacher_is_the_product_of_powers_of_model_and_evidence(trainer_of, crm, student):
    trainer, train, _ = trainer_of(crm_model=crm, distill_synthetic=0)
    teaching = trainer._teaching
    cache = trainer.objective_for(Phase(1, student, 1, True)).teacher
    teacher = trainer.sides["LLM" if student == "CRM" else "CRM"]
    weights = teaching.weights(teacher.path)
    of_model, _ = _log_probabilities(teacher.model, train)

    features = teaching.evidence.features(teaching.samples.items, teaching.samples.lengths)
    evidence = sum(w * feature.double() for w, feature in zip(weights.kinds, features)) + weights.floor
    logits = weights.sharpness * evidence.log()[:, 1:] + weights.model * of_model
    text_only = trainer.model.llm.text_only_items
    if student == "LLM" and text_only is not None:
        logits[:, text_only[1:]] = -1e4
    expected = torch.log_softmax(logits, dim=-1)
    got = torch.from_numpy(np.asarray(cache.logp)).double()
    assert torch.allclose(got, expected, atol=2e-3)


def test_weights_make_validation_samples_likelier_than_the_usual_ones(trainer_of):
    trainer, _, valid = trainer_of()
    teaching, path = trainer._teaching, trainer.sides["LLM"].path
    of_model = torch.log_softmax(_log_probabilities(trainer.model.llm, valid)[1].float(), dim=-1)
    feat = valid.inter_feat
    items, lengths, targets = (feat[field] for field in ("item_id_list", "item_length", "item_id"))
    features = teaching.evidence.features(items.numpy(), lengths.numpy())

    def loss(weights):
        evidence = sum(w * feature for w, feature in zip(weights.kinds, features)) + weights.floor
        logits = weights.sharpness * evidence.log() + weights.model * of_model
        return torch.nn.functional.cross_entropy(logits[:, 1:], targets - 1).item()

    assert loss(teaching.weights(path)) < loss(USUAL) - 0.01


def test_without_validation_data_the_weights_are_the_usual_ones(trainer_of):
    trainer, _, _ = trainer_of()
    trainer._teaching.valid_data = None
    assert trainer._teaching.weights(trainer.sides["LLM"].path) == USUAL


def test_without_evidence_the_teacher_is_the_other_side(trainer_of):
    trainer, train, _ = trainer_of(distill_evidence=False, distill_synthetic=0)
    cache = trainer.objective_for(Phase(1, "CRM", 1, True)).teacher
    expected, _ = _log_probabilities(trainer.model.llm, train)
    assert torch.allclose(torch.from_numpy(np.asarray(cache.logp)), expected, atol=2e-3)


@pytest.mark.parametrize("crm", CRMS)
def test_synthetic_histories_are_taught_by_the_same_teacher(trainer_of, crm):
    trainer, _, _ = trainer_of(crm_model=crm, distill_evidence=False)
    objective = trainer.objective_for(Phase(1, "CRM", 1, True))
    objective.begin_epoch(0, lambda epoch: 7 + epoch)
    synthetic = objective.synthetic
    batch = synthetic.next()
    _, numbers = synthetic.path.samples(batch)
    dataset = synthetic.path.windows.windows if crm == "SASRec" else synthetic.path.dataset
    histories = _histories(dataset, numbers)
    expected = trainer.model.llm.full_sort_predict(histories)[:, 1:].log_softmax(-1)
    got = synthetic.teacher.read(numbers, "cpu").logp
    assert torch.allclose(got, expected, atol=2e-3)

    student = trainer.sides["CRM"]
    student.model.eval()
    log_q = student.model.full_sort_predict(histories).view(len(numbers), -1)[:, 1:].log_softmax(-1)
    naive = (expected.exp() * (expected - log_q)).sum(-1).mean()
    synthetic._batches = iter([batch])
    assert objective._synthetic_term(synthetic).item() == pytest.approx(naive.item(), rel=5e-3)


def _histories(dataset, numbers):
    from recbole.data.interaction import Interaction

    if hasattr(dataset, "inter_feat"):
        return dataset[numbers.numpy()]
    rows, lengths = [], []
    for number in numbers.tolist():
        window, position = np.argwhere(dataset.samples == number)[0]
        rows.append(np.where(np.arange(dataset.items.shape[1]) <= position, dataset.items[window], 0))
        lengths.append(position + 1)
    return Interaction({"item_id_list": torch.tensor(np.array(rows)), "item_length": torch.tensor(lengths)})


def test_histories_are_drawn_anew_after_the_epochs_set_and_do_not_depend_on_the_epochs_before(trainer_of):
    trainer, _, _ = trainer_of(distill_synthetic_epochs=2)
    items = []
    for epochs in ((0, 1, 2), (3,)):
        objective = trainer.objective_for(Phase(1, "CRM", 1, True))
        for epoch in epochs:
            objective.begin_epoch(epoch, lambda epoch: 100 + epoch)
            items.append(objective.synthetic.path.windows.windows.items.tolist())
    assert items[0] == items[1] != items[2] == items[3]
