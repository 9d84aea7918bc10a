"""Item texts from the atomic .item file, under RecBole's item ids."""

import logging

import pytest
from recbole.config import Config
from recbole.data import create_dataset

from recbole_llmd.data.item_text import load_item_texts
from recbole_llmd.errors import DataError, SettingsError

INTER = "user_id:token item_id:token timestamp:float\n" + "".join(
    f"u{user} {item} {time}\n" for user in (1, 2, 3) for time, item in enumerate([*"cadbe"[user - 1 :], "a", "c"])
)
ITEM = [
    ["item_id:token", "title:token_seq", "genre:token", "tags:token_seq", "year:float"],
    ["a", "Alpha One", "drama", "slow sad", "1990"],
    ["b", 'The 12" "Single" record', "music", "", "1991"],
    ["c", "  Gamma ", "", "fast", "1992"],
    ["d", "", "drama", "", "1993"],
    ["never seen", "Omega", "drama", "odd", "1994"],
]  # no line for item e, no title and no tags for d
DEFAULT = {"a": "Alpha One, slow sad", "b": 'The 12" "Single" record', "c": "Gamma, fast", "d": "", "e": ""}


@pytest.fixture
def texts(tmp_path, caplog):
    """``texts(lines, **settings)`` writes a dataset and returns the texts by token, and the warnings about them."""

    def _texts(lines=ITEM, sep="\t", file_encoding="utf-8", inter=INTER, **settings):
        folder = tmp_path / "data" / "toy"
        folder.mkdir(parents=True)
        (folder / "toy.inter").write_text(inter.replace(" ", sep))
        if lines is not None:
            (folder / "toy.item").write_text("".join(sep.join(line) + "\n" for line in lines), encoding=file_encoding)
        config = Config(model="LLMRec", dataset="toy", config_dict={"data_path": str(tmp_path / "data"), **settings})
        dataset = create_dataset(config)
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            by_id = load_item_texts(config, dataset)
        assert len(by_id) == dataset.item_num == 6 and by_id[0] == ""
        tokens = dataset.field2id_token["item_id"]
        return {str(tokens[i]): by_id[i] for i in range(1, 6)}, [record.getMessage() for record in caplog.records]

    return _texts


def test_default_is_all_token_seq_fields(texts):
    """Item ids are RecBole's (order of first appearance), not the file's; blanks around texts go, empty ones too."""
    by_token, warnings = texts()
    assert by_token == DEFAULT
    assert list(by_token) != sorted(by_token)  # the ids are in another order than the file's lines
    assert len(warnings) == 1
    assert warnings[0].startswith("2 of 5 items have no text (") and "toy.item" in warnings[0]


@pytest.mark.parametrize(
    "fields, expected",
    [
        (["title"], {"a": "Alpha One", "b": 'The 12" "Single" record', "c": "Gamma", "d": "", "e": ""}),
        (
            ["year", "title"],
            {"a": "1990, Alpha One", "b": '1991, The 12" "Single" record', "c": "1992, Gamma", "d": "1993", "e": ""},
        ),
        (["genre"], {"a": "drama", "b": "music", "c": "", "d": "drama", "e": ""}),
    ],
)
def test_chosen_fields_in_the_chosen_order(texts, fields, expected):
    by_token, warnings = texts(item_text_fields=fields)
    assert by_token == expected
    missing = sum(not text for text in expected.values())
    assert [w.split(" have")[0] for w in warnings] == [f"{missing} of 5 items"]


def test_template(texts):
    by_token, _ = texts(item_text_template="{title} ({genre}), again {title}")
    assert by_token == {
        "a": "Alpha One (drama), again Alpha One",
        "c": "Gamma (), again Gamma",
        "b": 'The 12" "Single" record (music), again The 12" "Single" record',
        "d": " (drama), again ",
        "e": "",
    }


def test_template_goes_before_fields(texts):
    by_token, _ = texts(item_text_template="<{year}>", item_text_fields=["title"])
    assert by_token == {"a": "<1990>", "b": "<1991>", "c": "<1992>", "d": "<1993>", "e": ""}


@pytest.mark.parametrize(
    "settings", [{"item_text_fields": ["title", "price"]}, {"item_text_template": "{title}{price}"}]
)
def test_unknown_field(texts, settings):
    with pytest.raises(SettingsError) as error:
        texts(**settings)
    assert "'price'" in str(error.value) and "toy.item" in str(error.value)
    assert "Its fields are: item_id, title, genre, tags, year." in str(error.value)


def test_no_file(texts):
    by_token, warnings = texts(None)
    assert set(by_token.values()) == {""}
    assert len(warnings) == 1 and warnings[0].startswith("5 of 5 items have no text (")
    assert "toy.item does not exist" in warnings[0]


@pytest.mark.parametrize("settings", [{"item_text_fields": ["title"]}, {"item_text_template": "{title}"}])
def test_no_file_where_fields_are_named(texts, settings):
    with pytest.raises(SettingsError, match=r"toy\.item, which does not exist"):
        texts(None, **settings)


def test_no_text_field(texts):
    by_token, warnings = texts([["item_id:token", "year:float"], ["a", "1990"], ["b", "1991"]])
    assert set(by_token.values()) == {""}
    assert len(warnings) == 1 and warnings[0].startswith("5 of 5 items have no text (")
    assert "no token_seq field" in warnings[0]


def test_no_warning_when_every_item_has_a_text(texts):
    by_token, warnings = texts([ITEM[0], *([token, f"Title {token}", "", "", ""] for token in "edcba")])
    assert by_token == {token: f"Title {token}" for token in "abcde"}
    assert warnings == []


@pytest.mark.parametrize("sep", [",", "|", ";"])
def test_field_separator(texts, sep):
    """The separator is RecBole's setting, for this file as for the .inter file."""
    lines = [[field.replace(",", ";" if sep == "," else ",") for field in line] for line in ITEM]
    by_token, _ = texts(lines, sep=sep, field_separator=sep)
    assert by_token == DEFAULT


def test_marks_in_titles_are_text(texts):
    lines = [["Moon, The; or: 'Luna'", "a"], ['"Heroes"', "b"], ["#1 hit", "c"], ['"', "d"], ["Last", "e"]]
    by_token, _ = texts([["title:token_seq", "item_id:token"], *lines])
    assert by_token == {token: title for title, token in lines}


def test_the_first_of_two_lines_counts(texts):
    by_token, _ = texts([ITEM[0], ["a", "First", "", "", ""], ["a", "Second", "", "", ""]])
    assert by_token["a"] == "First"


def test_encoding(texts):
    lines = [["item_id:token", "title:token_seq"], ["a", "Amélie à Paris"]]
    by_token, _ = texts(lines, file_encoding="latin-1", encoding="latin-1")
    assert by_token["a"] == "Amélie à Paris"


@pytest.mark.parametrize("title", ["NA", "None", "null", "nan", "N/A", "1984", "007", "True"])
def test_titles_that_look_like_something_else(texts, title):
    """A title is a string: neither a missing value nor a number."""
    by_token, _ = texts([ITEM[0], ["a", title, "", "", ""]])
    assert by_token["a"] == title


def test_the_columns_that_the_run_loads_do_not_matter(texts):
    """Loading item features decides which items RecBole keeps (those of the file), not what their texts are."""
    by_token, _ = texts(load_col={"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "year"]})
    assert by_token == {**{token: DEFAULT[token] for token in "abcd"}, "never seen": "Omega, odd"}


def test_tokens_are_strings(texts):
    """1 and 01 are two items to RecBole."""
    by_token, _ = texts(
        [ITEM[0], ["01", "Leading zero", "", "", ""], ["1", "Plain", "", "", ""]],
        inter=INTER.replace(" c ", " 01 ").replace(" d ", " 1 "),
    )
    assert by_token == {"01": "Leading zero", "1": "Plain", "a": "", "b": "", "e": ""}


def test_a_file_without_the_ids_of_its_items(texts):
    with pytest.raises(DataError, match=r"toy\.item has the fields title, year: its lines need item_id"):
        texts([["title:token_seq", "year:float"], ["Alpha One", "1990"]])


@pytest.mark.parametrize(
    ("lines", "why"),
    [([], "No columns"), ([["item_id:token", "title:token_seq"], ["a", "b"], ["c", "d", "e"]], "Expected 2 fields")],
)
def test_a_file_that_is_no_table(texts, lines, why):
    with pytest.raises(DataError, match=rf"toy\.item cannot be read .* field_separator = '\\t' .*: {why}"):
        texts(lines)


def test_a_file_in_another_encoding(texts):
    with pytest.raises(DataError, match="encoding = None: 'utf-8' codec can't decode"):
        texts([["item_id:token", "title:token_seq"], ["a", "Amélie à Paris"]], file_encoding="latin-1")
