"""Intents, a knowledge base and the pipeline that joins them: built small, served on a real tritonserver."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mooring_build.export
import mooring_build.training
from mooring import BuildError, CheckpointError, Client, DataError, InvalidInput
from mooring._served.classification import Acceptance, rank_labels
from mooring._served.ranking import Catalogue
from mooring._served.replies import Replies
from mooring_build.building import build
from mooring_build.evaluate_command import evaluate_served, recorded_metrics
from mooring_build.learners.embedding import Embedder
from mooring_build.models import load_fine_tuned_model, load_tokenizer
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.repository import read_manifest, released_version
from mooring_serve import TritonServer
from tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.integration

LABELS = ["cancel", "human", "pay"]
ANSWERS = """item,question,answer
how,who pays my refund,The bank pays it.
when,is the river wide,"Yes, very."
where,anna works in porto,And in lisbon.
"""
SERVING = "[serving]\ninstance_count = 1\nwarm_up = false\n"
RECIPES = {
    "intent": """task = "text-classification"
[base]
checkpoint = "tiny"
[data]
format = "csv"
evaluation = "intents.csv"
out_of_scope = "foreign.csv"
""",
    "faq": """task = "text-ranking"
[base]
checkpoint = "tiny"
[catalogue]
file = "answers.csv"
dimension = 32
top_k = 2
[data]
format = "csv"
train = "questions.csv"
evaluation = "questions.csv"
label_column = "item"
[training]
epochs = 1
learning_rate = 1e-4
""",
    "embed": """task = "feature-extraction"
[base]
checkpoint = "tiny"
""",
    "service": """task = "customer-service"
[parts]
intent = "intent"
faq = "faq"
[service]
replies = "replies.toml"
[data]
format = "csv"
evaluation = "messages.csv"
""",
}
FILES = {
    "answers.csv": ANSWERS,
    "intents.csv": "text,label\nwho pays now,pay\nanna is in porto,human\nthe wide river,cancel\n",
    "foreign.csv": "text\nlisbon lisbon\nriver\n",
    "questions.csv": "text,item\nwho pays,how\nis it wide,when\nanna in porto,where\nmy refund now,how\n",
    "messages.csv": """text,intent,item,handover
who pays my refund,pay,how,false
river,,when,false
???,,,true
""",
    "replies.toml": """[replies.pay]
needs_answer = false
text = '''You pay.
{answer}'''
[replies.human]
needs_answer = false
handover = true
text = "A colleague comes."
[answer]
text = "Perhaps: {answer}"
[handover]
text = "Ein Mensch sieht nach: für dich."
""",
}
TEXTS = ["who pays my refund", "Anna works in Porto", "the river is wide ?", "lisbon", "???"]


@dataclass(frozen=True)
class Made:
    """A folder of recipes and what was built of them."""

    folder: Path
    export_format: str

    @property
    def repository(self) -> Path:
        return self.folder / "models"

    def recipe(self, name: str, *changes: str) -> Recipe:
        return load_recipe(self.folder / f"{name}.toml", changes)

    def build(self, name: str, *changes: str) -> list[str]:
        """Build a recipe; returns what was said."""
        lines: list[str] = []
        build(
            self.recipe(name, *changes),
            repository=self.repository,
            artifacts=self.folder / "artifacts",
            say=lines.append,
        )
        return lines


def make(folder: Path, export_format: str) -> Made:
    """Write the recipes and their data; nothing is built yet."""
    make_tiny_checkpoint(folder / "tiny", "text-classification", LABELS)
    export = f'[export]\nformats = ["{export_format}"]\nengine = "{export_format}"\n'
    for name, text in RECIPES.items():
        dimension = "dimension = 32\n" if name == "embed" else ""
        rest = "" if name == "service" else f"[text]\nmax_length = 24\n{dimension}{export}"
        (folder / f"{name}.toml").write_text(f'name = "{name}"\n{text}{rest}{SERVING}', encoding="utf-8")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return Made(folder, export_format)


@pytest.fixture(scope="module", params=["onnx", "torchscript"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = make(tmp_path_factory.mktemp("service"), request.param)
    for name in RECIPES:
        made.build(name)
    return made


@pytest.fixture(scope="module")
def server(made: Made) -> Iterator[TritonServer]:
    with TritonServer(made.repository, log_file=made.folder / "log") as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Client]:
    url = server.grpc_url if request.param == "grpc" else server.http_url
    with Client(url, timeout_s=20) as client:
        yield client


def trained_faq(made: Made) -> Path:
    (folder,) = made.folder.glob("artifacts/faq/trained-*")
    return folder


def catalogue_of(made: Made, version: int = 1) -> Catalogue:
    return Catalogue.load(made.repository / "faq_catalogue" / str(version))


@torch.inference_mode()
def pytorch_logits(made: Made) -> np.ndarray:
    model, tokenizer = (
        load_fine_tuned_model(made.folder / "tiny", "text-classification"),
        load_tokenizer(made.folder / "tiny"),
    )
    return np.concatenate([model(**tokenizer([text], return_tensors="pt")).logits.numpy() for text in TEXTS])


def test_the_ranking_is_the_pytorch_model_s(made: Made, client: Client) -> None:
    catalogue = catalogue_of(made)
    order, scores = catalogue.rank(Embedder(trained_faq(made), made.recipe("faq"))(TEXTS), 2)
    faq = client.task("faq")
    answers = faq(TEXTS)
    assert [[found.item for found in row] for row in answers] == np.array(catalogue.items)[order].tolist()
    assert np.array([[found.score for found in row] for row in answers]) == pytest.approx(scores, abs=1e-4)
    assert answers[0][0].item == "how"
    assert answers[0][0].text == "The bank pays it."
    assert answers[0][0].score == pytest.approx(1, abs=1e-4)
    # Each alone is answered as all at once.
    alone = [outcome.unwrap() for outcome in faq.map(TEXTS, batch_size=1)]
    assert np.array([[found.score for found in row] for row in alone]) == pytest.approx(scores, abs=1e-4)


def test_the_embedding_is_the_pytorch_model_s(made: Made, client: Client) -> None:
    vectors = client.task("embed")(TEXTS)
    assert vectors == pytest.approx(Embedder(made.folder / "tiny", made.recipe("embed"))(TEXTS), abs=1e-4)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


def test_intents_come_with_their_acceptance(made: Made, client: Client) -> None:
    logits = pytorch_logits(made)
    order, scores = rank_labels(logits, 3)
    labels = client.task("intent")(TEXTS)
    assert [[found.label for found in row] for row in labels] == np.array(LABELS)[order].tolist()
    assert np.array([[found.score for found in row] for row in labels]) == pytest.approx(scores, abs=1e-4)

    # What typed calls leave out is there for those who ask.
    texts = np.array([[text] for text in TEXTS], np.object_)
    answer = client.infer("intent", {"text": texts}, outputs=["label", "acceptance"])
    content = json.loads((made.repository / "intent_postprocessor" / "1" / "acceptance.json").read_text())
    assert answer["acceptance"] == pytest.approx(Acceptance(content["confidences"])(logits))
    assert client.config("intent").parameters["acceptance_threshold"] == "0.05"
    metrics = read_manifest(made.repository, "intent", 1)["metrics"]
    assert metrics["in_scope_accepted"] == 1
    assert metrics["oos_threshold"] == 0.05
    assert 0 <= metrics["oos_recall"] <= 1


def test_customers_are_answered_as_the_parts_and_the_replies_say(made: Made, client: Client) -> None:
    replies = Replies.load(made.repository / "service_reply" / "1")
    content = json.loads((made.repository / "intent_postprocessor" / "1" / "acceptance.json").read_text())
    logits = pytorch_logits(made)
    labels, probabilities = rank_labels(logits, 1)
    acceptance = Acceptance(content["confidences"])(logits)
    catalogue = catalogue_of(made)
    order, scores = catalogue.rank(Embedder(trained_faq(made), made.recipe("faq"))(TEXTS), 2)

    service = client.task("service")
    answers = service(TEXTS)
    for row, found in enumerate(answers):
        intent = LABELS[labels[row, 0]]
        expected = replies.reply(
            intent, float(acceptance[row, 0]), catalogue.answers[order[row, 0]], float(scores[row, 0])
        )
        assert (found.reply, found.handover) == (expected.text, expected.handover)
        assert found.intent.label == intent
        assert found.intent.score == pytest.approx(float(probabilities[row, 0]), abs=1e-4)
        assert [(answer.item, answer.text) for answer in found.answers] == [
            (catalogue.items[place], catalogue.answers[place]) for place in order[row]
        ]
    assert {found.handover for found in answers} == {True, False}


def test_what_is_served_is_scored_beside_the_manifest(made: Made, client: Client) -> None:
    version, score = evaluate_served(client, made.recipe("service"), model="service")
    recorded = recorded_metrics(made.repository, "service", version, score)
    assert recorded is not None
    assert recorded["messages"] == score.examples == 3
    for name in ("intent_accuracy", "item_hit_at_1"):
        assert score.metrics[name] == pytest.approx(recorded[name])


def test_what_the_parts_refuse_is_refused_with_their_reason(client: Client) -> None:
    service = client.task("service")
    with pytest.raises(InvalidInput, match="text 0 is empty: it has only white space"):
        service(" ")
    with pytest.raises(InvalidInput, match=r"text 1 has .* tokens, this model takes at most 24"):
        service(["fine", "river " * 30])
    # The others of a map are answered.
    outcomes = list(service.map(["river", "river " * 30], batch_size=2))
    assert [outcome.error is None for outcome in outcomes] == [True, False]


def test_plain_http_gets_the_reply_too(server: TritonServer) -> None:
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/service/generate", data=json.dumps({"text": TEXTS[0]}).encode()
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        said = json.load(response)
    assert said["answer"][0] == "The bank pays it."
    assert said["item"][0] == "how"
    assert said["handover"] in (True, False)
    assert said["reply"]


def test_a_new_answer_needs_no_training(
    tmp_path: Path, make_server: Callable[..., TritonServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path, "torchscript")
    for name in ("intent", "faq", "service"):
        made.build(name)
    before = read_manifest(made.repository, "faq", 1)

    def again(*args: Any, **options: Any) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(mooring_build.export, "export_engine", again)
    monkeypatch.setattr(mooring_build.training, "fine_tune", again)
    with (tmp_path / "answers.csv").open("a", encoding="utf-8") as file:
        file.write("new,lisbon lisbon,Über Lissabon.\n")
    assert "catalogue   4 items, 12 vectors, hit_at_1" in "\n".join(made.build("faq"))
    assert released_version(made.repository, "faq") == 2
    after = read_manifest(made.repository, "faq", 2)
    assert (before["metrics"]["items"], after["metrics"]["items"]) == (3, 4)
    assert before["parity"] == after["parity"]
    engines = [made.repository / "faq_torchscript" / str(version) / "model.pt" for version in (1, 2)]
    assert engines[0].read_bytes() == engines[1].read_bytes()
    # Nor is it published twice.
    assert made.build("faq")[-1].endswith("(up to date)")
    # What joins it answers with it, though it was published before.
    server = make_server(made.repository)
    with Client(server.grpc_url, timeout_s=20) as client:
        best = client.task("service")("lisbon lisbon").answers[0]
    assert (best.item, best.text) == ("new", "Über Lissabon.")
    assert best.score == pytest.approx(1, abs=1e-4)


def test_texts_of_an_item_that_was_taken_out_do_not_stop_a_build(tmp_path: Path) -> None:
    made = make(tmp_path, "torchscript")
    lines = (tmp_path / "questions.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "questions.csv").write_text("\n".join([*lines, "the old one,gone"]), encoding="utf-8")
    built = "\n".join(made.build("faq"))
    # It is both asked and trained with here.
    assert "2 texts are for items that are not in the catalogue: left out" in built
    assert "catalogue   3 items" in built


def test_training_texts_may_stand_for_their_items(tmp_path: Path) -> None:
    made = make(tmp_path, "torchscript")
    lines = made.build("faq", "catalogue.use_training_texts=true")
    assert "catalogue   3 items, 13 vectors, hit_at_1 1.000, mrr 1.000" in "\n".join(lines)


def test_an_intent_that_knows_nothing_out_of_scope_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path, "torchscript")
    text = (tmp_path / "intent.toml").read_text(encoding="utf-8")
    (tmp_path / "intent.toml").write_text(
        text.replace('out_of_scope = "foreign.csv"\n', ""), encoding="utf-8"
    )
    for name in ("intent", "faq"):
        made.build(name)
    with pytest.raises(BuildError, match="service joins 'intent', which has no output acceptance: give its"):
        made.build("service")


def test_an_evaluation_that_asks_for_unknown_items_is_refused(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "messages.csv"
    path.write_text("text,intent,item,handover\nriver,,nowhere,false\n")
    with pytest.raises(DataError, match=r"data.evaluation has items \['nowhere'\], which 'faq' does not"):
        made.build("service", f"data.evaluation={path}")


def test_a_single_message_can_not_be_decided_by_others(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "messages.csv"
    path.write_text("text,intent,item,handover\nriver,,,true\n")
    with pytest.raises(DataError, match=r"data\.evaluation has a single message"):
        made.build("service", f"data.evaluation={path}")


def test_an_embedding_of_another_length_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path, "torchscript")
    with pytest.raises(CheckpointError, match=r"makes embeddings of 32 values, text.dimension says 16"):
        made.build("embed", "text.dimension=16")
