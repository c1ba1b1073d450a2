"""fastai's text classifier and ours: weights by name, both ways."""

import pytest
import torch
import torch.nn.functional as F
from fastai_formats import E, V, parallel, state_dict
from torch import nn

from ulmfit_fast.compat.fastai import classifier_from_fastai, to_fastai
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, TextClassifier


def classifier(output_p: float = 0.4, head_p: float = 0.1) -> TextClassifier:
    config = AWDLSTMConfig.classifier(V, emb_size=E, hidden_size=23, num_layers=2)
    sizes = {"hidden": 7, "bptt": 5, "max_len": 9}
    model = TextClassifier(AWDLSTM(config), 3, output_p=output_p, head_p=head_p, **sizes).double()
    for norm in (model.head[0], model.head[4]):
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(values, 0.5, 2)
        norm.num_batches_tracked.fill_(17)
    return model.eval()


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: {"model": parallel(d)}])
def test_classifier_there_and_back(wrap) -> None:
    model, tokens, lengths = classifier(), torch.randint(V, (12, 4)), torch.tensor([12, 3, 0, 9])
    tensors = to_fastai(model)
    again = classifier_from_fastai(wrap(dict(reversed(tensors.items()))), bptt=5, max_len=9)
    with torch.no_grad():
        assert again(tokens, lengths).equal(model(tokens, lengths))
        x = again.features(tokens, lengths)
        for block, activation in ((0, F.relu), (1, lambda values: values)):
            norm = [tensors[f"1.layers.{block}.0.{name}"] for name in
                    ("running_mean", "running_var", "weight", "bias")]  # fmt: skip
            x = activation(F.linear(F.batch_norm(x, *norm), tensors[f"1.layers.{block}.2.weight"]))
    torch.testing.assert_close(again(tokens, lengths), x, rtol=1e-12, atol=1e-12)
    assert again.encoder.config == AWDLSTMConfig.classifier(V, emb_size=E, hidden_size=23,
                                                            num_layers=2)  # fmt: skip
    assert (again.hidden, again.num_classes, again.output_p, again.head_p) == (7, 3, 0.4, 0.1)
    assert again.head[0].num_batches_tracked == 17 and not again.training
    assert list(again.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("output_p", [0.0, 0.4])
@pytest.mark.parametrize("head_p", [0.0, 0.1])
def test_a_dropout_of_zero_is_a_layer_less_in_fastai(output_p: float, head_p: float) -> None:
    tensors = to_fastai(classifier(output_p, head_p))
    assert (f"1.layers.0.{2 if output_p else 1}.weight" in tensors) and (
        f"1.layers.1.{2 if head_p else 1}.weight" in tensors
    )
    again = classifier_from_fastai(tensors)
    assert (again.output_p, again.head_p) == (output_p, head_p)
    again = classifier_from_fastai(tensors, output_p=0.2, head_p=0.3)
    assert (again.output_p, again.head_p) == (0.2, 0.3)


def test_classifiers_that_are_refused() -> None:
    tensors = to_fastai(classifier())
    third = {"1.layers.2.0.weight": torch.ones(3).double()}
    with pytest.raises(ValueError, match=r"unknown names: 1.layers.2.0.weight; missing: none"):
        classifier_from_fastai(tensors | third)
    del tensors["1.layers.1.2.weight"]
    with pytest.raises(ValueError, match=r"unknown names: none; missing: 1.layers.1.2.weight"):
        classifier_from_fastai(tensors)
    tensors["1.layers.1.2.weight"] = torch.ones(3, 8).double()
    with pytest.raises(ValueError, match=r"1.layers.1.2.weight has shape \(3, 8\), expected \(3, "):
        classifier_from_fastai(tensors)
    with pytest.raises(ValueError, match=r"unknown names: 1.decoder.weight, 1.decoder.bias; missi"):
        classifier_from_fastai(state_dict())
