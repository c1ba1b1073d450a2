"""A CUDA device that only listens: the real launch path, on a machine without a GPU.

PyTorch's fake tensors stand for the device's memory, and `listening_device.cpp` for the driver's
library and for what PyTorch asks of a device. Triton compiles for sm_90 as it would on one. Nothing
is computed: what is seen is what is loaded, launched and copied, when, where and in what order.
"""

import atexit
import ctypes
import importlib.util
import os
import shutil
import subprocess
import threading
import time
import types
from pathlib import Path

__all__ = ["Listener", "build", "connect", "find_compiler"]

_HERE = Path(__file__).parent
_LIBRARY = "libcuda.so.1"
# What PyTorch does on the host alone, beside its views.
_LAUNCH_NOTHING = (
    "_local_scalar_dense", "_pin_memory", "_reshape_alias", "_unsafe_view", "detach", "empty",
    "empty_like", "empty_strided", "item", "new_empty", "new_empty_strided", "pin_memory",
)  # fmt: skip
# What the host reads of a device's memory.
_READ = ("allclose", "equal", "item", "_local_scalar_dense")
# What CUDA refuses while a stream is captured.
_FORBIDDEN = ("load", "wait", "synchronize")


def _root(package):
    return Path(importlib.util.find_spec(package).origin).parent


def find_compiler():
    """Return the path of a C++ compiler; ends the program where there is none."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    found = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if found is None:
        raise SystemExit("no C++ compiler: the listening device needs one, install g++ or clang")
    return found


def build(compiler, directory):
    """Compile the library into a directory, against the PyTorch and the Triton that are here."""
    torch_root, triton_root = _root("torch"), _root("triton")
    include = [torch_root / "include", triton_root / "backends/nvidia/include"]
    command = [compiler, "-std=c++20", "-O0", "-w", "-shared", "-fPIC", f"-Wl,-soname,{_LIBRARY}"]
    command += [f"-I{path}" for path in include]
    command += [str(_HERE / "listening_device.cpp"), "-o", str(Path(directory) / _LIBRARY)]
    command += [f"-L{torch_root / 'lib'}", "-lc10", "-ltorch_cpu"]
    subprocess.run(command, check=True, timeout=120)
    # The linker of Triton's own module looks for this name.
    Path(directory, "libcuda.so").symlink_to(_LIBRARY)


def _on_a_device(given):
    """Say whether there is a tensor of a device among arguments, or a device to make one on."""
    from torch.utils._pytree import tree_leaves

    places = (getattr(value, "device", value) for value in tree_leaves(list(given)))
    return any(str(place).startswith("cuda") for place in places)


def connect(directory):
    """Load the library and turn PyTorch and Triton to it; before anything has imported torch."""
    os.environ["TRITON_LIBCUDA_PATH"] = str(directory)
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_root("torch") / "lib" / name), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(Path(directory) / _LIBRARY), ctypes.RTLD_GLOBAL)
    library.current_stream.restype = ctypes.c_int64
    # As Python ends, so that nothing comes before it in the process's own end.
    atexit.register(library.leave)
    library.set_stream.argtypes = (ctypes.c_int, ctypes.c_int64)
    return Listener(library)


class Listener:
    """The device, and what it has heard.

    Attributes:
        events: dicts in the order in which they came. All have `what`, `operator`, the innermost
            operator of ours that they came from, or "", and `capturing`.
    """

    def __init__(self, library):
        self.library = library
        self.events = []
        self.capturing = set()
        # As `torch.cuda.set_sync_debug_mode` has it.
        self.refuses_to_wait = False
        self.names = {}
        self._loaded = 0
        # Streams that have no name any more are numbers all the same.
        self._streams = 0
        self._operators = threading.local()
        load = ctypes.CFUNCTYPE(None)(self._on_load)
        launch = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 2, *[ctypes.c_int] * 6)(self._on_launch)
        # What C holds alone, Python would collect.
        self._held = load, launch
        library.listen(load, launch)
        self._stand_in_for_cuda()
        self._stand_in_for_the_driver()
        self.mode = self._make_mode()

    def note(self, what, **facts):
        operators = getattr(self._operators, "open", [])
        event = {"what": what, "operator": operators[-1] if operators else "", **facts}
        event["device"] = self.library.current_device()
        event["capturing"] = self.stream(event["device"]) in self.capturing
        self.events.append(event)
        if what == "wait" and self.refuses_to_wait:
            raise RuntimeError("called a synchronizing CUDA operation")

    def reset(self):
        """Put current device and streams back to the first ones."""
        for device in range(2):
            self.library.set_stream(device, 0)
        self.library.set_device(0)
        self.capturing.clear()

    def stream(self, device):
        """Return (device, number) of the device's current stream."""
        return device, self.library.current_stream(device)

    def _on_load(self):
        self._loaded += 1

    def _on_launch(self, function, stream, x, y, z, threads, shared, cooperative):
        self.note(
            "launch",
            name=self.names[function],
            stream=stream,
            grid=[x, y, z],
            threads=threads,
            shared=shared,
            cooperative=bool(cooperative),
        )

    def _stand_in_for_the_driver(self):
        import triton.backends.nvidia.driver as nvidia
        from triton.runtime import driver

        made = nvidia.CudaDriver.__new__(nvidia.CudaDriver)
        made.utils, made.launcher_cls = nvidia.CudaUtils(), nvidia.CudaLauncher
        made.get_current_device = self.library.current_device
        made.set_current_device = self.library.set_device
        made.get_current_stream = self.library.current_stream
        made.get_device_capability = lambda device: (9, 0)
        load_binary = made.utils.load_binary

        def load(name, *args):
            before = self._loaded
            loaded = load_binary(name, *args)
            assert self._loaded == before + 1
            # Modules and their functions have the number of the load.
            self.names[loaded[1]] = name
            self.note("load", name=name)
            return loaded

        made.utils.load_binary = load
        driver.set_active(made)

    def _stand_in_for_cuda(self):
        import torch
        from torch._subclasses import fake_tensor
        from torch.utils import _foreach_utils as foreach

        listener = self

        class Stream:
            def __init__(self, device=None, priority=0, number=None):
                index = listener._index(device)
                if number is None:
                    listener._streams += 1
                    number = listener._streams
                self.device, self.stream_id = torch.device("cuda", index), number
                self.cuda_stream, self.device_type = number, 1

            def __eq__(self, other):
                return (self.device, self.stream_id) == (other.device, other.stream_id)

            def __hash__(self):
                return hash((self.device, self.stream_id))

            def wait_stream(self, other):
                pass

            def synchronize(self):
                listener.note("synchronize")

        class Event:
            def __init__(self, **_):
                self.time = 0.0

            def record(self, stream=None):
                stream = current_stream() if stream is None else stream
                listener.note("record", place=[stream.device.index, stream.stream_id])
                self.time = time.perf_counter()

            def elapsed_time(self, end):
                return 1e3 * (end.time - self.time)

            def query(self):
                return True

            def synchronize(self):
                listener.note("synchronize")

        class Graph:
            def capture_begin(self, **_):
                device = listener.library.current_device()
                self.stream, self.begun = listener.stream(device), len(listener.events)
                listener.capturing.add(self.stream)

            def capture_end(self):
                listener.capturing.discard(self.stream)
                if any(e["what"] in _FORBIDDEN for e in listener.events[self.begun :]):
                    raise RuntimeError("operation failed due to a previous error during capture")

            def replay(self):
                listener.note("replay")

        def set_stream(stream):
            listener.library.set_device(stream.device.index)
            listener.library.set_stream(stream.device.index, stream.stream_id)

        def current_stream(device=None):
            index = listener._index(device)
            return Stream(index, number=listener.library.current_stream(index))

        def exchange_device(index):
            before = listener.library.current_device()
            if index >= 0:
                listener.library.set_device(index)
            return before

        def set_sync_debug_mode(mode):
            listener.refuses_to_wait = mode in (2, "error")

        properties = types.SimpleNamespace(
            name="a device that only listens",
            major=9,
            minor=0,
            multi_processor_count=132,
            shared_memory_per_block_optin=232_448,
            total_memory=141 << 30,
        )
        stand_ins = {
            "CUDAGraph": Graph,
            "Event": Event,
            "Stream": Stream,
            "current_device": lambda: listener.library.current_device(),
            "current_stream": current_stream,
            # Those of the CPU know of no device, and draw nothing for fake tensors.
            "default_generators": tuple(torch.Generator() for _ in range(8)),
            "device_count": lambda: 8,
            "empty_cache": lambda: None,
            "get_device_properties": lambda device=None: properties,
            "is_available": lambda: True,
            "is_bf16_supported": lambda *_, **__: True,
            "is_current_stream_capturing": lambda: (
                listener.stream(listener.library.current_device()) in listener.capturing
            ),
            # What was saved here is no state.
            "set_rng_state": lambda state, device="cuda": None,
            "set_device": lambda device: listener.library.set_device(listener._index(device)),
            "set_stream": set_stream,
            "set_sync_debug_mode": set_sync_debug_mode,
            "synchronize": lambda device=None: listener.note("synchronize"),
            "_exchange_device": exchange_device,
            "_initialized": True,
            "_lazy_init": lambda: None,
            "_maybe_exchange_device": exchange_device,
        }
        for name, stand_in in stand_ins.items():
            setattr(torch.cuda, name, stand_in)
        # It has these by name.
        for name in ("_lazy_init", "current_device", "device_count"):
            setattr(torch.cuda.random, name, stand_ins[name])
        torch._C._host_emptyCache = lambda: None
        # Many at once, as tensors of a device are.
        foreach._foreach_supported_types.append(fake_tensor.FakeTensor)
        fake_tensor.init_gpu_context = lambda device: None

        def data_ptr(tensor):
            """Storages begin at multiples of 256 bytes, as those of the allocator do.

            Those of the host are nowhere: whoever is told of a place may read and write there.
            """
            if tensor.device.type == "cpu":
                return 0
            start = tensor.untyped_storage()._cdata << 8
            return start + tensor.storage_offset() * tensor.itemsize

        fake_tensor.FakeTensor.data_ptr = data_ptr
        self._stand_in_for_memory(fake_tensor.FakeTensor)

    def _stand_in_for_memory(self, fake):
        """Let the host have of a tensor what `read` says, where PyTorch looks past all modes."""
        import numpy as np
        import torch

        listener = self

        def numpy(tensor, *, force=False):
            """As PyTorch's, with its refusals."""
            if tensor.device.type != "cpu" and not force:
                raise TypeError(f"can't convert {tensor.device} device type tensor to numpy")
            if tensor.requires_grad and not force:
                raise RuntimeError("can't call numpy() on a tensor that requires grad")
            # Raises for a dtype that NumPy has not, as PyTorch does.
            dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
            return np.full(tuple(tensor.shape), listener.read(tensor), dtype)

        def refuse(tensor, *_, **__):
            raise TypeError("a tensor of the listening device has no memory to look into")

        fake.numpy = numpy

        def deepcopy(tensor, memo):
            """Copy the tensor alone: PyTorch's way copies its mode too, and that ruins the heap."""
            if id(tensor) not in memo:
                with torch.no_grad():
                    made = tensor.clone()
                if isinstance(tensor, torch.nn.Parameter):
                    made = torch.nn.Parameter(made, tensor.requires_grad)
                memo[id(tensor)] = made.requires_grad_(tensor.requires_grad)
            return memo[id(tensor)]

        fake.__deepcopy__ = deepcopy
        # These would read at no address, and take the process with them.
        fake.apply_ = fake.map_ = fake.__dlpack__ = refuse
        self._stand_in_for_files(fake)
        set_rng_state = torch.set_rng_state

        def set_real_rng_state(state):
            if not isinstance(state, fake):
                set_rng_state(state)

        torch.set_rng_state = torch.random.set_rng_state = set_real_rng_state

    def _stand_in_for_files(self, fake):
        """Write real tensors of what is read, and have of a file's the shapes."""
        import safetensors
        import safetensors.torch as files
        import torch
        from torch.utils._python_dispatch import _disable_current_modes

        listener, save_file, safe_open = self, files.save_file, safetensors.safe_open

        def save(tensors, *args, **kwargs):
            values = {name: listener.read(t) for name, t in tensors.items() if isinstance(t, fake)}
            with _disable_current_modes():
                made = {
                    name: torch.full(tuple(tensors[name].shape), value, dtype=tensors[name].dtype)
                    for name, value in values.items()
                }
                save_file({**tensors, **made}, *args, **kwargs)

        class File:
            def __init__(self, *args, **kwargs):
                with _disable_current_modes():
                    self.real = safe_open(*args, **kwargs)

            def __enter__(self):
                self.real.__enter__()
                return self

            def __exit__(self, *error):
                return self.real.__exit__(*error)

            def __getattr__(self, name):
                return getattr(self.real, name)

            def get_tensor(self, name):
                with _disable_current_modes():
                    found = self.real.get_tensor(name)
                return listener.mode[0].from_tensor(found)

            def get_tensors(self):
                return {name: self.get_tensor(name) for name in self.real.keys()}

        files.save_file = save
        safetensors.safe_open = files.safe_open = File

    def _index(self, device):
        import torch

        if isinstance(device, int):
            return device
        index = None if device is None else torch.device(device).index
        return self.library.current_device() if index is None else index

    def _make_mode(self):
        import torch
        from torch._library.custom_ops import OPDEFS
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.utils._python_dispatch import TorchDispatchMode

        listener = self
        values = torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default
        agree = torch.ops.aten.equal.default, torch.ops.aten.allclose.default
        fused = tuple(f"aten::_fused_{name}_" for name in ("adam", "adamw", "sgd"))

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                kwargs = kwargs or {}
                if func.namespace == "ulmfit_fast":
                    # What runs on a device, where fake tensors would take the operator's fake.
                    opened = listener._operators.__dict__.setdefault("open", [])
                    opened.append(func._schema.name.partition("::")[2])
                    try:
                        with self:
                            return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
                    finally:
                        opened.pop()
                # What is made of other operations comes here whole from inside an operator of ours.
                if func.namespace == "aten":
                    with self:
                        parts = func.decompose(*args, **kwargs)
                    if parts is not NotImplemented:
                        return parts
                listener._hear(func, args, kwargs)
                if func in values:
                    return listener.read(args[0])
                if func in agree:
                    return True
                # These have no fake.
                if func._schema.name in fused:
                    return None
                if func._schema.name in ("aten::pin_memory", "aten::_pin_memory"):
                    return args[0]
                return func(*args, **kwargs)

        return FakeTensorMode(allow_non_fake_inputs=True), Mode()

    @staticmethod
    def read(tensor):
        """Return 0 for what a device's memory holds, and 1 for counts, which are divided by."""
        if tensor.is_floating_point():
            # Those of an optimizer's steps are on the host.
            return float(tensor.device.type == "cpu")
        return int(tensor.dtype.itemsize == 8)

    def __enter__(self):
        for mode in self.mode:
            mode.__enter__()
        return self

    def __exit__(self, *error):
        for mode in reversed(self.mode):
            mode.__exit__(*error)

    def _hear(self, func, args, kwargs):
        import torch

        name = func._schema.name.removeprefix("aten::")
        names = (argument.name for argument in func._schema.arguments)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for value in given.values():
            # Or a number's tensor would be moved in earnest.
            if getattr(value, "constant", None) is not None:
                value.constant = None
        if (
            not func.is_view
            and func.namespace == "aten"
            and name not in _LAUNCH_NOTHING
            and _on_a_device(given.values())
        ):
            self.note("operation", name=name)
        if name in _READ and args[0].device.type == "cuda":
            self.note("wait", name="item")
        if name not in ("_to_copy", "to", "copy_"):
            return
        source, target = given.get("src", given.get("self")), given.get("device")
        if name == "copy_":
            target = given["self"].device
        if target is None or torch.device(target).type == source.device.type:
            return
        way = "upload" if torch.device(target).type == "cuda" else "download"
        self.note(way)
        if not given.get("non_blocking"):
            self.note("wait", name=way)
