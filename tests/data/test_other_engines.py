"""The model under engines other than this package's own use of DistributedDataParallel."""

import pytest
from two_processes import plain_losses, two

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("engine", ["fsdp2", "accelerate"])
def test_the_model_trains_under_other_engines_as_without_them(tmp_path, engine):
    if engine == "accelerate":
        pytest.importorskip("accelerate", reason="in the extra [compat]")
    first, second = two(tmp_path, engine)[engine]
    alone = plain_losses(lambda model, make: (model, make(model.parameters())))
    # Both processes have the same batches, so that their mean is that of one.
    assert first["losses"] == pytest.approx(alone, rel=1e-5)
    assert second["losses"] == pytest.approx(alone, rel=1e-5)
    assert alone[-1] < alone[0]
