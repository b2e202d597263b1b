from __future__ import annotations

from pathlib import Path

import pytest

from mooring import DataError, RecipeError
from mooring_build.datasets import LabelledText, TaggedSentence, load_dataset, read_conll, read_csv
from mooring_build.recipe import load_recipe


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_conll_columns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.conll",
        "-DOCSTART- -X- -X- O\n\nAnna NNP B-NP B-PER\nNovak NNP I-NP I-PER\nslept VBD B-VP O\n"
        "\n\nPorto NNP B-NP B-LOC\n",
    )
    assert read_conll(path) == [
        TaggedSentence(("Anna", "Novak", "slept"), ("B-PER", "I-PER", "O")),
        TaggedSentence(("Porto",), ("B-LOC",)),
    ]
    assert read_conll(path)[0].text == "Anna Novak slept"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("Anna B-PER\nNovak\n", r":2: 'Novak' has one column"),
        ("Anna PER\n", r":1: tag 'PER' is none of"),
        ("Anna O\nNovak I-PER\n", r":2: 'I-PER' follows 'O'; IOB2"),
        ("Anna B-LOC\nNovak I-PER\n", r":2: 'I-PER' follows 'B-LOC'"),
        ("Novak I-PER\n", r":1: 'I-PER' follows 'the start of the sentence'"),
        ("New York\tB-LOC\n", ":1: token 'New York' has a space: give each of its words a line"),
        ("Anna O\rNovak B-PER\r", ":1: lines end in carriage returns alone"),
        ("\n\n", "holds no example"),
        (b"Anna B-PER\nMu\xf1oz I-PER\n", r":2: byte 0xf1 is not UTF-8"),
    ],
)
def test_malformed_conll(tmp_path: Path, content: str | bytes, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_conll(write(tmp_path / "a.conll", content))


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufefftext,id,category\n"Where, is it?",1,track,,\n')
    assert read_csv(path, text_column="text", label_column="category") == [
        LabelledText("Where, is it?", "track")
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            "text,category\na,b\n",
            r"data.label_column 'label' is not among its columns \['text', 'category'\]",
        ),
        ("text;label\na;b\n", r"\['text;label'\]; its cells seem to be parted by ';': save it with commas"),
        ("text\tlabel\na\tb\n", r"seem to be parted by '\\t'"),
        ("my card,pay\n", r"columns \['my card', 'pay'\], which are what its first row holds"),
        ("text,label\nhello,\n", r":2: empty label"),
        ("text,label\n ,x\n", r":2: empty text"),
        ("text,label\nhello\n", r":2: empty label"),
        ("text,label\n", "holds no example"),
        ('text,label\na,x\n"open,x\nb,x\n', ":3: the row that begins here: unexpected end of data"),
        ("text,label\nhello, you,x\n", ":2: more cells than the 2 of the header"),
    ],
)
def test_malformed_csv(tmp_path: Path, content: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_csv(write(tmp_path / "a.csv", content), text_column="text", label_column="label")


def overrides(train: Path, evaluation: Path) -> list[str]:
    return [f"data.train={train}", f"data.evaluation={evaluation}"]


def test_labels_come_sorted_from_the_training_data(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\nx,pay\ny,ask\n")
    dataset = load_dataset(load_recipe("intent", overrides(train, train)))
    assert dataset.labels == ["ask", "pay"]


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\nx,pay\ny,ask\n")
    recipe = load_recipe("intent", overrides(train, train))
    before = load_dataset(recipe).digest
    assert load_dataset(recipe).digest == before
    write(train, "text,label\nx,pay\ny,ask!\n")
    assert load_dataset(recipe).digest != before


def test_missing_file_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.train '.*none.csv': no file"):
        load_dataset(load_recipe("intent", overrides(tmp_path / "none.csv", tmp_path / "none.csv")))


def test_label_that_training_never_saw(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\nx,pay\ny,ask\n")
    evaluation = write(tmp_path / "eval.csv", "text,label\nx,shout\n")
    with pytest.raises(
        DataError, match=r"eval.csv has labels \['shout'\] that are not among.*\['ask', 'pay'\]"
    ):
        load_dataset(load_recipe("intent", overrides(train, evaluation)))


def test_labels_that_the_recipe_fixes_can_be_taken_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "aspirin B-DRUG\n\n. O\n")
    wrong = r"a.conll has labels \['B-DRUG'\] .*, which the recipe fixes; --set labels= takes them from"
    with pytest.raises(DataError, match=wrong):
        load_dataset(load_recipe("ner", overrides(path, path)))
    assert load_dataset(load_recipe("ner", [*overrides(path, path), "labels="])).labels == [
        "O",
        "B-DRUG",
        "I-DRUG",
    ]


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.csv", "text,label\nx,pay\ny,ask\n")
    assert len(load_dataset(load_recipe("intent", overrides(Path("~/a.csv"), Path("~/a.csv")))).train) == 2


def test_one_label_is_nothing_to_learn(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\nx,pay\n")
    with pytest.raises(DataError, match="single label 'pay'"):
        load_dataset(load_recipe("intent", overrides(train, train)))


def test_token_labels_must_be_bio(tmp_path: Path) -> None:
    train = write(tmp_path / "a.conll", "Anna B-PER\n")
    with pytest.raises(RecipeError, match="needs O, B-<type>, I-<type>"):
        load_dataset(load_recipe("ner", [*overrides(train, train), 'labels=["PER", "B-PER", "I-PER"]']))


def test_shipped_data_sets_load() -> None:
    assert load_dataset(load_recipe("ner")).labels[0] == "O"
    intent = load_dataset(load_recipe("intent"))
    train_texts = {example.text for example in intent.train}
    assert not train_texts & {example.text for example in intent.evaluation}
