"""Commands run as if in a place of their own."""

import pytest
import torch


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("SIMSIAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DATA", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
