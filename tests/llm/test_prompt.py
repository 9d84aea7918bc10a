"""Histories as token ids against a concatenation per history."""

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from recbole_llmd.errors import DataError
from recbole_llmd.llm.prompt import PREFIX, Prompt

TEXTS = ["", "The Comet", "Butter, Pepper & Garlic", "", "Clue", "A rather long title with many different words in it"]
LINES = [
    "",
    "The Comet\n",
    "Butter, Pepper & Garlic\n",
    "item 3\n",
    "Clue\n",
    "A rather long title with many different words in it\n",
]
HISTORIES = [[1, 2, 5, 4], [4, 0, 0, 0], [3, 3, 1, 0], [5, 5, 5, 5], [2, 1, 0, 0]]


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def tokenizer(request):
    return AutoTokenizer.from_pretrained(request.getfixturevalue(request.param))


def naive(history, tokenizer, item_tokens):
    """The tokens of one history, and where each item ends."""
    tokens, ends = tokenizer.encode(PREFIX, add_special_tokens=False), []
    for item in history:
        line = tokenizer.encode(LINES[item], add_special_tokens=False) if item else []
        if len(line) > item_tokens:
            line = [*line[: item_tokens - 1], line[-1]]
        tokens = tokens + line
        ends.append(len(tokens) - 1)
    return tokens, ends


@pytest.mark.parametrize("item_tokens", [1, 2, 5, 8, 1000])
def test_tokens_and_last_positions(tokenizer, item_tokens):
    prompt = Prompt(TEXTS, tokenizer, item_tokens, "toy")
    tokens, ends = prompt(torch.tensor(HISTORIES))
    expected = [naive(history, tokenizer, item_tokens) for history in HISTORIES]
    longest = max(len(row) for row, _ in expected)
    assert tokens.shape == (len(HISTORIES), longest)
    line_break = tokenizer.encode("\n", add_special_tokens=False)
    for i, (row, row_ends) in enumerate(expected):
        assert tokens[i].tolist() == row + [tokenizer.pad_token_id] * (longest - len(row))
        real = [j for j, item in enumerate(HISTORIES[i]) if item]
        assert [ends[i, j].item() for j in real] == [row_ends[j] for j in real]
        assert [tokens[i, ends[i, j]].item() for j in real] == line_break * len(real)  # also where a title was cut
    assert longest <= prompt.longest(4)


def test_the_prompt_reads_as_lines(tokenizer):
    prompt = Prompt(TEXTS, tokenizer, 1000, "toy")
    tokens, _ = prompt(torch.tensor([[2, 3, 5]]))
    text = "".join(tokenizer.convert_ids_to_tokens(tokens[0])).replace("Ġ", " ").replace("Ċ", "\n")
    assert text == PREFIX + "".join(LINES[i] for i in (2, 3, 5))


def test_longest_is_reached(tokenizer):
    prompt = Prompt(TEXTS, tokenizer, 8, "toy")
    tokens, _ = prompt(torch.tensor([[5, 5, 5]]))
    assert tokens.shape[1] == prompt.longest(3)


def test_no_special_tokens_inside(tokenizer):
    """A tokenizer that puts a start token before every text would put one before every item."""
    plain, _ = Prompt(TEXTS, tokenizer, 1000, "toy")(torch.tensor([[1, 2, 4]]))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    assert tokenizer("Clue")["input_ids"][0] == tokenizer.eos_token_id
    assert Prompt(TEXTS, tokenizer, 1000, "toy")(torch.tensor([[1, 2, 4]]))[0].tolist() == plain.tolist()


def test_the_pad_token_fills_up(tokenizer):
    tokenizer.pad_token = "<eos>"
    tokens, ends = Prompt(TEXTS, tokenizer, 1000, "toy")(torch.tensor([[4, 0], [5, 5]]))
    assert tokenizer.pad_token_id != 0
    assert tokens[0, ends[0, 0] + 1 :].unique().tolist() == [tokenizer.pad_token_id]


def test_a_batch_changes_nothing_but_the_padding(tokenizer):
    prompt = Prompt(TEXTS, tokenizer, 8, "toy")
    together, ends = prompt(torch.tensor(HISTORIES))
    for i, history in enumerate(HISTORIES):
        alone, alone_ends = prompt(torch.tensor([history]))
        assert together[i, : alone.shape[1]].tolist() == alone[0].tolist()
        assert ends[i].tolist() == alone_ends[0].tolist()


def test_a_dataset_without_texts_is_refused(tokenizer):
    with pytest.raises(DataError) as error:
        Prompt(["", "", ""], tokenizer, 8, "toy")
    message = str(error.value)
    assert "llm_input = 'prompt'" in message and "'toy'" in message and "llm_input: item" in message
