import copy
import pickle

import pytest
import torch

from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel, LMOutput, detach_state, language_model_loss


def make(**overrides: object) -> LanguageModel:
    sizes = {"emb_size": 4, "hidden_size": 6, "num_layers": 2}
    return LanguageModel(AWDLSTMConfig.language_model(12, **{**sizes, **overrides}))


def test_output_parts() -> None:
    model = make(output_p=0.5).double()
    output = model(torch.randint(12, (5, 3)))
    assert isinstance(output, LMOutput)
    assert output.logits.shape == (5, 3, 12)
    ratio = output.dropped / output.raw
    assert torch.equal(ratio, ratio[:1].expand_as(ratio)), "output dropout is locked over time"
    assert set(ratio.unique().tolist()) == {0.0, 2.0}
    expected = output.dropped @ model.encoder.encoder.weight.T + model.decoder.bias
    assert torch.allclose(output.logits, expected, rtol=0, atol=1e-14)
    assert [h.shape for h, _ in output.state] == [(1, 3, 6), (1, 3, 4)]


def test_decoder_is_tied_and_stays_tied() -> None:
    model = make()
    assert not model.decoder.bias.any()
    assert len(list(model.parameters())) == 1 + 2 * 4 + 1
    model(torch.randint(12, (5, 3))).logits.sum().backward()
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        copy.copy(model).double(),
    ):
        assert twin.decoder.weight is twin.encoder.encoder.weight


def test_untied_decoder_and_no_bias() -> None:
    model = make(tie_weights=False, out_bias=False)
    assert model.decoder.weight is not model.encoder.encoder.weight
    assert 0.0 < model.decoder.weight.abs().max() <= 0.1
    assert model.decoder.bias is None
    assert [len(group) for group in model.layer_groups()] == [2, 4, 4]


def test_tied_decoder_sees_the_embedding_undropped() -> None:
    model = make(embed_p=1.0, output_p=0.0)
    output = model(torch.randint(12, (5, 3)))
    expected = torch.nn.functional.linear(output.raw, model.encoder.encoder.weight)
    assert torch.allclose(output.logits, expected)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_padding_row_gets_gradient_from_the_decoder_only(tied: bool) -> None:
    model = make(tie_weights=tied)
    model(torch.ones(5, 3, dtype=torch.int64)).logits.sum().backward()
    assert bool(model.encoder.encoder.weight.grad[1].any()) == tied


def test_layer_groups_run_from_input_to_output_and_hold_everything_once() -> None:
    model = make()
    groups = model.layer_groups()
    assert groups[0] == [model.encoder.encoder.weight, model.decoder.bias]
    assert [group[0] for group in groups[1:]] == [rnn.weight_ih_l0 for rnn in model.encoder.rnns]
    listed = [id(p) for group in groups for p in group]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_back_propagation_ends_at_the_lowest_trainable_group() -> None:
    model = make()
    for group in model.layer_groups()[:-1]:
        for parameter in group:
            parameter.requires_grad_(False)
    outputs = []
    for rnn in model.encoder.rnns:
        rnn.register_forward_hook(lambda module, args, result: outputs.append(result[0]))
    output = model(torch.randint(12, (5, 3)))
    output.logits.sum().backward()
    assert [out.requires_grad for out in outputs] == [False, True]
    assert model.encoder.encoder.weight.grad is None and model.decoder.bias.grad is None
    assert all(p.grad is not None for p in model.layer_groups()[-1])


def test_truncated_training_over_a_stream_learns() -> None:
    torch.manual_seed(0)
    model = make(input_p=0.0, hidden_p=0.0, weight_p=0.1, embed_p=0.0, output_p=0.0)
    stream = (torch.arange(241) * 5 % 12)[:, None].expand(-1, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(12):
        state = None
        for start in range(0, 240, 20):
            output = model(stream[start : start + 20], state)
            state = detach_state(output.state)
            loss = language_model_loss(output, stream[start + 1 : start + 21], alpha=0.1, beta=0.1)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            losses.append(loss.cross_entropy.item())
    assert losses[0] > 2.0 and losses[-1] < 0.5


def test_compiles_whole_and_gives_the_same_masks() -> None:
    model, words = make(gate_p=0.1), torch.randint(12, (5, 3))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    expected = model(words)
    torch.manual_seed(0)
    output = compiled(words)
    assert torch.allclose(output.logits, expected.logits)
    compiled(words, detach_state(output.state)).logits.sum().backward()
    assert model.encoder.encoder.weight.grad.any()
