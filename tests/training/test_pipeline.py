"""The stages as functions: rates, unfreezing, seeds, and what is carried from stage to stage."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulmfit_fast.data import Vocab
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.training.stages import (
    TrainingSettings,
    build_classifier,
    fit_classifier,
    perplexity,
    train_language_model,
    with_vocabulary,
)
from ulmfit_fast.training.state import History

WORDS = 14
CONFIG = AWDLSTMConfig(WORDS, emb_size=4, hidden_size=6, num_layers=2)
SETTINGS = TrainingSettings(batch_size=4, bptt=5, lr=0.05)
KINDS = pytest.mark.parametrize("kind", ["language model", "classifier"])


def documents(count: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, WORDS, 3 + n % 7).astype(np.int32) for n in range(count)]


def make(kind: str) -> nn.Module:
    model = LanguageModel(CONFIG)
    return model if kind == "language model" else build_classifier(model, CONFIG, 2, SETTINGS)


def train(model: nn.Module, settings: TrainingSettings, **options) -> History:
    if isinstance(model, LanguageModel):
        return train_language_model(model, documents(), settings, **options)
    return fit_classifier(model, documents(), torch.arange(12) % 2, settings, **options)


def values(groups: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[p.detach().clone() for p in group] for group in groups]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected a whole number"),
        ({"batch_size": -1}, "batch_size is -1, expected a whole"),
        ({"bptt": 0}, "bptt is 0"),
        ({"epochs": 1.5}, "epochs is 1.5, expected a whole number"),
        ({"max_len": 0}, "max_len is 0"),
        ({"lr": 0.0}, "lr is 0.0, expected a positive number"),
        ({"lr": -1e-3}, "lr is -0.001"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": math.inf}, "lr is inf"),
        ({"clip": 0.0}, "clip is 0.0, expected a positive number, None for none"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"gradual_unfreezing": -1}, "gradual_unfreezing is -1, .* 0 for none"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_are_checked(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**setting)


@KINDS
@pytest.mark.parametrize("every", [1, 2], ids=["each epoch", "each second epoch"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1], ids=["Adam", "AdamW"])
def test_groups_stay_as_they_are_until_their_stage(
    kind: str, every: int, weight_decay: float
) -> None:
    model = make(kind)
    groups = model.layer_groups()
    last, trail = len(groups) - 1, [values(groups)]
    history = train(
        model,
        replace(
            SETTINGS, epochs=(last + 1) * every, gradual_unfreezing=every, weight_decay=weight_decay
        ),
        after_epoch=lambda epoch, history: trail.append(values(groups)),
    )
    for index in range(len(groups)):
        for epoch, now in enumerate(trail):
            # After as many epochs as it takes to open the groups above.
            opened = epoch > (last - index) * every
            for value, start in zip(now[index], trail[0][index], strict=True):
                assert torch.equal(value, start) != opened, (index, epoch)
    assert {len(rates) for rates in history.lrs} == {last + 1}
    steps = len(history.losses) // len(history.epochs)
    assert history.unfreeze_steps == [steps * every * stage for stage in range(last + 1)]
    assert all(p.requires_grad for p in model.parameters())


@KINDS
def test_all_groups_train_from_the_start_without_unfreezing(kind: str) -> None:
    model = make(kind)
    before = values(model.layer_groups())
    assert train(model, SETTINGS).unfreeze_steps == []
    for group, start in zip(model.layer_groups(), before, strict=True):
        assert not any(torch.equal(p, s) for p, s in zip(group, start, strict=True))


@KINDS
def test_an_interruption_leaves_nothing_frozen(kind: str) -> None:
    def stop(epoch: int, history: History) -> None:
        raise KeyboardInterrupt

    model = make(kind)
    with pytest.raises(KeyboardInterrupt):
        train(model, replace(SETTINGS, epochs=3, gradual_unfreezing=1), after_epoch=stop)
    assert all(p.requires_grad for p in model.parameters())


@KINDS
def test_rates_are_slanted_triangular_over_all_epochs(kind: str) -> None:
    history = train(make(kind), replace(SETTINGS, epochs=5, cut_frac=0.4, ratio=8.0))
    total = len(history.losses)
    steps, cut, groups = total // 5, total * 0.4, len(history.lrs[0])
    assert steps > 1 and groups == (3 if kind == "language model" else 4)
    for step, rates in enumerate(history.lrs):
        p = step / cut if step <= cut else 1 - (step - cut) / (total - cut)
        highest = 0.05 * (1 + p * 7) / 8
        assert rates == pytest.approx([highest / 2.6 ** (groups - 1 - g) for g in range(groups)])
    assert max(rates[-1] for rates in history.lrs) == pytest.approx(0.05)


@KINDS
def test_rates_are_constant_and_equal_on_request(kind: str) -> None:
    history = train(make(kind), replace(SETTINGS, epochs=2, schedule="constant", factor=1.0))
    assert {rate for rates in history.lrs for rate in rates} == {0.05}


@KINDS
def test_a_seed_decides_everything(kind: str) -> None:
    def trained(weights: int, order: int) -> list[Tensor]:
        torch.manual_seed(weights)
        model = make(kind)
        train(model, replace(SETTINGS, epochs=2), seed=order)
        return list(model.state_dict().values())

    first = trained(1, 1)
    assert same(first, trained(1, 1))
    assert not same(first, trained(1, 2)) and not same(first, trained(2, 1))


def test_documents_stand_in_a_new_order_each_epoch() -> None:
    model, seen = LanguageModel(CONFIG), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].T.flatten().tolist()))
    settings = replace(SETTINGS, epochs=3, batch_size=1, bptt=1000)
    train_language_model(model, documents(), settings)
    assert len({tuple(ids) for ids in seen}) == 3
    text = sorted(id for doc in documents() for id in doc.tolist())
    for ids in seen:  # All but the last token, which is only a target.
        assert len(ids) == len(text) - 1 and set(ids) <= set(text)


def test_texts_are_batched_anew_each_epoch() -> None:
    model, seen = make("classifier"), []
    model.register_forward_pre_hook(lambda module, args: seen.append(str(args[0].tolist())))
    settings = replace(SETTINGS, epochs=2)
    train(model, settings, after_epoch=lambda *_: seen.append("end"))
    first = seen.index("end")
    assert set(seen[:3]) != set(seen[first + 1 : first + 4])


def test_weight_decay_is_decoupled_from_the_gradient() -> None:
    def trained(weight_decay: float) -> Tensor:
        torch.manual_seed(0)
        model = make("language model")
        train(model, replace(settings, weight_decay=weight_decay))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    settings = replace(SETTINGS, bptt=1000, schedule="constant", factor=1.0)  # one step at 0.05
    torch.manual_seed(0)
    start = torch.cat([p.detach().flatten() for p in make("language model").parameters()])
    assert torch.allclose(trained(0.0) - trained(0.5), 0.05 * 0.5 * start, atol=1e-6)


def test_a_corpus_below_one_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="the corpus has 3 tokens, expected at least 5"):
        train_language_model(LanguageModel(CONFIG), documents(1), SETTINGS)


def test_classifier_is_ready_to_predict_after_each_epoch() -> None:
    model, ready = make("classifier"), []
    tokens = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(d).long() for d in documents()])
    lengths = torch.tensor([len(d) for d in documents()])

    def statistics_fit() -> bool:
        with torch.no_grad():
            mean = model.features(tokens, lengths).mean(0)
        return not model.training and torch.allclose(model.head[0].running_mean, mean, atol=1e-6)

    settings = replace(SETTINGS, epochs=2, batch_size=12)
    train(model, settings, after_epoch=lambda *_: ready.append(statistics_fit()))
    assert ready == [True, True]
    train(model, settings)
    assert statistics_fit()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_vocabulary_is_carried_over_by_name(tied: bool) -> None:
    old, new = Vocab(["cat", "dog", "fish"]), Vocab(["dog", "bird", "cat", "cow"])
    model = LanguageModel(replace(CONFIG, vocab_size=len(old), tie_weights=tied))
    with torch.no_grad():
        model.decoder.bias.normal_()
    before = [value.clone() for value in model.state_dict().values()]
    result = with_vocabulary(model, old, new)
    rows = [*range(9), 10, None, 9, None]  # dog, bird, cat, cow
    for name in ("encoder.encoder.weight", "decoder.weight", "decoder.bias"):
        was, now = model.state_dict()[name], result.state_dict()[name]
        mean = was.mean(0)
        assert len(now) == len(rows)
        for value, row in zip(now, rows, strict=True):
            assert torch.equal(value, mean if row is None else was[row]), name
    same_place = result.decoder.weight.data_ptr() == result.encoder.encoder.weight.data_ptr()
    assert same_place == tied and result.config == replace(model.config, vocab_size=13)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.zero_()
    assert same(before, list(model.state_dict().values()))


def test_known_words_keep_their_scores_in_another_vocabulary() -> None:
    old, new = Vocab(["cat", "dog"]), Vocab(["bird", "dog", "cat"])
    model = LanguageModel(replace(CONFIG, vocab_size=len(old))).eval()
    scores = model(torch.tensor([[2], [9], [10]])).logits  # cat dog
    carried = with_vocabulary(model, old, new).eval()(torch.tensor([[2], [11], [10]])).logits
    assert torch.allclose(carried[..., [*range(9), 11, 10]], scores, atol=1e-6)


def test_classifier_starts_from_a_copy_of_the_encoder() -> None:
    source = LanguageModel(CONFIG)
    config = replace(CONFIG, output_p=0.25, weight_p=0.5)
    model = build_classifier(source, config, 3, replace(SETTINGS, bptt=7, max_len=9))
    start = [p.clone() for p in source.parameters()]
    assert same(list(model.encoder.parameters()), list(source.encoder.parameters()))
    assert (model.num_classes, model.bptt, model.max_len) == (3, 7, 9)
    assert model.head[1].p == 0.25 and model.encoder.rnns[0].weight_p == 0.5
    fit_classifier(model, documents(), torch.arange(12) % 3, SETTINGS)
    assert same(list(source.parameters()), start)
    assert not same(list(model.encoder.parameters()), list(source.encoder.parameters()))


def test_double_precision_is_carried_over() -> None:
    model = LanguageModel(CONFIG).double()
    vocab = Vocab([f"word{n}" for n in range(CONFIG.vocab_size - 9)])
    carried = with_vocabulary(model, vocab, vocab)
    encoder = build_classifier(carried, CONFIG, 2, SETTINGS).encoder
    assert same(list(encoder.parameters()), list(model.encoder.parameters()))


def test_classifier_without_a_language_model_starts_anew() -> None:
    source = LanguageModel(CONFIG)
    model = build_classifier(None, CONFIG, 2, SETTINGS)
    assert not same(list(model.encoder.parameters()), list(source.encoder.parameters()))


@pytest.mark.parametrize("bptt", [1, 6, 1000], ids="bptt{}".format)
def test_perplexity_is_that_of_the_text_in_its_own_order(bptt: int) -> None:
    model = LanguageModel(replace(CONFIG, weight_p=0.5, output_p=0.5))
    with torch.no_grad():
        model.encoder.encoder.weight.mul_(30)
    value = perplexity(model, documents(), batch_size=1, bptt=bptt)
    ids = torch.from_numpy(np.concatenate(documents())).long()
    logits = model.eval()(ids[:-1, None]).logits[:, 0]
    assert value == pytest.approx(math.exp(F.cross_entropy(logits, ids[1:]).item()), rel=1e-5)
    assert abs(value - WORDS) > 0.5, "a uniform model would hide a mistake"
    assert perplexity(model, documents(), batch_size=1, bptt=bptt) == value


def test_perplexity_of_streams_and_of_short_texts() -> None:
    model, ids = LanguageModel(CONFIG).eval(), np.concatenate(documents())
    rows = torch.from_numpy(ids[: len(ids) - (len(ids) - 1) % 3]).long()
    inputs, targets = (part.reshape(3, -1).T for part in (rows[:-1], rows[1:]))
    loss = F.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten()).item()
    assert perplexity(model, documents(), batch_size=3) == pytest.approx(math.exp(loss), rel=1e-5)
    assert perplexity(model, [np.array([2, 5])]) > 1.0
    with pytest.raises(ValueError, match="the corpus has 1 tokens"):
        perplexity(model, [np.array([2])])
