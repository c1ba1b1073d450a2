"""SGD that goes over to the average of its weights when the validation loss stops falling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.optimizer import ParamsT

from ulmfit_fast.checks import number

__all__ = ["NTASGD"]


class NTASGD(SGD):
    """SGD whose weights are averaged from the moment the validation loss stalls.

    After each evaluation pass the loss to `evaluated`. Once it is higher than the lowest loss but
    the last `nonmono` ones, the weights after every further step enter a running mean. `averaged`
    lends the mean to the model, for an evaluation or a checkpoint; `use_average` leaves it there.

    `torch.optim.ASGD` has the same steps and mean, but takes each step with the rate of the step
    before, so that a schedule or a rescaled rate comes one step late, and does not know the rule.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([4.0]))
        >>> optimizer = NTASGD([weight], lr=0.5, nonmono=1)
        >>> for loss in (3.0, 2.0, 4.0):
        ...     triggered = optimizer.evaluated(loss)
        >>> triggered
        True
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().div(2).backward()
        ...     _ = optimizer.step()
        >>> with optimizer.averaged():
        ...     mean = weight.item()
        >>> mean, weight.item()  # the weights were 2 and 1
        (1.5, 1.0)

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        weight_decay: added to the gradient (L2).
        nonmono: n, evaluations without a new low, but for the last of them, before averaging.
        fused: one kernel for all parameters, see `torch.optim.SGD`.

    Attributes:
        losses: what `evaluated` was given.
        averaging: whether the weights are being averaged.

    Raises:
        ValueError: if nonmono is no whole number, at least 1, or a rate no number, at least 0.

    Source:
        Merity et al. 2018 (arXiv:1708.02182), algorithm 1, with the logging interval of an epoch.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        weight_decay: float = 0.0,
        nonmono: int = 5,
        fused: bool | None = None,
    ) -> None:
        if not isinstance(lr, Tensor):
            number("lr", lr, "a number, at least 0", at_least=0)
        number("weight_decay", weight_decay, "a number, at least 0", at_least=0)
        expected = "a whole number, at least 1"
        self.nonmono = int(number("nonmono", nonmono, expected, at_least=1, whole=True))
        super().__init__(params, lr, weight_decay=weight_decay, fused=fused)
        self.losses: list[float] = []
        self.averaging = False
        self._averaged_steps = 0

    def evaluated(self, loss: float) -> bool:
        """Take a validation loss in, and begin to average if it is time.

        Args:
            loss: of the evaluation just done.

        Returns:
            True if this very evaluation began the averaging.

        Raises:
            ValueError: if the loss is not finite.
        """
        loss = number("the validation loss", loss, "a finite number")
        earlier = self.losses[: -self.nonmono]
        began = not self.averaging and bool(earlier) and loss > min(earlier)
        self.averaging = self.averaging or began
        self.losses.append(loss)
        return began

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step of SGD, and let its weights enter the mean once averaging.

        Args:
            closure: evaluates the model anew and returns the loss, or None.
        """
        loss = super().step(closure)
        if self.averaging:
            self._averaged_steps += 1
            for group in self.param_groups:
                for parameter in group["params"]:
                    self._enter(parameter)
        return loss

    def _enter(self, parameter: Tensor) -> None:
        state = self.state[parameter]
        if "average" not in state:
            state["average"] = parameter.detach().clone()
        else:
            state["average"].lerp_(parameter, 1.0 / self._averaged_steps)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the parameters hold their means while the block runs; afterwards they are as before.

        Without a mean yet nothing changes.
        """
        own = [(p, p.detach().clone()) for p, state in self.state.items() if "average" in state]
        self.use_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in own:
                    parameter.copy_(value)

    @torch.no_grad()
    def use_average(self) -> None:
        """Give the parameters their means for good; without a mean yet nothing changes."""
        for parameter, state in self.state.items():
            if "average" in state:
                parameter.copy_(state["average"])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of SGD with the losses and means, as tensors and plain numbers."""
        own = {
            "nonmono": self.nonmono,
            "losses": list(self.losses),
            "averaging": self.averaging,
            "averaged_steps": self._averaged_steps,
        }
        return {**super().state_dict(), "nt_asgd": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from what `state_dict` returned.

        Args:
            state_dict: of an NTASGD with the same groups.

        Raises:
            ValueError: if it is the state of another optimizer.
        """
        own = state_dict.get("nt_asgd")
        if own is None:
            raise ValueError(
                "the state has no 'nt_asgd', expected that of an NTASGD; pass what state_dict() "
                "returned"
            )
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "nt_asgd"})
        self.nonmono, self.losses = int(own["nonmono"]), [float(loss) for loss in own["losses"]]
        self.averaging, self._averaged_steps = bool(own["averaging"]), int(own["averaged_steps"])
