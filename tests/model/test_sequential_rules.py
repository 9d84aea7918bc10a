"""SequentialRules: what it scores by, what its settings change, and its checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_trainer

from recbole_llmd.data.transitions import Samples
from recbole_llmd.distill.evidence import USUAL, Evidence, PooledEvidence


@pytest.fixture
def settings(fast):
    return {key: value for key, value in fast.items() if not key.startswith("llm_")} | {"model": "SequentialRules"}


@pytest.fixture
def trained(build, settings):
    """``trained(**more)`` gives the trainer and the loaders."""

    def _trained(**more):
        config, loaders, model = build({**settings, **more})
        trainer = get_trainer(config["MODEL_TYPE"], "SequentialRules")(config, model)
        trainer.fit(*loaders[:2], verbose=False, saved=False)
        return trainer, loaders

    return _trained


def test_it_scores_by_the_pooled_evidence_of_the_training_samples(trained):
    trainer, (train, _, _) = trained()
    model = trainer.model
    interactions = train.dataset.inter_feat
    first = interactions["item_length"] == 1  # the first item of a user is no sample's target
    chosen = torch.cat([interactions["item_id"], interactions["item_id_list"][first, 0]])
    assert model.popularity.tolist() == torch.bincount(chosen, minlength=model.n_items).tolist()
    evidence = Evidence.of(Samples.of(train.dataset), model.popularity, model.texts)
    batch = Interaction({"item_id_list": torch.tensor([[4, 9, 2, 0]]), "item_length": torch.tensor([3])})
    expected = PooledEvidence(evidence, model.evidence.weights).scores(np.array([[4, 9, 2]]), np.array([3]))
    torch.testing.assert_close(model.full_sort_predict(batch), expected)
    batch.update(Interaction({"item_id": torch.tensor([5])}))
    torch.testing.assert_close(model.predict(batch), expected[:, 5])


def test_it_learns_the_walks_of_the_tiny_dataset(settings):
    assert run_recbole(config_dict=settings)["test_result"]["ndcg@10"] > 0.2


def test_the_result_is_that_of_all_validation_users(trained):
    trainer, (_, valid, _) = trained(rules_validation_users=10)
    again, _ = trained(rules_validation_users=10)
    other, _ = trained(rules_validation_users=10, seed=1)
    weights = [each.model.evidence.weights for each in (trainer, again, other)]
    assert weights[0] == weights[1] != weights[2]
    assert trainer.best_valid_result == trainer.evaluate(valid, load_best_model=False)


def test_without_validation_the_usual_weights_are_taken(build, settings):
    config, (train, *_), model = build(settings)
    trainer = get_trainer(config["MODEL_TYPE"], "SequentialRules")(config, model)
    trainer.fit(train, None, verbose=False, saved=False)
    assert model.evidence.weights == USUAL


@pytest.mark.parametrize(("setting", "kind"), [("rules_linear", 2), ("rules_text", 3)])
def test_evidence_can_be_left_out(trained, setting, kind):
    trainer, _ = trained(**{setting: False})
    usual, _ = trained()
    assert trainer.model.evidence.weights.kinds[kind] == 0 < usual.model.evidence.weights.kinds[kind]


def test_data_without_texts_are_counted_alone(trained, workdir, settings):
    folder = workdir / "bare" / "tiny"
    folder.mkdir(parents=True)
    (folder / "tiny.inter").write_bytes((Path(settings["data_path"]) / "tiny" / "tiny.inter").read_bytes())
    trainer, _ = trained(data_path=str(workdir / "bare"))
    assert trainer.model.texts is None and trainer.model.evidence.weights.kinds[3] == 0


def test_a_checkpoint_has_all_that_is_served(settings):
    result = run_recbole(config_dict=settings)
    (file,) = Path("saved").glob("SequentialRules-tiny-*.pth")
    config, model, _, _, _, test = load_data_and_model(str(file))
    trainer = get_trainer(config["MODEL_TYPE"], "SequentialRules")(config, model)
    assert dict(trainer.evaluate(test, load_best_model=False)) == dict(result["test_result"])
    model.evidence.matrix, model.evidence.next = model.evidence.matrix * 0, model.evidence.next * 0
    assert dict(trainer.evaluate(test, load_best_model=False)) != dict(result["test_result"])
