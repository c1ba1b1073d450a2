"""`LSTM`: torch.nn.LSTM with weight-drop and gate dropout."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ulmfit_fast import backend as backends
from ulmfit_fast.checks import as_seed, flag, gate_probabilities, probability, size
from ulmfit_fast.functional import layer as layers
from ulmfit_fast.lstm.checks import (
    check_dropouts,
    check_hx,
    check_input,
    check_input_dtype,
    check_lengths,
)
from ulmfit_fast.lstm.masks import DropoutMasks
from ulmfit_fast.nn.packed import packed_data, padded
from ulmfit_fast.nn.tracing import PlainForward, fx_call, is_traced
from ulmfit_fast.system.seeds import draw_seed

__all__ = ["LSTM"]

State = tuple[Tensor, Tensor]


class LSTM(PlainForward):
    """A drop-in for `torch.nn.LSTM` with weight-drop and gate dropout.

    Parameters bear nn.LSTM's names and shapes, so a state_dict loads both ways. It is not a
    subclass of nn.LSTM: `torch.compile` refuses that class, and takes this one whole, with a
    PackedSequence too. `torch.jit`, `torch.fx`, `torch.export` and `torch.onnx` take it as they
    take nn.LSTM wherever neither weights nor gates are dropped, and give dropout between layers as
    nn.LSTM draws it; `torch.ao.quantization` goes by that class, and wants `restore_lstm(model)`
    first.

    Example:
        >>> import torch
        >>> import ulmfit_fast as uf
        >>> lstm = uf.LSTM(400, 1152, weight_p=0.5)
        >>> output, (h_n, c_n) = lstm(torch.randn(3, 2, 400))
        >>> output.shape, h_n.shape
        (torch.Size([3, 2, 1152]), torch.Size([1, 2, 1152]))
        >>> _ = torch.nn.LSTM(400, 1152).load_state_dict(lstm.state_dict())

    Args:
        input_size: E.
        hidden_size: H.
        num_layers: stacked layers.
        bias: whether there are b_ih and b_hh.
        batch_first: input and output as `(B, T, .)` instead of `(T, B, .)`.
        dropout: probability of dropping an output element between two layers.
        bidirectional: run both directions and concatenate their outputs.
        proj_size: must be 0; projections are not supported.
        device: device of the parameters.
        dtype: dtype of the parameters.
        weight_p: probability of dropping a recurrent weight at each training forward; one, or four
            for the gates i, f, g, o. Each layer and direction has its own mask.
        gate_p: probability of dropping an activated gate; one or four.
        gate_mask: "step" for a new gate mask at each time step; "sequence" for one in all.
        recompute_gates: on the Triton kernels, compute the activated gates again in the backward
            instead of keeping them; see `ulmfit_fast.functional.lstm`.
        backend: one of `ulmfit_fast.backend.BACKENDS`; see that module.

    Raises:
        ValueError: if a size is not positive, a probability lies outside [0, 1], or `proj_size`
            is not 0.
        TypeError: if a size is not a whole number, a probability not a number, or a switch not a
            bool.

    Source:
        Merity, Keskar & Socher 2018 (arXiv:1708.02182), section 2.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_p: float | Sequence[float] = 0.0,
        gate_p: float | Sequence[float] = 0.0,
        gate_mask: str = "step",
        recompute_gates: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.input_size = size("input_size", input_size)
        self.hidden_size = hidden_size = size("hidden_size", hidden_size)
        self.num_layers = num_layers = size("num_layers", num_layers)
        if proj_size != 0:
            raise ValueError(
                f"proj_size is {size('proj_size', proj_size)}, expected 0: projections are not "
                "supported; use torch.nn.LSTM, or a Linear after this layer"
            )
        dropout = probability("dropout", dropout)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} acts between layers and num_layers is 1, so it does nothing; "
                "for dropout inside the layer use weight_p or gate_p",
                stacklevel=2,
            )
        self.bias = flag("bias", bias)
        self.batch_first = flag("batch_first", batch_first)
        self.dropout = dropout
        self.bidirectional = flag("bidirectional", bidirectional)
        self.proj_size = 0
        weight_ps, gate_ps = check_dropouts(weight_p, gate_p, gate_mask)
        self.weight_p, self.gate_p = _collapsed(weight_ps), _collapsed(gate_ps)
        self.gate_mask = gate_mask
        self.recompute_gates = flag("recompute_gates", recompute_gates)
        self.backend = backends.check_name(backend)
        directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            width = self.input_size if layer == 0 else hidden_size * directions
            for reverse in range(directions):
                shapes: dict[str, tuple[int, ...]] = {"weight_ih": (4 * hidden_size, width)}
                shapes["weight_hh"] = (4 * hidden_size, hidden_size)
                if bias:
                    shapes["bias_ih"] = shapes["bias_hh"] = (4 * hidden_size,)
                for name, shape in shapes.items():
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(self._name(name, layer, reverse), parameter)
        self.reset_parameters()

    @staticmethod
    def _name(kind: str, layer: int, reverse: int) -> str:
        return f"{kind}_l{layer}{'_reverse' if reverse else ''}"

    def reset_parameters(self) -> None:
        """Draw all parameters from U(-1/sqrt(H), 1/sqrt(H)), as nn.LSTM does."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Do nothing; kept so that code written for nn.LSTM runs."""

    # Code written for nn.LSTM calls these around a call of its own.
    check_input: Any = nn.LSTM.check_input
    check_hidden_size: Any = nn.LSTM.check_hidden_size
    check_forward_args: Any = nn.LSTM.check_forward_args
    get_expected_hidden_size: Any = nn.LSTM.get_expected_hidden_size
    get_expected_cell_size: Any = nn.LSTM.get_expected_cell_size
    permute_hidden: Any = nn.LSTM.permute_hidden

    @property
    def mode(self) -> str:
        """What nn.RNNBase calls its kind."""
        return "LSTM"

    @property
    def _all_weights(self) -> list[list[str]]:
        """The names of the parameters of each layer and direction, as nn.LSTM keeps them."""
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
        return [
            [self._name(kind, layer, reverse) for kind in kinds]
            for layer in range(self.num_layers)
            for reverse in range(2 if self.bidirectional else 1)
        ]

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction: w_ih, w_hh and, with bias, b_ih, b_hh."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[nn.Parameter]:
        return [weight for weights in self.all_weights for weight in weights]

    @property
    def _plain_weights(self) -> list[nn.Parameter]:
        return self._flat_weights

    def extra_repr(self) -> str:
        """Show the sizes and whatever differs from its default."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "weight_p": 0.0,
            "gate_p": 0.0,
            "gate_mask": "step",
            "recompute_gates": False,
            "backend": "auto",
        }
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)

    def backend_request(
        self,
        x: Tensor | PackedSequence,
        hx: State | None = None,
        lengths: Tensor | None = None,
    ) -> backends.Request:
        """Describe the first layer's call to `backend.explain`, as a forward does."""
        if isinstance(x, PackedSequence):
            data, batch_size = x.data, int(x.batch_sizes[0])
        else:
            check_input(x, self.input_size)
            data = x
            batch_size = 1 if x.dim() == 2 else x.shape[0 if self.batch_first else 1]
        return layers.request_of(
            self._options(),
            data.device,
            layers.autocast_dtype(data) or data.dtype,
            (batch_size, self.input_size, self.hidden_size),
            state=hx,
            has_lengths=lengths is not None or isinstance(x, PackedSequence),
        )

    def _options(self) -> layers.Options:
        """Check what may have been set since the layer was made."""
        return layers.options(
            self.weight_p,
            self.gate_p,
            self.gate_mask,
            training=self.training,
            recompute_gates=self.recompute_gates,
            backend=self.backend,
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        lengths: Tensor | None = None,
        seed: Tensor | int | None = None,
        masks: Sequence[DropoutMasks] | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run the layers.

        Args:
            input: `(T, B, E)`, `(B, T, E)` with batch_first, `(T, E)` unbatched, or a
                PackedSequence.
            hx: (h_0, c_0), each `(D * L, B, H)`, or `(D * L, H)` unbatched; None for zeros.
            lengths: `(B,)` int64, zeros allowed: a row's state stops at its length and its later
                outputs are zeros. An alternative to a PackedSequence, without its sorting.
            seed: fixes the masks of this call; None draws one in training.
            masks: one `DropoutMasks` for each layer and direction, instead of drawn ones.

        Returns:
            output, as the input, with D * H features; and (h_n, c_n), as hx.

        Raises:
            ValueError: if shapes, devices or lengths do not fit; where nn.LSTM raises RuntimeError,
                it is both.
            TypeError: if dtypes do not fit, or `hx` is not a pair; where nn.LSTM raises ValueError
                or RuntimeError, it is both.
        """
        node = fx_call(self, input, hx=hx, lengths=lengths, seed=seed, masks=masks)
        if node is not None:
            return cast("tuple[Tensor, State]", node)
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths given with a PackedSequence, which has its own")
            return self._forward_packed(input, hx, seed, masks)
        check_input(input, self.input_size)
        batched = input.dim() == 3
        batch_dim = 0 if self.batch_first else 1
        x = input if batched else input.unsqueeze(batch_dim)  # (T, B, E) or (B, T, E)
        if self.batch_first:
            x = x.transpose(0, 1)  # (T, B, E)
        if hx is not None:
            shape = self._state_shape(x.shape[1])
            check_hx(hx, shape if batched else (shape[0], shape[2]), x)
        if lengths is not None:
            check_lengths(lengths, x.shape[1], x.shape[0])
        if is_traced(x.shape[0], lengths) and self._can_use_torch_lstm(x, hx, seed, masks):
            return self._plain(input, hx, lengths)
        if hx is not None and not batched:
            hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))  # (D * L, 1, H)
        output, h_n, c_n = self._run(x, hx, lengths, seed, masks)
        if self.batch_first:
            output = output.transpose(0, 1)  # (B, T, D * H)
        if not batched:
            output, h_n, c_n = output.squeeze(batch_dim), h_n.squeeze(1), c_n.squeeze(1)
        return output, (h_n, c_n)

    def _forward_packed(
        self,
        packed: PackedSequence,
        hx: State | None,
        seed: Tensor | int | None,
        masks: Sequence[DropoutMasks] | None,
    ) -> tuple[PackedSequence, State]:
        """Run on the padded form of a packed batch, whose rows stay in its sorted order."""
        if backends.in_jit_trace() and self._can_use_torch_lstm(packed.data, hx, seed, masks):
            return self._plain_packed(packed, hx)
        if torch.compiler.is_exporting() and packed.batch_sizes.is_floating_point():
            # What pack_padded_sequence gives where its tensors are fake.
            raise RuntimeError(
                "torch.export cannot record pack_padded_sequence: give the layer lengths=, or pack "
                "outside of what is exported"
            )
        x, lengths = padded(packed, hx)
        check_input(x, self.input_size)
        if hx is not None:
            check_hx(hx, self._state_shape(x.shape[1]), x)
            if packed.sorted_indices is not None:
                h_0, c_0 = (state.index_select(1, packed.sorted_indices) for state in hx)
                hx = (h_0, c_0)
        output, h_n, c_n = self._run(x, hx, lengths.to(x.device, non_blocking=True), seed, masks)
        data = packed_data(output, lengths, packed)
        if packed.unsorted_indices is not None:
            h_n = h_n.index_select(1, packed.unsorted_indices)
            c_n = c_n.index_select(1, packed.unsorted_indices)
        result = PackedSequence(
            data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        return result, (h_n, c_n)

    def _state_shape(self, batch_size: int) -> tuple[int, int, int]:
        return len(self._all_weights), batch_size, self.hidden_size

    @property
    def _drops_anything(self) -> bool:
        """Whether training drops anything, in the recurrence or between two layers."""
        return self._drops or (self.dropout > 0 and self.num_layers > 1)

    @property
    def _drops(self) -> bool:
        """Say whether drawn masks of the recurrence have anything to drop."""
        weight_p = gate_probabilities("weight_p", self.weight_p)
        return any(weight_p) or any(gate_probabilities("gate_p", self.gate_p))

    def _can_use_torch_lstm(
        self,
        x: Tensor,
        hx: State | None,
        seed: Tensor | int | None,
        masks: Sequence[DropoutMasks] | None,
    ) -> bool:
        """Say whether PyTorch's own LSTM gives what this call asks for."""
        # Dropout between layers it has as well, drawn from PyTorch's generator; torch.onnx has not.
        own_draws = seed is not None or backends.in_onnx_export()
        drops = self._drops_anything if own_draws else self._drops
        return (
            backends.requested(self.backend)[0] in ("auto", "torch")
            and not (self.training and (masks is not None or drops))
            and layers.autocast_dtype(x) is None
            and (hx is None or hx[0].dtype == hx[1].dtype)
        )

    def _run(
        self,
        x: Tensor,
        hx: State | None,
        lengths: Tensor | None,
        seed: Tensor | int | None,
        masks: Sequence[DropoutMasks] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        directions = 2 if self.bidirectional else 1
        weights, options = self.all_weights, self._options()
        if layers.autocast_dtype(x) is None:
            check_input_dtype(x, weights[0][0])
        if masks is not None and len(masks) != len(weights):
            raise ValueError(
                f"masks has {len(masks)} entries, expected {len(weights)}: one for each layer "
                "and direction"
            )
        layer_p = self.dropout if self.training and self.num_layers > 1 else 0.0
        if seed is not None:
            seed = as_seed(seed)
        elif layer_p > 0 or (masks is None and options.drops):
            seed = draw_seed()
        if seed is not None and self.training and backends.in_onnx_export():
            raise RuntimeError(
                "torch.onnx has no operators for weight_p, gate_p and dropout in training: call "
                "eval(), or export what ulmfit_fast.restore_lstm makes of the model"
            )
        if layer_p > 0 and backends.in_jit_trace():
            raise RuntimeError(
                "torch.jit.trace cannot record dropout between layers beside weight_p, gate_p, a "
                "seed or masks: call eval() first, or trace what ulmfit_fast.restore_lstm makes of "
                "the model"
            )
        states: list[State | None] = [None] * len(weights)
        if hx is not None:
            states = list(zip(hx[0].unbind(0), hx[1].unbind(0), strict=True))  # (B, H)
        finals: list[State] = []
        for layer in range(self.num_layers):
            outputs = []
            for reverse in range(directions):
                row = layer * directions + reverse
                w_ih, w_hh, *biases = weights[row]
                b_ih, b_hh = biases or (None, None)
                output, final = layers.run_layer(
                    x,
                    states[row],
                    (w_ih, w_hh, b_ih, b_hh),
                    options,
                    lengths=lengths,
                    stream=2 * layer + reverse,
                    seed=seed,
                    masks=None if masks is None else masks[row],
                )
                outputs.append(output)  # (T, B, H)
                finals.append(final)
            x = outputs[0] if directions == 1 else torch.cat(outputs, dim=2)  # (T, B, D * H)
            if seed is not None and layer_p > 0 and layer < self.num_layers - 1:
                x = layers.drop_between_layers(x, seed, layer_p, layer)
        h_n, c_n = zip(*finals, strict=True)
        if len(finals) == 1:
            return x, h_n[0][None], c_n[0][None]
        return x, torch.stack(h_n), torch.stack(c_n)  # (D * L, B, H)


def _collapsed(p: tuple[float, ...]) -> float | tuple[float, ...]:
    """Return four equal probabilities as one."""
    return p[0] if len(set(p)) == 1 else p
