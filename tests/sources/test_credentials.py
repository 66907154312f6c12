"""Credentials in storage addresses do not appear in results, pages, records or messages."""

import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from paths import DEMO

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import MaeConvertError
from mae_convert.reports.sweep_html import page
from mae_convert.sources import storage
from mae_convert.sweep.plan_fields import Job
from mae_convert.sweep.results import Results
from mae_convert.sweep.run import refuse_targets
from mae_convert.sweep.run_job import _local_path, run_job

DEMO = DEMO / "checkpoint.pth"
SECRET = "pass/w0rd+of/mine"
ADDRESS = f"memory://user:{SECRET}@bucket/model"


@pytest.fixture
def stored():
    """The demonstration's checkpoint at an address that contains a password."""
    system, path = storage.filesystem(f"{ADDRESS}.pth")
    system.pipe(path, DEMO.read_bytes())
    yield f"{ADDRESS}.pth"
    system.rm(path)


def test_neither_results_nor_their_page_contain_a_password(stored, tmp_path):
    target = f"{ADDRESS}-out"
    jobs = [
        Job(stored, target, {"to": "transformers"}),
        Job(f"{ADDRESS}-none", target, {"to": "timm"}),
    ]
    rows = [run_job(job) for job in jobs]
    assert [row.outcome for row in rows] == ["done", "error"]
    path = tmp_path / "results.sqlite"
    with Results(path) as results:
        results.begin(jobs)
        for row in rows:
            results.write(row)
        refuse_targets(jobs[:1], results.begun())  # accepted: this sweep has begun to write it
    with sqlite3.connect(path) as file:
        dump = "\n".join(file.iterdump())
    system, _ = storage.filesystem(target)
    record = system.cat_file(f"{storage.filesystem(target)[1]}/conversion.json").decode()
    for text in (dump, page(rows), record, str([row.to_dict() for row in rows])):
        assert SECRET not in text
        assert "model" in text


def test_target_with_a_similar_address_is_not_taken_for_that_of_the_sweep(stored, tmp_path):
    job = Job(stored, stored, {"to": "transformers"})
    with Results(tmp_path / "results.sqlite") as results:
        results.begin([replace(job, target=f"{ADDRESS}-other")])
        with pytest.raises(MaeConvertError, match="already exists") as refused:
            refuse_targets([job], results.begun())
    assert SECRET not in str(refused.value)


def test_a_downloaded_checkpoint_has_a_name_without_a_password(stored, tmp_path):
    _, origin = _local_path(stored, tmp_path)
    assert origin.name == "memory://<redacted>@bucket/model.pth"


@pytest.mark.parametrize("work", [storage.files_below, storage.size_of, storage.version_of])
def test_an_error_of_storage_names_no_password(work):
    with pytest.raises(MaeConvertError) as raised:
        work(f"{ADDRESS}-nothing")
    assert SECRET not in str(raised.value)


def test_a_timeline_names_no_password(stored, monkeypatch):
    from mae_convert.reports.timeline_files import timeline_json
    from mae_convert.visualize.reconstruction import Reconstruction
    from mae_convert.visualize.timeline import TimelineOptions, timeline

    model = open_checkpoint(DEMO).configuration.model

    def paint(inputs, _):  # in place of a framework
        pixels, noise = inputs["pixel_values"], inputs["noise"]
        return Reconstruction(pixels, np.ones(noise.shape), {"torch": pixels}, {}, model)

    monkeypatch.setattr("mae_convert.visualize.timeline.Reconstructor", lambda *_: paint)
    images = sorted(DEMO.parent.glob("*.jpg"))[:1]
    result = timeline([stored, f"{ADDRESS}-none.pth"], images, TimelineOptions("torch"))
    assert [point.error is None for point in result.points] == [True, False]
    assert SECRET not in str(timeline_json(result))
