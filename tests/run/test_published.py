"""Others' numbers are those that they print."""

import re

from simsiam.run.published import PUBLISHED, published


def test_every_published_row_has_a_number_in_percent_and_a_source():
    for row in PUBLISHED:
        assert row.protocol in ("knn", "linear", "1pct", "10pct")
        assert row.source
        assert row.top1 or row.top5 or row.method in ("PIRL", "OBoW", "SimCLRv2")
        for number in filter(None, (row.top1, row.top5)):
            assert re.fullmatch(r"\d+\.\d+", number)
            assert 0 < float(number) < 100
    assert len(set(PUBLISHED)) == len(PUBLISHED)


def test_published_numbers_are_those_of_the_papers():
    def top1(**wanted):
        return {r.top1 for r in PUBLISHED if all(getattr(r, key) == value for key, value in wanted.items())}

    simsiam = {"method": "SimSiam", "dataset": "ImageNet"}
    assert top1(**simsiam, protocol="linear", epochs=100, batch=512) == {"68.1", "67.7"}
    assert top1(**simsiam, protocol="linear", epochs=200) == {"69.8", "70.0"}
    assert top1(**simsiam, protocol="linear", epochs=800) == {"71.3"}
    assert top1(**simsiam, protocol="knn", epochs=100, setting="k=200,T=0.07") == {"54.2"}
    assert top1(**simsiam, protocol="knn", epochs=200, setting="k=10,T=0.07") == {"60.2"}
    assert top1(method="BYOL", protocol="linear", epochs=400) == {"73.2"}
    assert top1(method="VICReg", protocol="10pct") == {"69.5"}
    assert top1(method="SimSiam", dataset="CIFAR-10", protocol="linear") == {"91.8", "91.94", "90.83", "90.51"}
    assert {r.method for r in published({"1pct", "10pct"})} & {"SimSiam"} == set()
