"""The benchmark compares like with like, and prints its tables."""

import os
import re
import subprocess
import sys


def said(*arguments: str, **environment: str) -> str:
    words = [sys.executable, "tests/benchmarks/distill.py", "--size", "tiny", "--batch", "4", *arguments]
    return subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ | environment).stdout


def test_our_step_and_the_reference_scheme_have_the_same_gradients():
    errors = dict(re.findall(r"gradient of (\w+): ours differs from the reference by (\S+)", said("--check")))
    assert set(errors) == {"student", "heads"}
    assert all(float(error) < 1e-5 for error in errors.values()), errors


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
