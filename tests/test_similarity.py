"""The similarity loss: what a trained encoder knows of how texts resemble each other is kept."""

import json
import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

import run_pretraining
from configuration_text_jepa import OBJECTIVES, TextJepaConfig
from modeling_text_jepa import TextJepaForPreTraining, similarity_loss
from text_jepa.train import checkpointing, closing


SIMCSE = OBJECTIVES["simcse"] | {"sentence_hidden_size": 0, "similarity_loss_weight": 1.0}


def cosine(first, second):
    return float(first @ second / (first.norm() * second.norm()))


def plain_divergence(vectors, references, temperature):
    def probabilities(rows, i):
        weights = {j: math.exp(cosine(rows[i], rows[j]) / temperature) for j in range(len(rows)) if j != i}
        return {j: weight / sum(weights.values()) for j, weight in weights.items()}

    losses = []
    for i in range(len(vectors)):
        found, expected = probabilities(vectors, i), probabilities(references, i)
        losses.append(sum(p * math.log(p / found[j]) for j, p in expected.items()))
    return sum(losses) / len(losses)


def test_the_loss_is_the_plain_formula():
    vectors, references = torch.randn(5, 4), torch.randn(5, 7)
    expected = plain_divergence(vectors, references, 0.3)
    assert similarity_loss(vectors, references, 0.3).item() == pytest.approx(expected, rel=1e-4)


def test_turned_and_longer_vectors_resemble_each_other_as_before():
    references = torch.randn(6, 8)
    turn = torch.linalg.qr(torch.randn(8, 8))[0]
    turned = (3 * references @ turn).requires_grad_()
    loss = similarity_loss(turned, references, 0.05)
    assert abs(loss.item()) < 1e-4
    (gradient,) = torch.autograd.grad(loss, turned)
    assert gradient.abs().max() < 1e-4
    assert similarity_loss(torch.randn(6, 8), references, 0.05) > 0.1


@pytest.mark.parametrize("texts", [1, 2])
def test_texts_that_resemble_at_most_one_other_have_no_loss(texts):
    vectors = torch.randn(texts, 4, requires_grad=True)
    loss = similarity_loss(vectors, torch.randn(texts, 4), 0.05)
    loss.backward()
    assert loss.item() == 0
    assert (vectors.grad == 0).all()


def run_from(encoder, file, output, flags):
    """A run of one step from an encoder, on a file."""
    paths = f"--model_name_or_path {encoder} --train_file {file} --output_dir {output}"
    return run_pretraining.main(f"{paths} {flags} --max_length 32 --max_steps 1 --use_cpu".split())


@pytest.fixture
def model(make_model):
    return make_model(**SIMCSE)


def test_a_run_keeps_the_similarities_of_the_encoder_that_it_started_from(model, make_batch):
    """Also with online targets, whose gradients reach the context encoder as without it."""
    inputs = make_batch(masks=1, ratio=0.0)
    outputs = model(**inputs)
    assert outputs.similarity_loss.item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(outputs.loss, outputs.sentence_loss + outputs.similarity_loss)
    start = {name: value.clone() for name, value in model.target_encoder.state_dict().items()}
    with torch.no_grad():
        for parameter in model.model.encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    changed = model.train()(**inputs)
    assert changed.similarity_loss > 1e-4
    assert not changed.text_targets.beginnings.requires_grad
    assert changed.text_targets.sentences.requires_grad
    changed.similarity_loss.backward()
    assert all(parameter.grad is None for parameter in model.target_encoder.parameters())
    assert model.model.encoder.get_input_embeddings().weight.grad.abs().sum() > 0
    for name, value in model.target_encoder.state_dict().items():
        assert torch.equal(value, start[name]), name


def test_it_reads_the_beginnings_of_texts_whatever_is_hidden(model, make_batch):
    inputs = make_batch(masks=2, lengths=(21, 9, 14, 17))
    beginnings = {name: inputs[name][:, :16] for name in ("input_ids", "attention_mask")}
    states = model.target_encoder(**beginnings).last_hidden_state
    expected = model.pool(states, beginnings["attention_mask"], beginnings["input_ids"])
    with torch.no_grad():
        model.model.encoder.get_input_embeddings().weight.add_(torch.randn(model.config.hidden_size))
    outputs = model(**inputs)
    torch.testing.assert_close(outputs.text_targets.beginnings, expected)
    inputs["input_ids"][:, 16:] = 7
    torch.testing.assert_close(model(**inputs).similarity_loss, outputs.similarity_loss)
    inputs["input_ids"][:, 2] = 7
    assert model(**inputs).similarity_loss != outputs.similarity_loss


def test_the_first_encoder_is_saved_and_found_again(model, make_batch, tmp_path):
    with torch.no_grad():
        model.model.encoder.get_input_embeddings().weight.mul_(2)
    model.save_pretrained(tmp_path)
    loaded = TextJepaForPreTraining.from_pretrained(tmp_path)
    inputs = make_batch(masks=1)
    torch.testing.assert_close(loaded(**inputs).similarity_loss, model(**inputs).similarity_loss)


def test_it_is_no_objective_of_its_own():
    alone = OBJECTIVES["simcse"] | {"sentence_loss_weight": 0.0, "similarity_loss_weight": 1.0}
    with pytest.raises(StrictDataclassError, match="must be above 0"):
        TextJepaConfig(**alone)


def test_attention_pooling_which_learns_is_refused():
    with pytest.raises(StrictDataclassError, match="needs a pooling that does not learn"):
        TextJepaConfig(**SIMCSE, pooling="attention")


def test_a_moving_average_cannot_take_the_place_of_the_first_encoder(model):
    with pytest.raises(ValueError, match="no moving average to update"):
        model.update_target_encoder(0.5)


def test_a_run_around_a_complete_model_keeps_what_that_had_learned(make_model, tokenizer, texts, tmp_path):
    """Not what its moving average was."""
    before = make_model(**OBJECTIVES["jepa"])
    with torch.no_grad():
        for parameter in before.target_encoder.parameters():
            parameter.add_(1)
    before.save_pretrained(tmp_path / "before")
    tokenizer.save_pretrained(tmp_path / "before")
    (tmp_path / "texts.txt").write_text("\n".join(texts * 3))
    flags = "--objective simcse --sentence_hidden_size 0 --similarity_loss_weight 1 --learning_rate 1e-30"
    run_from(tmp_path / "before", tmp_path / "texts.txt", tmp_path / "run", flags)
    after = TextJepaForPreTraining.from_pretrained(tmp_path / "run" / "pretraining")
    for name, value in before.model.encoder.state_dict().items():
        torch.testing.assert_close(after.target_encoder.state_dict()[name], value)
    assert "Exported: the context encoder" in (tmp_path / "run" / "README.md").read_text()


def test_a_checkpoint_of_before_is_one_without_the_loss(tmp_path):
    checkpointing.write_manifest(tmp_path, {"order": checkpointing.ORDER})
    found = checkpointing.differing_settings(tmp_path, {"similarity_loss_weight": 1.0})
    assert found == ["similarity_loss_weight was 0.0 and is 1.0"]


@pytest.mark.parametrize(("weight", "share"), [("0", 0.0), ("1", 1.0)])
def test_where_similarities_are_kept_a_run_exports_the_best_weights(
    make_model, tokenizer, texts, tmp_path, monkeypatch, weight, share
):
    """And otherwise those nearest to the start among weights that are about as good, as what it knew fades."""
    make_model().model.encoder.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    (tmp_path / "train.txt").write_text("\n\n".join(texts * 4))
    scores = iter([np.array([1.0, 0.0]), *[np.array([0.0, 1.0])] * 3, np.array([0.0, 1.1])])
    monkeypatch.setattr(closing, "score_on_documents", lambda *_: lambda weights: next(scores))
    flags = f"--objective simcse --pooling mean --similarity_loss_weight {weight}"
    output = run_from(tmp_path / "start", tmp_path / "train.txt", tmp_path / "run", flags)
    assert json.loads((output / "verdict.json").read_text())["share"] == share


@pytest.mark.parametrize(("repeats", "warns"), [(1, True), (9, False)])
def test_a_run_on_single_sentences_names_the_view_that_suits_them(
    make_model, tokenizer, texts, tmp_path, caplog, repeats, warns
):
    make_model().model.encoder.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    sentence = " ".join(texts[0].split()[:8])
    documents = [" ".join([str(number), *[sentence] * repeats]) for number in range(40)]
    (tmp_path / "train.txt").write_text("\n".join(documents))
    flags = "--objective simcse --view neighbour --merge false"
    run_from(tmp_path / "start", tmp_path / "train.txt", tmp_path / "run", flags)
    assert ("--view deletion" in caplog.text) == warns
