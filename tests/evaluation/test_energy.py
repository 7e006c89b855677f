"""Energy is what the counters rose by, past their end too, and nothing where no counter can be read."""

import pytest
import torch

from sana_sprint.evaluation import energy


@pytest.fixture
def counters(tmp_path, monkeypatch):
    """Two packages of a processor, as powercap shows them, with a part of the first and the whole platform."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def write(**spent):
        for name, (microjoules, most) in spent.items():
            zone = tmp_path / name.replace("_", ":").replace("rapl", "intel-rapl")
            zone.mkdir(exist_ok=True)
            kinds = {"rapl_0": "package-0", "rapl_1": "package-1", "rapl_2": "psys", "rapl_0_0": "core"}
            (zone / "name").write_text(f"{kinds[name]}\n")
            (zone / "energy_uj").write_text(f"{microjoules}\n")
            (zone / "max_energy_range_uj").write_text(f"{most}\n")

    return write


def test_packages_are_summed_their_parts_are_not_and_a_counter_that_starts_anew_is_no_loss(counters):
    counters(rapl_0=(9_000_000, 10_000_000), rapl_1=(1_000_000, 10_000_000), rapl_0_0=(0, 10_000_000), rapl_2=(0, 9))
    before = energy.joules()
    assert set(before) == {"intel-rapl:0", "intel-rapl:1"}
    counters(rapl_0=(1_000_000, 10_000_000), rapl_1=(1_500_000, 10_000_000), rapl_0_0=(5, 10_000_000), rapl_2=(7, 9))
    assert energy.since(before) == pytest.approx(2 + 0.5)


def test_no_counter_tells_nothing(counters, tmp_path):
    assert energy.joules() == {}
    assert energy.since({}) is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert energy.joules() == {}


def test_the_gpus_counter_is_read_where_there_is_one_and_a_machine_without_nvml_is_no_fault():
    found = energy.gpu()
    assert set(found) == ({"gpu"} if torch.cuda.is_available() else set())
    assert all(spent > 0 for spent, _ in found.values())
