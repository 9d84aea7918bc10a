"""Shared fixtures: an empty working folder per test, tiny random language models, and small fast settings."""

import json
import logging
import os
import sys
from pathlib import Path

import pytest

# Before PyTorch is imported, and for the processes that tests start: threads cost tiny models more than they give.
os.environ["OMP_NUM_THREADS"] = "1"

import recbole_llmd  # noqa: F401  (mends RecBole before any test imports it)

REPO = Path(__file__).resolve().parent.parent
CORPUS = [
    "The Comet and the Orbit",
    "Butter Pepper Garlic",
    "Clue Shadow Detective, Tulip",
    "item 0123456789\n",
    "A user's history, one item a line:\n",
]


def pytest_collection_modifyitems(items):
    """The longest tests first, so that no process is left alone with them at the end."""
    items.sort(key=lambda item: "test_resume" not in item.nodeid)


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    """RecBole writes log/, saved/ and log_tensorboard/ into the current folder, and its Config reads sys.argv."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    root = logging.getLogger()
    root.setLevel(logging.WARNING)  # a run before this one may have raised it
    yield tmp_path
    for handler in root.handlers[:]:  # RecBole's file handler would keep writing into this folder
        if isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
            handler.close()


def _save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<eos>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)


def _save_model(folder, config):
    import torch
    from transformers import AutoModel

    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    _save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """A folder with a random Llama of three layers and a tokenizer."""
    from transformers import LlamaConfig

    return _save_model(
        tmp_path_factory.mktemp("llama"),
        LlamaConfig(
            vocab_size=320,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=1,
        ),
    )


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory):
    """A folder with a random GPT-2 of three layers and a tokenizer."""
    from transformers import GPT2Config

    return _save_model(
        tmp_path_factory.mktemp("gpt2"),
        GPT2Config(
            vocab_size=320,
            n_embd=32,
            n_inner=48,
            n_layer=3,
            n_head=4,
            n_positions=512,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=1,
        ),
    )


@pytest.fixture
def fast(tiny_llama, workdir):
    """Settings of a run on the tiny dataset that takes seconds."""
    return {
        "dataset": "tiny",
        "data_path": str(REPO / "dataset"),
        "show_progress": False,
        "state": "WARNING",
        "MAX_ITEM_LIST_LENGTH": 10,
        "train_batch_size": 256,
        "hidden_size": 16,
        "inner_size": 16,
        "n_layers": 1,
        "llm_model": tiny_llama,
        "llm_dtype": "float32",
        "llm_layers": 2,
        "llm_embedding_size": 16,
        "llm_cache_dir": str(workdir / "texts"),
        "metrics": ["Recall", "NDCG"],
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 6,
    }


@pytest.fixture
def fast_distill(fast):
    """The same for LLMD4Rec: two epochs a phase, one round."""
    return {
        **fast,
        "model": "LLMD4Rec",
        "epochs": 2,
        "crm_warmup_epochs": 2,
        "llm_epochs": 2,
        "llm_warmup_epochs": 2,
        "distill_rounds": 1,
        "llm_train_batch_size": 256,
    }


@pytest.fixture
def build():
    """``build(settings, model=...)`` gives Config, loaders and the model, as ``run_recbole`` makes them."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, init_seed

    def _build(settings, **more):
        config = Config(config_dict=json.loads(json.dumps({**settings, **more})))
        init_seed(config["seed"], config["reproducibility"])
        loaders = data_preparation(config, create_dataset(config))
        init_seed(config["seed"], config["reproducibility"])
        model = get_model(config["model"])(config, loaders[0].dataset).to(config["device"])
        return config, loaders, model

    return _build


@pytest.fixture
def trained(build):
    """``trained(name)`` gives Config, loaders and RecBole's trained mapping model on the tiny dataset."""
    from tests.helpers.mapping_models import ALL

    def _trained(name, **more):
        return build(
            {
                "model": name,
                "dataset": "tiny",
                "data_path": str(REPO / "dataset"),
                "state": "WARNING",
                "show_progress": False,
                "metrics": ["Recall", "NDCG"],
                "valid_metric": "NDCG@10",
                "metric_decimal_place": 6,
                **ALL[name],
                **more,
            }
        )

    return _trained


@pytest.fixture
def tiny_case(workdir):
    """Scenarios of the tiny dataset: ``draw(**settings)`` and what it draws from."""
    from tests.helpers.scenario_cases import case_of

    return case_of(REPO / "dataset", "tiny")


@pytest.fixture
def hand_case(workdir):
    """``hand_case(pairs, item_file)``: the same of a dataset with these pairs of tokens, all of them training data."""
    from tests.helpers.scenario_cases import case_of

    def _hand_case(pairs, item_file=None, **settings):
        folder = workdir / "hand"
        folder.mkdir()
        lines = [f"{user}\t{item}" for user, item in pairs]
        (folder / "hand.inter").write_text("\n".join(["user_id:token\titem_id:token", *lines]) + "\n")
        if item_file:
            (folder / "hand.item").write_text(item_file)
        everything = {"split": {"RS": [1, 0, 0]}, "order": "RO", "mode": "full", "group_by": None}
        return case_of(workdir, "hand", eval_args=everything, **settings)

    return _hand_case
