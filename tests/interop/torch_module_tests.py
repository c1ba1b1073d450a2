"""Checks of PyTorch's tests of modules, on `uf.LSTM`: a program, since the harness sets globals."""

import copy
import functools
import importlib.util
import io
import pickle
import sys
import types
import unittest

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import ulmfit_fast as uf

BACKENDS = ("auto", "eager", "reference")


class LayerTests:
    """What PyTorch asks of every module, for the samples that it has for nn.LSTM."""

    def samples(self, info, requires_grad=False, projections=False, **options):
        """Yield module and arguments of each sample; those with projections, or all others."""
        samples = info.module_inputs_func(info, requires_grad=requires_grad, **options)
        assert samples
        for sample in samples:
            made = sample.constructor_input
            if bool(made.kwargs["proj_size"]) == projections:
                yield sample, functools.partial(info.module_cls, *made.args, **made.kwargs)

    def modules(self, info, requires_grad=False, **options):
        for sample, make in self.samples(info, requires_grad, **options):
            module = make(device=options["device"], dtype=options["dtype"])
            module.train(options["training"])
            given = sample.forward_input
            yield sample, module, functools.partial(module, *given.args, **given.kwargs)

    def check_forward(self, info, **options):
        for sample, module, call in self.modules(info, **options):
            output = call()
            given = sample.forward_input
            self.assertEqual(output, sample.reference_fn(module, *given.args, **given.kwargs))
            made = sample.constructor_input.kwargs
            theirs = nn.LSTM(**made, device=options["device"], dtype=options["dtype"])
            theirs.load_state_dict(module.state_dict())
            self.assertEqual(output, theirs(*given.args, **given.kwargs))

    def check_refused_samples(self, info, **options):
        for _, make in self.samples(info, projections=True, **options):
            with self.assertRaisesRegex(ValueError, "projections are not supported"):
                make()

    def check_errors(self, info, **options):
        samples = info.module_error_inputs_func(info, requires_grad=False, **options)
        assert samples
        for sample in samples:
            made, given = sample.module_error_input.constructor_input, None
            if sample.error_on.name == "FORWARD_ERROR":
                module = info.module_cls(*made.args, **made.kwargs)
                given = sample.module_error_input.forward_input
            with self.assertRaisesRegex(sample.error_type, sample.error_regex):
                if given is None:
                    info.module_cls(*made.args, **made.kwargs)
                else:
                    module(*given.args, **given.kwargs)

    def check_factory_kwargs(self, info, device, dtype, training):
        options = {"device": device, "dtype": dtype, "training": training}
        for _, make in self.samples(info, **options):
            for place in (device, "meta"):
                for parameter in make(device=place, dtype=dtype).parameters():
                    self.assertEqual((str(parameter.device), parameter.dtype), (place, dtype))

    def check_device_context(self, info, **options):
        for _, make in self.samples(info, **options):
            with torch.device("meta"):
                module = make()
            assert {str(parameter.device) for parameter in module.parameters()} == {"meta"}

    def check_repr(self, info, **options):
        for _, module, _ in self.modules(info, **options):
            assert repr(module) == str(module)
            assert repr(module).startswith(f"{info.module_cls.__name__}(2, 3, num_layers=2")

    def check_copies(self, info, **options):
        for _, module, call in self.modules(info, **options):
            output = call()
            file = io.BytesIO()
            torch.save(module, file)
            file.seek(0)
            for twin in (
                torch.load(file, weights_only=False),
                pickle.loads(pickle.dumps(module)),
                copy.deepcopy(module),
            ):
                assert type(twin) is type(module) and twin.training == module.training
                self.assertEqual(twin(*call.args, **call.keywords), output)

    def check_save_load(self, info, **options):
        for sample, module, call in self.modules(info, **options):
            file = io.BytesIO()
            torch.save(module.state_dict(), file)
            file.seek(0)
            twin = info.module_cls(**sample.constructor_input.kwargs).to(options["dtype"])
            twin.train(options["training"])
            twin.load_state_dict(torch.load(file, weights_only=True))
            self.assertEqual(twin(*call.args, **call.keywords), call())

    def check_to(self, info, **options):
        other = torch.float32 if options["dtype"] == torch.float64 else torch.float64
        for swap in (False, True):
            torch.__future__.set_swap_module_params_on_conversion(swap)
            try:
                for _, module, call in self.modules(info, **options):
                    before = list(module.parameters())
                    module.to(other)
                    args = pytree.tree_map(lambda t: t.to(other), call.args)
                    module(*args)[0].sum().backward()
                    assert {p.dtype for p in module.parameters()} == {other}
                    assert all(p.grad.dtype == other for p in module.parameters())
                    after = list(module.parameters())
                    assert all(a is b for a, b in zip(before, after, strict=True))
            finally:
                torch.__future__.set_swap_module_params_on_conversion(False)

    def check_to_empty(self, info, device, dtype, training):
        options = {"device": device, "dtype": dtype, "training": training}
        for sample, make in self.samples(info, **options):
            module = make(device="meta", dtype=dtype)
            with self.assertRaisesRegex(NotImplementedError, "meta tensor"):
                module.to(device)
            module.to_empty(device=device).reset_parameters()
            given = sample.forward_input
            assert module(*given.args, **given.kwargs)[0].isfinite().all()

    def check_zero_grad(self, info, **options):
        for _, module, call in self.modules(info, **options):
            call()[0].sum().backward()
            assert all(p.grad is not None for p in module.parameters())
            module.zero_grad()
            assert all(p.grad is None for p in module.parameters())

    def check_non_contiguous_tensors(self, info, **options):
        for _, module, call in self.modules(info, requires_grad=True, **options):
            results = []
            for change in (lambda t: t, apart):
                inputs = [change(t.detach()) for t in leaves(call.args)]
                inputs = [t.requires_grad_() for t in inputs]
                module.zero_grad()
                output = module(*rebuilt(call.args, inputs))
                torch.stack([part.square().sum() for part in leaves(output)]).sum().backward()
                grads = [t.grad for t in (*inputs, *module.parameters())]
                results.append((leaves(output), grads))
            assert not inputs[0].is_contiguous()
            self.assertEqual(*results)

    def check_functional_call(self, info, **options):
        for _, module, call in self.modules(info, **options):
            twin = copy.deepcopy(module)
            twin.reset_parameters()
            weights = dict(twin.named_parameters())
            found = torch.func.functional_call(module, weights, call.args, call.keywords)
            self.assertEqual(found, twin(*call.args, **call.keywords))
            self.assertNotEqual(found[0], call()[0])

    def check_inputs_stay(self, info, **options):
        for _, _, call in self.modules(info, **options):
            before = [t.clone() for t in leaves(call.args)]
            versions = [t._version for t in leaves(call.args)]
            call()
            self.assertEqual(before, leaves(call.args))
            self.assertEqual(versions, [t._version for t in leaves(call.args)])

    def check_grad(self, info, check="gradcheck", **options):
        from torch.testing._internal import common_utils

        for _, module, call in self.modules(info, requires_grad=True, **options):
            names = [name for name, _ in module.named_parameters()]
            inputs = leaves(call.args)

            def run(*tensors, module=module, call=call, names=names, inputs=inputs):
                weights = dict(zip(names, tensors[len(inputs) :], strict=True))
                args = rebuilt(call.args, tensors[: len(inputs)])
                output = torch.func.functional_call(module, weights, args)
                return tuple(leaves(output))

            assert getattr(common_utils, check)(
                run, (*inputs, *module.parameters()), check_batched_grad=info.batched_grad
            )

    def check_gradgrad(self, info, **options):
        self.check_grad(info, "gradgradcheck", **options)

    def check_train_and_eval_differ(self, info, **options):
        for _, module, call in self.modules(info, **options):
            del module.training
            with self.assertRaisesRegex(AttributeError, "training"):
                call()


def leaves(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def rebuilt(tree, tensors):
    """Return a tree of tensors alone with other ones."""
    return pytree.tree_unflatten(list(tensors), pytree.tree_structure(tree))


def apart(tensor):
    """Return a copy whose elements do not lie beside each other."""
    wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
    wide[..., ::2] = tensor
    return wide[..., ::2]


def with_backend(name):
    """Return `uf.LSTM` with another default, as a class of this module that can be pickled."""
    kind = type(
        f"{name.capitalize()}LSTM",
        (uf.LSTM,),
        {"__init__": functools.partialmethod(uf.LSTM.__init__, backend=name)},
    )
    kind.__module__ = __name__
    globals()[kind.__name__] = kind
    return kind


def main():
    if importlib.util.find_spec("expecttest") is None:
        # The harness derives its TestCase from this one, for assertions that none of these makes.
        stand_in = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase
        sys.modules["expecttest"] = stand_in
    from torch.testing._internal import common_modules, common_utils
    from torch.testing._internal.common_device_type import instantiate_device_type_tests

    (theirs,) = (info for info in common_modules.module_db if info.module_cls is nn.LSTM)
    infos = [
        common_modules.ModuleInfo(
            with_backend(name),
            train_and_eval_differ=theirs.train_and_eval_differ,
            module_inputs_func=theirs.module_inputs_func,
            module_error_inputs_func=theirs.module_error_inputs_func,
            dtypes=theirs.dtypes,
            supports_gradgrad=name != "eager",
        )
        for name in BACKENDS
    ]
    for info in infos:
        info.batched_grad = True

    def test_of(check, infos, dtypes):
        @common_modules.modules(infos, allowed_dtypes=dtypes)
        def test(self, device, dtype, module_info, training):
            getattr(self, check)(module_info, device=device, dtype=dtype, training=training)

        return test

    tests = {}
    for check in (name for name in vars(LayerTests) if name.startswith("check_")):
        chosen, dtypes = infos, None
        if "grad" in check and check != "check_zero_grad":
            dtypes = [torch.float64]
        if check == "check_gradgrad":
            chosen = [info for info in infos if info.supports_gradgrad]
        test = test_of(check, chosen, dtypes)
        test.__name__ = f"test_{check.removeprefix('check_')}"
        tests[test.__name__] = test
    # The harness puts a class for each device in the place of this one.
    cases = type("TestModule", (LayerTests, common_utils.TestCase), tests)
    globals()["TestModule"] = cases
    instantiate_device_type_tests(cases, globals(), only_for="cpu")
    unittest.main(argv=[sys.argv[0]], verbosity=2)


if __name__ == "__main__":
    main()
