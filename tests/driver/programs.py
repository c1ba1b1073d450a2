"""What whole programs ask of PyTorch and of a device, beside what `listening` stands in for."""

import torch

__all__ = ["stand_in"]


def _move(module, function, recurse=True):
    """Do as `Module._apply`, which would swap fake tensors, and cannot while others refer to them.

    A parameter stays the same object, as on a device.
    """
    for child in module.children() if recurse else ():
        child._apply(function)
    for parameter in module._parameters.values():
        if parameter is not None:
            with torch.no_grad():
                moved = function(parameter)
            parameter.data, parameter.fake_device = moved, moved.fake_device
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else function(buffer)
    return module


def _lstm(x, state, weights, biases, layers, dropout, train, bidirectional, batch_first):
    """Return what has the shapes and the dtype of cuDNN's LSTM, and gradients of all it is given.

    PyTorch without CUDA would take thirty operations a step.
    """
    autocast = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if autocast else x.dtype
    given = sum(part.to(dtype).sum() for part in (x, *state, *weights))
    width = state[0].shape[2] * (1 + bidirectional)
    return given.expand(*x.shape[:2], width), *(given.expand_as(part) for part in state)


def stand_in():
    """Let PyTorch be what programs take it for; once, after `listening.connect`."""
    # Else a number that becomes a tensor of a device would be copied there past all modes.
    torch._C._set_only_lift_cpu_tensors(True)
    torch.nn.Module._apply = _move
    torch.lstm = torch._VF.lstm = _lstm
    memory = (
        "max_memory_allocated",
        "memory_allocated",
        "memory_reserved",
        "reset_peak_memory_stats",
    )
    for name in memory:
        setattr(torch.cuda, name, lambda device=None: 0)
    # There is no end of memory, and no clock to sleep by.
    torch.cuda.set_per_process_memory_fraction = lambda fraction, device=None: None
    torch.cuda._sleep = lambda cycles: None
