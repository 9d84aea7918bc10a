"""The contract suite over CRMs of each kind, and the CRMs that are refused."""

import pytest

from recbole_llmd.data.windows import WindowLoader, add_row_numbers, build_windows
from recbole_llmd.distill.scorers import CRMScorer
from recbole_llmd.errors import SettingsError
from tests.helpers.crm_contract import CRMContract, compare_with_prefixes


class TestSASRec(CRMContract):
    crm, windows = "SASRec", True
    settings = {"n_heads": 2}


class TestGRU4Rec(CRMContract):
    crm, windows = "GRU4Rec", True
    settings = {"embedding_size": 16}


class TestBERT4Rec(CRMContract):
    """Not causal, its own masked loss, a transform of its own."""

    crm = "BERT4Rec"


class TestNARM(CRMContract):
    """Calls gather_indexes in the middle of its forward pass."""

    crm = "NARM"
    settings = {"embedding_size": 16}


class TestRepeatNet(CRMContract):
    """Its scores are probabilities, not logits."""

    crm = "RepeatNet"
    settings = {"embedding_size": 16}


class TestCaser(CRMContract):
    """Reads the user, and adds regularisers to its loss."""

    crm = "Caser"
    settings = {"embedding_size": 16}


class TestBPR(CRMContract):
    """A causal CRM with a pairwise loss keeps that loss and RecBole's negative samples."""

    crm = "SASRec"
    settings = {"loss_type": "BPR"}


class TestFeatures(CRMContract):
    """Reads item features beside the ids."""

    crm, windows = "SASRecF", True
    settings = {
        "selected_features": ["genre"],
        "pooling_mode": "mean",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "genre"]},
    }


@pytest.mark.parametrize(
    "crm, reason",
    [
        ("DIN", "no full_sort_predict"),
        ("DIEN", "DIENDataset"),
        ("GRU4RecKG", "GRU4RecKGDataset"),
        ("S3Rec", "S3RecTrainer"),
        ("LightGCN", "sequential"),
        ("SASrec", "The nearest name is 'SASRec'"),
    ],
)
def test_refused_by_name_with_the_reason(build, fast_distill, crm, reason):
    with pytest.raises(SettingsError, match=f"crm_model = '{crm}'.*{reason}"):
        config, (train, _, _), model = build(fast_distill, crm_model=crm)
        CRMScorer(model.crm, train.dataset, train)


def test_forward_alone_is_enough(build, fast_distill, monkeypatch):
    """A CRM without full_sort_predict but with forward(item_seq, item_seq_len) is scored against its item embedding."""
    import torch
    from recbole.model.abstract_recommender import AbstractRecommender
    from recbole.model.sequential_recommender import GRU4Rec

    config, (train, _, _), model = build(fast_distill, crm_model="GRU4Rec", embedding_size=16)
    rows = train.dataset[torch.arange(20)]
    model.eval()
    expected = model.crm.full_sort_predict(rows)
    monkeypatch.setattr(GRU4Rec, "full_sort_predict", AbstractRecommender.full_sort_predict)
    scorer = CRMScorer(model.crm, train.dataset, train)
    assert scorer.windows
    torch.testing.assert_close(scorer.logits_of_rows(rows), expected)


@pytest.mark.parametrize("biased", [False, True])
def test_factors_are_the_scores(build, fast_distill, monkeypatch, biased):
    """A CRM that adds something to the products of outputs and item vectors gives its scores whole."""
    from recbole.model.sequential_recommender import SASRec

    if biased:
        products = SASRec.full_sort_predict

        def full_sort_predict(self, rows):
            return products(self, rows) + self.item_embedding.weight.sum(1)

        def calculate_loss(self, rows):
            return self.loss_fct(full_sort_predict(self, rows), rows[self.POS_ITEM_ID])

        monkeypatch.setattr(SASRec, "full_sort_predict", full_sort_predict)
        monkeypatch.setattr(SASRec, "calculate_loss", calculate_loss)
    config, (train, _, _), model = build(fast_distill, crm_model="SASRec", n_heads=2)
    add_row_numbers(train.dataset)
    scorer = CRMScorer(model.crm, train.dataset, train)
    assert scorer.windows and scorer.by_product is not biased
    model.crm.eval()
    batch = next(iter(WindowLoader(build_windows(train.dataset), config, 64)))
    assert (scorer.factors(batch)[1] is None) is biased
    assert compare_with_prefixes(scorer, config, batch) > 20
