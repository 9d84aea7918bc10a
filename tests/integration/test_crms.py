"""The contract suite over CRMs of each kind, and the CRMs that are refused."""

from typing import ClassVar

import pytest

from recbole_llmd.data.windows import WindowLoader, build_windows
from recbole_llmd.distill.scorers import CRMScorer
from recbole_llmd.errors import ModelError, SettingsError
from tests.helpers.crm_contract import CRMContract, compare_with_prefixes


class TestSASRec(CRMContract):
    crm, windows = "SASRec", True
    settings: ClassVar = {"n_heads": 2}


class TestGRU4Rec(CRMContract):
    crm, windows = "GRU4Rec", True
    settings: ClassVar = {"embedding_size": 16}


class TestBERT4Rec(CRMContract):
    """Not causal, its own masked loss, a transform of its own."""

    crm = "BERT4Rec"


class TestNARM(CRMContract):
    """Calls gather_indexes in the middle of its forward pass."""

    crm = "NARM"
    settings: ClassVar = {"embedding_size": 16}


class TestRepeatNet(CRMContract):
    """Its scores are probabilities, not logits."""

    crm = "RepeatNet"
    settings: ClassVar = {"embedding_size": 16}


class TestCaser(CRMContract):
    """Reads the user, and adds regularisers to its loss."""

    crm = "Caser"
    settings: ClassVar = {"embedding_size": 16}


class TestBPR(CRMContract):
    """A causal CRM with a pairwise loss keeps that loss and RecBole's negative samples."""

    crm = "SASRec"
    settings: ClassVar = {"loss_type": "BPR"}


class TestFeatures(CRMContract):
    """Reads item features beside the ids."""

    crm, windows = "SASRecF", True
    settings: ClassVar = {
        "selected_features": ["genre"],
        "pooling_mode": "mean",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "genre"]},
    }


@pytest.mark.parametrize(
    "crm, error, reason",
    [
        ("DIN", ModelError, "no full_sort_predict"),
        ("DIEN", SettingsError, "DIENDataset"),
        ("GRU4RecKG", SettingsError, "GRU4RecKGDataset"),
        ("S3Rec", SettingsError, "S3RecTrainer"),
        ("LightGCN", SettingsError, "sequential"),
        ("SASrec", SettingsError, "The nearest name is 'SASRec'"),
    ],
)
def test_refused_by_name_with_the_reason(build, fast_distill, crm, error, reason):
    with pytest.raises(error, match=f"crm_model = '{crm}'.*{reason}"):
        _, (train, _, _), model = build(fast_distill, crm_model=crm)
        CRMScorer(model.crm, train.dataset, train)


def test_forward_alone_is_enough(build, fast_distill, monkeypatch):
    """A CRM without full_sort_predict but with forward(item_seq, item_seq_len) is scored against its item embedding."""
    import torch
    from recbole.model.abstract_recommender import AbstractRecommender
    from recbole.model.sequential_recommender import GRU4Rec

    _, (train, _, _), model = build(fast_distill, crm_model="GRU4Rec", embedding_size=16)
    samples = train.dataset[torch.arange(20)]
    model.eval()
    expected = model.crm.full_sort_predict(samples)
    monkeypatch.setattr(GRU4Rec, "full_sort_predict", AbstractRecommender.full_sort_predict)
    scorer = CRMScorer(model.crm, train.dataset, train)
    assert scorer.causal
    torch.testing.assert_close(scorer.sample_logits(samples), expected)


@pytest.mark.parametrize("biased", [False, True])
def test_factors_are_the_scores(build, fast_distill, monkeypatch, biased):
    """A CRM that adds something to the products of outputs and item vectors gives its scores whole."""
    from recbole.model.sequential_recommender import SASRec

    if biased:
        products = SASRec.full_sort_predict

        def full_sort_predict(self, batch):
            return products(self, batch) + self.item_embedding.weight.sum(1)

        def calculate_loss(self, batch):
            return self.loss_fct(full_sort_predict(self, batch), batch[self.POS_ITEM_ID])

        monkeypatch.setattr(SASRec, "full_sort_predict", full_sort_predict)
        monkeypatch.setattr(SASRec, "calculate_loss", calculate_loss)
    config, (train, _, _), model = build(fast_distill, crm_model="SASRec", n_heads=2)
    scorer = CRMScorer(model.crm, train.dataset, train)
    assert scorer.causal and scorer.by_product is not biased
    model.crm.eval()
    batch = next(iter(WindowLoader(build_windows(train.dataset), config, 64)))
    assert (scorer.window_factors(batch)[1] is None) is biased
    assert compare_with_prefixes(scorer, config, batch) > 20
