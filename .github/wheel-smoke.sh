#!/usr/bin/env bash
# Builds the wheel of HEAD, installs it into a clean environment and uses it from outside the
# checkout. From HEAD, since a build in the tree would take along what an older one left in build/.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
mkdir "$work/source"
git archive HEAD | tar -x -C "$work/source"
"$python" -m pip wheel --quiet --no-deps -c constraints.txt -w "$work" "$work/source"
"$python" -m pip install --quiet -c constraints.txt "$(ls "$work"/ulmfit_fast-*.whl)[text]"
cd "$work"
"$python" -m pip check
"$work/venv/bin/ulmfit-fast" info | tee info.txt
# The machines of CI have a compiler, so the C kernels of the wheel are compiled there.
grep "^C kernels: .* threads$" info.txt
ROOT=$root "$python" -W error - <<'PYTHON'
import os
from pathlib import Path

import ulmfit_fast as uf
import ulmfit_fast.kernels as kernels

for module in (uf, kernels):
    (place,) = module.__path__
    if Path(place).is_relative_to(os.environ["ROOT"]):
        raise SystemExit(f"{module.__name__} is from the checkout: {place}")
texts, labels = ["a fine and moving film", "a long evening"] * 20, ["good", "bad"] * 20
model = uf.ULMFiT(emb_size=8, hidden_size=12, num_layers=2, min_freq=1, progress=False)
model.pretrain(texts, epochs=1, batch_size=4).fit_classifier(texts, labels, epochs=1)
model.save("model")
print(uf.__version__, uf.ULMFiT.load("model").predict(["a fine film"]))
PYTHON
"$work/venv/bin/ulmfit-fast" generate --model model --prompt "a fine" --max-tokens 3
