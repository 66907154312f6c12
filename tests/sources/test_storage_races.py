"""Two runs with one target in remote storage: each interleaving leaves one complete model."""

import random
import threading

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mae_convert.errors import OutputError
from mae_convert.sources import storage_retry, storage_upload
from mae_convert.sources.storage_upload import upload

OPERATIONS = (
    *("makedirs", "ls", "find", "exists", "info", "open", "mv", "rm", "rm_file", "pipe_file"),
    *("cat_file", "modified"),
)
URL = "memory://bucket/model"


@pytest.fixture
def memory():
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return MemoryFileSystem()


@pytest.fixture
def models(tmp_path):
    """Return the file contents of two models; all names and all sizes but one are equal."""
    files = ("config.json", "conversion.json", "model.safetensors")
    models = {
        owner: {name: random.Random(owner + name).randbytes(300) for name in files}
        for owner in "ab"
    }
    models["b"]["preprocessor_config.json"] = b"{}"
    for owner, model in models.items():
        (tmp_path / owner).mkdir()
        for name, data in model.items():
            (tmp_path / owner / name).write_bytes(data)
    return models


def before_each_operation(monkeypatch, hook):
    """Call a function before each operation on the file system in memory."""
    for name in OPERATIONS:
        original = getattr(MemoryFileSystem, name)

        def hooked(self, *args, original=original, **kwargs):
            hook()
            return original(self, *args, **kwargs)

        monkeypatch.setattr(MemoryFileSystem, name, hooked)


@pytest.fixture
def published(monkeypatch, models):
    """Return a list to which each successful run is added if storage contains its model then."""
    order, original = [], storage_upload.version_of

    def version_of(url):
        held, _ = state()
        order.append(next(owner for owner in "ab" if models[owner] == held))
        return original(url)

    monkeypatch.setattr(storage_upload, "version_of", version_of)
    return order


def outcome_of(folder):
    try:
        upload(folder, URL)
    except OutputError as error:
        return "withdrew" if "another run is writing" in str(error) else str(error)
    return "done"


def state():
    """Return the files of the model in storage, and the other names there."""
    files = {path: file.getvalue() for path, file in MemoryFileSystem.store.items()}
    model = {p.rpartition("/")[2]: data for p, data in files.items() if "/model/" in p}
    return model, [path for path in files if "/model/" not in path]


def test_second_run_at_every_step_of_the_first_run(
    memory, models, published, tmp_path, monkeypatch
):
    count, inner = [0], {}

    def hook():
        count[0] += 1
        if count[0] == moment:
            inner[moment] = None
            inner[moment] = outcome_of(tmp_path / "b")

    before_each_operation(monkeypatch, hook)
    monkeypatch.setattr(storage_upload.time, "sleep", lambda _: None)
    outcomes, moment = set(), 0
    while moment == len(inner):
        moment += 1
        memory.store.clear()
        published.clear()
        count[0] = 0
        outer = outcome_of(tmp_path / "a")
        outcomes.add((outer, inner.get(moment)))
        assert len(published) == (outer, inner.get(moment)).count("done"), moment
        assert state() == (models[published[-1]], []), moment
    assert moment > 60
    assert outcomes == {("done", "done"), ("done", "withdrew"), ("done", None)}


class Turns:
    """Runs threads one at a time, each up to its next step, in an order that a seed determines."""

    def __init__(self, seed):
        self.random, self.condition = random.Random(seed), threading.Condition()
        self.alive, self.turn = [], None

    def step(self):
        """Let another thread run; called by threads before each operation."""
        with self.condition:
            self._pass_on()
            self._wait()

    def _pass_on(self):
        self.turn = self.random.choice(self.alive) if self.alive else None
        self.condition.notify_all()

    def _wait(self):
        name = threading.current_thread().name
        assert self.condition.wait_for(lambda: self.turn == name, timeout=30)

    def run(self, work):
        """Call a function with each of the names in threads, and return the results by name."""
        results = {}

        def thread():
            name = threading.current_thread().name
            with self.condition:
                self._wait()
            try:
                results[name] = work(name)
            finally:
                with self.condition:
                    self.alive.remove(name)
                    self._pass_on()

        self.alive = ["a", "b"]
        threads = [threading.Thread(target=thread, name=name) for name in self.alive]
        for one in threads:
            one.start()
        with self.condition:
            self._pass_on()
        for one in threads:
            one.join(timeout=60)
        return results


@pytest.mark.parametrize("behind", [0, 10**12], ids=["clocks agree", "a clock is behind"])
def test_two_interleaved_runs(memory, models, published, tmp_path, monkeypatch, behind):
    outcomes, now = set(), storage_upload.time.time_ns

    def time_of_thread():
        return now() - (behind if threading.current_thread().name == "b" else 0)

    before_each_operation(monkeypatch, lambda: turns.step())  # noqa: PLW0108 (it is made anew)
    monkeypatch.setattr(storage_upload.time, "time_ns", time_of_thread)
    monkeypatch.setattr(storage_retry.time, "sleep", lambda _: turns.step())
    for seed in range(30):
        memory.store.clear()
        published.clear()
        turns = Turns(seed)
        results = turns.run(lambda owner: outcome_of(tmp_path / owner))
        winners = [owner for owner, result in results.items() if result == "done"]
        assert sorted(published) == sorted(winners), (seed, results)
        outcomes.add(tuple(sorted(results.values())))
        assert state() == (models[published[-1]], []), seed
    assert outcomes == {("done", "done"), ("done", "withdrew")}
