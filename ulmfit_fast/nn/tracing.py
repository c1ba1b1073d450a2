"""What torch.jit, torch.fx, torch.export and torch.onnx are given when they walk an LSTM layer.

None of them knows this package's operators, or can do anything with the Python around them. Where
nothing is dropped they get PyTorch's own LSTM on the same parameters, as nn.LSTM would give it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ulmfit_fast import backend as backends

__all__ = ["OnlyTraced", "PlainForward", "fx_call", "is_traced"]

State = tuple[Tensor, Tensor]


def is_traced(steps: int, lengths: Tensor | None) -> bool:
    """Say whether a tracer or exporter is at work that takes PyTorch's own LSTM.

    For lengths and for a T that is dynamic an exported program has a `scan` over the steps instead:
    PyTorch's LSTM would be unrolled to the one T of the example.

    Args:
        steps: T; a symbol where it is dynamic.
        lengths: `(B,)` or None.
    """
    if backends.in_jit_trace():
        return True
    if not torch.compiler.is_exporting() or lengths is not None:
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return has_static_value(steps)


def fx_call(layer: nn.Module, x: Any, **options: Any) -> Any:
    """Record a call of the layer as one node where torch.fx traces it, else return None.

    torch.fx enters every module but PyTorch's own, unless its tracer says otherwise.
    """
    given = {name: value for name, value in options.items() if value is not None}
    values = [x]
    for value in given.values():
        values += value if isinstance(value, tuple | list) else [value]
    tracer: Any = next(
        (value.tracer for value in values if isinstance(value, torch.fx.Proxy)), None
    )
    if tracer is None:
        return None
    if tracer.root is layer:
        raise TypeError(
            "torch.fx cannot trace through an LSTM layer, and its root is one: trace a module that "
            "has the layer in it"
        )
    path = tracer.path_of_module(layer)
    if not layer._forward_hooks and not layer._forward_pre_hooks:
        return tracer.create_proxy("call_module", path, (x,), given)
    # The hooks are being traced around this call, and would run in it for a second time.
    module = tracer.create_proxy("get_attr", path, (), {})
    return tracer.create_proxy("call_method", "forward", (module, x), given)


class OnlyTraced(nn.Module):
    """A model that tracers and exporters run, and torch.jit.script and torch.fx cannot read."""

    def __prepare_scriptable__(self) -> None:
        """Name the mend where torch.jit.script would name a line of this package.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"torch.jit.script cannot read the Python of {type(self).__name__}: call eval() and "
            "take torch.jit.trace, torch.export.export or torch.onnx.export"
        )

    def _refuse_fx(self, *values: Any) -> None:
        if any(isinstance(value, torch.fx.Proxy) for value in values):
            raise TypeError(
                f"torch.fx cannot trace through {type(self).__name__}: call eval() and take "
                "torch.export.export, or keep it as one node with is_leaf_module of a "
                "torch.fx.Tracer"
            )


class _OnlyScripted:
    """A method that is there once torch.jit.script has asked for it.

    torch.jit.trace compiles what is exported as well, and has not prepared the module for it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __get__(self, layer: nn.Module | None, kind: type | None = None) -> Any:
        if layer is None or "_plain_weights" not in layer.__dict__:
            raise AttributeError(self._function.__name__)
        return MethodType(self._function, layer)


class PlainForward(nn.Module):
    """An LSTM layer that drops neither weights nor gates, in operators that need no Python.

    Written in TorchScript, which compiles the two as overloads of the layer's forward; the other
    walkers run them.
    """

    __jit_unused_properties__ = (
        "mode",
        "all_weights",
        "_all_weights",
        "_flat_weights_names",
        "_flat_weights",
        "_plain_weights",
        "_drops",
        "_drops_anything",
    )

    if TYPE_CHECKING:
        # Not at run time: torch.jit cannot read annotations that are strings.
        num_layers: int
        hidden_size: int
        bias: bool
        batch_first: bool
        bidirectional: bool
        dropout: float
        _plain_weights: Any
        _drops: Any

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "qconfig" and name not in self.__dict__:
            # torch.ao.quantization leaves this on every module, and then passes by in silence what
            # is not exactly an nn.LSTM. What it was asked to quantise, only its own frame tells.
            named = sys._getframe(1).f_locals.get("qconfig_dict") or {}
            if value is not None or nn.LSTM in named:
                raise TypeError(
                    f"torch.ao.quantization cannot quantise {type(self).__name__}: call "
                    "ulmfit_fast.restore_lstm(model) first and name torch.nn.LSTM, or set the "
                    "layer's qconfig to None to leave it as it is"
                )
        super().__setattr__(name, value)

    def __prepare_scriptable__(self) -> PlainForward:
        """Let torch.jit.script see the overloads, and attributes where there are properties."""
        # Types are inferred from these; values come by getattr, which finds the properties first.
        self.__dict__["_plain_weights"] = [torch.empty(0, dtype=torch.float32, device="cpu")]
        self.__dict__["_drops"] = False
        self.__dict__["__overloads__"] = {"forward": ["_scripted", "_scripted_packed"]}
        return self

    @_OnlyScripted
    @torch.jit.export
    def _scripted(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        self._check_scripted()
        return self._plain(input, hx, lengths)

    @_OnlyScripted
    @torch.jit.export
    def _scripted_packed(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
        self._check_scripted()
        return self._plain_packed(input, hx)

    def _plain(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batched = input.dim() == 3
        batch_dim = 0 if self.batch_first else 1
        x = input if batched else input.unsqueeze(batch_dim)  # (T, B, E) or (B, T, E)
        if hx is None:
            rows = self.num_layers * (2 if self.bidirectional else 1)
            h_0 = torch.zeros(
                rows, x.size(batch_dim), self.hidden_size, dtype=x.dtype, device=x.device
            )
            c_0 = h_0
        else:
            h_0, c_0 = hx
            if not batched:
                h_0, c_0 = h_0.unsqueeze(1), c_0.unsqueeze(1)
        if lengths is None:
            output, h_n, c_n = torch.lstm(
                x,
                [h_0, c_0],
                self._plain_weights,
                self.bias,
                self.num_layers,
                self.dropout,
                self.training,
                self.bidirectional,
                self.batch_first,
            )
        else:
            # A packed batch has no row of length 0: such rows run a step, and are put right here.
            packed = pack_padded_sequence(
                x, lengths.clamp(min=1).cpu(), self.batch_first, enforce_sorted=False
            )
            packed, (h_n, c_n) = self._plain_packed(packed, (h_0, c_0))
            output, _ = pad_packed_sequence(
                packed, self.batch_first, total_length=x.size(1 - batch_dim)
            )
            empty = (lengths == 0).unsqueeze(1)  # (B, 1)
            h_n, c_n = torch.where(empty, h_0, h_n), torch.where(empty, c_0, c_n)
            output = output.masked_fill(empty.unsqueeze(1 - batch_dim), 0.0)
        if not batched:
            output, h_n, c_n = output.squeeze(batch_dim), h_n.squeeze(1), c_n.squeeze(1)
        return output, (h_n, c_n)

    def _plain_packed(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if hx is None:
            rows = self.num_layers * (2 if self.bidirectional else 1)
            # A tensor for a size: a tracer would take an int as a constant.
            h_0 = torch.zeros(  # type: ignore[call-overload]
                rows, batch_sizes[0], self.hidden_size, dtype=data.dtype, device=data.device
            )
            c_0 = h_0
        else:
            h_0, c_0 = hx
            if sorted_indices is not None:
                h_0 = h_0.index_select(1, sorted_indices)
                c_0 = c_0.index_select(1, sorted_indices)
        output, h_n, c_n = torch.lstm(
            data,
            batch_sizes,
            [h_0, c_0],
            self._plain_weights,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
        )
        if unsorted_indices is not None:
            h_n = h_n.index_select(1, unsorted_indices)
            c_n = c_n.index_select(1, unsorted_indices)
        return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), (h_n, c_n)

    def _check_scripted(self) -> None:
        if self.training and self._drops:
            raise RuntimeError(
                "a scripted LSTM drops neither weights nor gates, and it is in training mode with "
                "weight_p or gate_p: call eval(), or script what ulmfit_fast.restore_lstm makes of "
                "the model"
            )
