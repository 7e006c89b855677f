"""The benchmark compares like with like, and prints its tables."""

import importlib.metadata
import os
import re
import subprocess
import sys

import pytest


def said(*arguments: str, **environment: str) -> str:
    words = [sys.executable, "tests/benchmarks/distill.py", "--size", "tiny", "--batch", "4", *arguments]
    return subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ | environment).stdout


def test_our_step_and_the_reference_scheme_have_the_same_gradients():
    assert_same_gradients(said("--check"))


def assert_same_gradients(out: str) -> None:
    errors = dict(re.findall(r"gradient of (\w+): ours differs from the reference by (\S+)", out))
    assert set(errors) == {"student", "heads"}
    assert all(float(error) < 1e-5 for error in errors.values()), errors


def required(*names: str) -> set[str]:
    """The distributions that these need to be installed, themselves among them, as far as they are here."""
    found, left = set(), list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another platform
            continue
        if name not in found:
            found.add(name)
            left += [re.match(r"[\w.-]+", need).group() for need in needs if "extra ==" not in need]
    return found


@pytest.fixture
def bare(tmp_path):
    """A folder of packages with torch, diffusers, transformers and what they require."""
    for distribution in map(importlib.metadata.distribution, required("torch", "diffusers", "transformers")):
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (tmp_path / top).exists():
                (tmp_path / top).symlink_to(distribution.locate_file(top))
    return tmp_path


def test_the_benchmark_runs_with_torch_diffusers_and_transformers_alone(bare):
    assert not {"lightning", "ruamel", "ray", "mlflow"} & {path.name for path in bare.iterdir()}
    words = [sys.executable, "-S", "tests/benchmarks/distill.py", "--size", "tiny", "--batch", "4", "--check"]
    alone = os.environ | {"PYTHONPATH": os.pathsep.join([str(bare), "src"])}
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stderr
    assert_same_gradients(done.stdout)


def test_the_benchmark_prints_ratio_memory_roofline_parts_and_sweep():
    out = said("--steps", "2", "--sweep", "--largest", "2", "--compile", TORCH_COMPILE_DISABLE="1")
    rows = re.findall(r"^\| (\w+), (\S+)(|, compiled) \| \d+ \| [\d.]+ \| [\d.]+ \| \d+ \|$", out, re.MULTILINE)
    assert rows == [
        ("reference", "32-true", ""),
        ("ours", "32-true", ""),
        ("ours", "bf16-mixed", ""),
        ("ours", "32-true", ", compiled"),
    ]
    assert "model-FLOP utilisation" in out
    assert re.search(r"^\| derivative \| \d+ \| \d+ \|$", out, re.MULTILINE)
    swept = r"^\| (?:reference|ours) \| (?:True|False) \| ([12]) \| [\d.]+ \| \d+ \| ([\d.]+) \|$"
    states = re.findall(swept, out, re.MULTILINE)
    assert [batch for batch, _ in states] == ["1", "2"] * 4
    assert len({state for _, state in states} - {"0.0"}) == 1  # weights, gradients and moments, whatever the batch
