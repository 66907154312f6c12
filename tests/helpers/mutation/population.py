"""The population: each fault as a pair of runs, of a source and of a target with the fault."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import MaeConvertError
from mae_convert.families.family import Family
from mae_convert.families.mae.family import MAE
from mae_convert.formats import LazyTensor
from mae_convert.layouts.table import Table, read_tensors, write_tensors
from mae_convert.verify.verification import Options, common_request
from mutation.code import CODE_FAULTS, PRECISIONS, CodeFault
from mutation.models import MODELS, write_model, write_original
from mutation.running import Run
from mutation.settings import SettingFault, contradictions, setting_faults
from mutation.tables import table_faults
from mutation.weights import WeightFault, compensating, exchanges, single_faults

SUFFIX = {"transformers": "", "transformers-tf": "", "timm": "",
          "keras": ".weights.h5", "keras-hub": ".weights.h5",
          "facebook": ".safetensors", "original": ".safetensors"}  # fmt: skip
BY_TENSORFLOW = ("transformers", "transformers-tf", "keras")


@dataclass(frozen=True)
class Mutant:
    """A source, and the result of a fault in it.

    Attributes:
        name: the fault.
        kind: "weights", "tables", "configurations", "code" or "precision".
        a: the run of the source.
        b: the run of the target.
        changed_tensors: canonical tensors; the first suspect must be one of them.
        keys: the correct kinds of cause; empty if no sentence is expected.
        words: the words that the sentence must contain.
        blind: why no forward pass detects it, or None.
        refused: the error that refuses it before anything runs, or None.
    """

    name: str
    kind: str
    a: Run | None = None
    b: Run | None = None
    changed_tensors: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    blind: str | None = None
    refused: str | None = None


@dataclass
class Population:
    """Makes mutants, and the files that they need in a folder."""

    folder: Path
    seed: int = 0
    numbers: Iterator[int] = field(default_factory=count)
    family: Family = MAE
    own_layout: str = "facebook"  # whose names the PyTorch reference has

    @cached_property
    def models(self) -> Mapping[str, Checkpoint]:
        return {name: write_model(name, self.folder, self.seed) for name in MODELS}

    @cached_property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def some(self, items: Iterable[Any], number: int | None) -> list[Any]:
        """Return a random sample in order, or all."""
        items = list(items)
        if number is None or number >= len(items):
            return items
        return [items[i] for i in sorted(self.rng.choice(len(items), number, replace=False))]

    def target(self, layout: str) -> Path:
        suffix = SUFFIX.get(layout, ".pth")
        return self.folder / f"{next(self.numbers)}{suffix}"

    def run(self, checkpoint: Checkpoint, framework: str, fault: str | None = None) -> Run:
        unmasked = checkpoint.task == "classify"
        inputs, request = common_request(checkpoint, Options(), unmasked=unmasked)
        return Run(checkpoint, framework, inputs, request.mask_ratio, fault)

    def native(self, model: str) -> Run:
        return self.run(self.models[model], "torch")

    # Weights

    def weights(self, number: int | None, by_tensorflow: int) -> Iterator[Mutant]:
        """Yield faults in tensors: of the pre-training model, and of the heads of classifiers."""
        tensors = {m: {n: t.load() for n, t in c.tensors.items()} for m, c in self.models.items()}
        faults = [("pretrain", f) for f in self.some(single_faults(tensors["pretrain"]), number)]
        faults += [("pretrain", f) for f in self.some(exchanges(tensors["pretrain"]), number)]
        faults += [("pretrain", f) for f in compensating(tensors["pretrain"])]
        for model in ("token", "avg"):
            heads = [
                f for f in single_faults(tensors[model]) if f.changed_tensors[0].startswith("head")
            ]
            faults += [(model, f) for f in self.some(heads, number)]
        chosen = set(self.rng.choice(len(faults), min(by_tensorflow, len(faults)), replace=False))
        for index, (model, fault) in enumerate(faults):
            layout = "facebook"
            if index in chosen:
                layout = "keras" if model == "avg" else BY_TENSORFLOW[index % 3]
            yield self._weight_mutant(model, fault, tensors[model], layout)

    def _weight_mutant(
        self, model: str, fault: WeightFault, tensors: dict[str, np.ndarray], layout: str
    ) -> Mutant:
        source, changed = self.models[model], fault.change(tensors)
        changed_tensors = tuple(
            n for n in fault.changed_tensors if not np.array_equal(changed[n], tensors[n])
        )
        if layout == self.own_layout:
            config, path = source.configuration.model, self.target(layout)
            written = write_original(path, config, source.task, changed, self.family)
            b = self.run(written, "torch")
        else:
            lazy = {name: LazyTensor.from_array(name, a) for name, a in changed.items()}
            b = self.run(self.converted(source, layout, tensors=lazy), "tensorflow")
        blind = "cancels out" if fault.blind else None
        return Mutant(f"{model}, {layout}: {fault.name}", "weights", self.native(model), b,
                      changed_tensors, blind=blind)  # fmt: skip

    def converted(
        self,
        source: Checkpoint,
        layout: str,
        *,
        tensors: Mapping[str, LazyTensor] | None = None,
        table: Table | None = None,
    ) -> Checkpoint:
        """Convert a checkpoint by another table or with other tensors, and open the result.

        A faulty table is wrong in both directions: it reads what it has written.
        """
        target = self.target(layout)
        plan = plan_conversion(source, target, layout)
        lazy = tensors or source.tensors
        heads = source.configuration.model.num_attention_heads
        rules = [rule.bound(heads) for rule in (table or plan.table).expand(lazy)]
        created = plan.tensors[len(plan.rules) :]
        written = [*write_tensors(lazy, rules), *created]
        execute(replace(plan, rules=rules, tensors=written))
        opened = open_checkpoint(target)
        return opened if table is None else reread(opened, table)

    # Mapping tables

    def tables(self, number: int | None, by_tensorflow: int) -> Iterator[Mutant]:
        """Yield faults in rows of the mapping tables, each with an effect in a real conversion."""
        for layout in self.family.layouts.values():
            for table in layout.tables:
                if table.name.endswith("linear probe") or "*" in repr(table.rows):
                    continue  # rows of another table, with three, or any scope, for reading only
                for index, fault in enumerate(self.some(table_faults(table), number)):
                    tensorflow = index < by_tensorflow
                    use = self._use_of(
                        layout.name, table, tensorflow=tensorflow, odd=index % 2 == 1
                    )
                    models = [self.model_of(task) for task in table.tasks]
                    mutants = (
                        self._mutant_or_error(
                            use, fault.name, model, layout.name, table, fault.table
                        )
                        for model in models
                    )
                    # A row that this model does not use is not a fault; another model may use it.
                    yield from islice((m for m in mutants if m.refused or m.changed_tensors), 1)
        yield from self._faults_undone_by_reader(number)

    def model_of(self, task: str) -> str:
        """Return the name of the model that shows faults in a table of a task."""
        return {"classify": "token"}.get(task, task)

    def _faults_undone_by_reader(self, number: int | None) -> Iterator[Mutant]:
        """Yield faults of a table with which a file is both written and read, so that they cancel.

        Only mae-convert's own table reads these layouts, and no other reader would detect the
        fault.
        """
        for layout in ("torchvision", "keras-hub", "mmpretrain", "lightly"):
            table = self.family.layouts[layout].tables[0]
            model = table.tasks[0]
            faults = self.some(table_faults(table), number)
            made = (
                self._mutant_or_error(self._written_and_read, f.name, model, layout, table, f.table)
                for f in faults
            )
            yield from islice((m for m in made if not m.refused and m.changed_tensors), number or 5)

    def _written_and_read(self, model: str, layout: str, right: Table, wrong: Table) -> Mutant:
        source = self.models[model]
        target = self.converted(source, layout, table=wrong)
        blind = "only mae-convert's own table reads this layout, so an error in it cancels"
        return Mutant("", "", self.native(model), self.run(target, "torch"),
                      self._changed_tensors(target, right), blind=blind)  # fmt: skip

    def _use_of(self, layout: str, table: Table, *, tensorflow: bool, odd: bool) -> Callable:
        """Return a use of a faulty table in which the forward pass detects the fault."""
        written = self.family.layouts[layout].table_for(table.tasks[0]) is table
        native = self.family.native_loaders
        if (table.name, "tensorflow") in native and written and tensorflow:
            return self._read_natively if odd else self._written
        if (table.name, "torch") in native and tensorflow:
            return self._read_into_keras
        return self._read

    def _mutant_or_error(self, use: Callable, name: str, model: str, *rest: Any) -> Mutant:
        """Return a mutant, or one with the error that prevented it."""
        label = f"{name} [{use.__name__.strip('_').replace('_', ' ')}]"
        try:
            return replace(use(model, *rest), name=label, kind="tables")
        except (MaeConvertError, ValueError, IndexError) as error:
            return Mutant(label, "tables", refused=f"shapes: {error}")

    def _written(self, model: str, layout: str, right: Table, wrong: Table) -> Mutant:
        """The faulty table writes the target, which a framework runs natively."""
        source = self.models[model]
        target = self.converted(source, layout, table=wrong)
        changed_tensors = self._changed_tensors(target, right)
        return Mutant("", "", self.native(model), self.run(target, "tensorflow"), changed_tensors)

    def _read_natively(self, model: str, layout: str, right: Table, wrong: Table) -> Mutant:
        """The faulty table reads the source; source and result are both run natively."""
        source = reread(self.converted(self.models[model], layout), wrong)
        target = self.converted(source, self.own_layout)
        return Mutant("", "", self.run(source, "tensorflow"), self.run(target, "torch"),
                      self._changed_tensors(source, right))  # fmt: skip

    def _read_into_keras(self, model: str, layout: str, right: Table, wrong: Table) -> Mutant:
        """The faulty table reads the source; PyTorch runs the source, Keras the result."""
        original = self.models[model]
        source = original if layout == self.own_layout else self.converted(original, layout)
        source = reread(source, wrong)
        target = self.converted(source, "keras")
        return Mutant("", "", self.run(source, "torch"), self.run(target, "tensorflow"),
                      self._changed_tensors(source, right))  # fmt: skip

    def _read(self, model: str, layout: str, right: Table, wrong: Table) -> Mutant:
        """The faulty table reads a valid file of the layout."""
        source = self.models[model]
        if self.family.layouts[layout].table_for(source.task) is right:
            target = self.converted(source, layout)
        else:
            target = self._in_naming_variant(source, layout, right)
        target = reread(target, wrong)
        changed_tensors = tuple(
            n for n, t in target.tensors.items() if not same(t, source.tensors[n])
        )
        return Mutant("", "", self.native(model), self.run(target, "torch"), changed_tensors)

    def _in_naming_variant(self, source: Checkpoint, layout: str, table: Table) -> Checkpoint:
        """Write a file in a naming variant that is only read, and open it."""
        from mae_convert.formats import write_file

        rules = table.expand(source.tensors)
        path = self.folder / f"{next(self.numbers)}.safetensors"
        config = {**source.configuration.model.to_dict(), "task": source.task}
        write_file(path, "safetensors", write_tensors(source.tensors, rules), config=config)
        return open_checkpoint(path)

    def _changed_tensors(self, misread: Checkpoint, right: Table) -> tuple[str, ...]:
        """Return the tensors that differ from those that the correct table reads."""
        rightly = reread(misread, right).tensors
        return tuple(n for n, t in misread.tensors.items() if not same(t, rightly[n]))

    # Configurations

    def configurations(self, number: int | None, by_tensorflow: int) -> Iterator[Mutant]:
        yield from self._settings(list(setting_faults()), number, by_tensorflow)
        for fault in contradictions():
            yield self._setting_or_refusal(fault, "torch")

    def _settings(
        self, faults: list[SettingFault], number: int | None, by_tensorflow: int
    ) -> Iterator[Mutant]:
        faults = self.some(faults, number)
        chosen = set(self.rng.choice(len(faults), min(by_tensorflow, len(faults)), replace=False))
        for index, fault in enumerate(faults):
            yield self._setting_or_refusal(fault, "tensorflow" if index in chosen else "torch")

    def _setting_or_refusal(self, fault: SettingFault, framework: str) -> Mutant:
        try:
            return self._setting_mutant(fault, framework)
        except MaeConvertError as error:
            return Mutant(fault.name, "configurations", refused=f"opening: {error}")

    def _setting_mutant(self, fault: SettingFault, framework: str) -> Mutant:
        name, field_ = f"{framework}, {fault.name}", next(iter(fault.fields))
        blind = "a flag: outputs do not depend on it" if fault.flag else None
        b = replace(self.run(self._with_fields(fault, framework), framework))
        a = self.native(fault.model)
        b = replace(b, inputs=a.inputs, mask_ratio=a.mask_ratio)
        keys = () if fault.flag else ("configuration",)
        return Mutant(name, "configurations", a, b, keys=keys, words=(field_,), blind=blind)

    def _with_fields(self, fault: SettingFault, framework: str) -> Checkpoint:
        from mae_convert.formats import write_file

        source = self.models[fault.model]
        layout = self.family.layouts[self.own_layout if framework == "torch" else "keras"]
        rules = layout.table_for(source.task).expand(source.tensors)
        kind = layout.containers[0] if framework != "torch" else "safetensors"
        path = self.target(layout.name)
        statistics = {
            name: list(source.configuration.value(name)) for name in ("image_mean", "image_std")
        }
        config = {
            **source.configuration.model.to_dict(), **statistics, "task": source.task,
            "layout": layout.name, **fault.fields,
        }  # fmt: skip
        write_file(path, kind, write_tensors(source.tensors, rules), config=config)
        return open_checkpoint(path)

    # Code

    def code(self, torch: int | None, tensorflow: int | None) -> Iterator[Mutant]:
        yield from self._code(CODE_FAULTS, "code", torch, tensorflow)

    def precision(self, torch: int | None, tensorflow: int | None) -> Iterator[Mutant]:
        yield from self._code(PRECISIONS, "precision", torch, tensorflow)

    def _code(
        self, faults: Sequence[CodeFault], kind: str, torch: int | None, tensorflow: int | None
    ) -> Iterator[Mutant]:
        for framework, number in (("torch", torch), ("tensorflow", tensorflow)):
            possible = [f for f in faults if framework == "torch" or in_keras(f)]
            for fault in self.some(possible, number):
                source = self.models[fault.model]
                target = source if framework == "torch" else self.converted(source, "keras")
                b = self.run(target, framework, fault.name)
                yield Mutant(f"{framework}: {fault.name}", kind, self.native(fault.model), b,
                             keys=fault.keys, words=fault.words)  # fmt: skip


KERAS_PARTS = ("attention", "linear layers", "norms", "everything")


def in_keras(fault: CodeFault) -> bool:
    """Return whether ``code_keras``, which needs TensorFlow, has a fault."""
    family, _, name = fault.name.rpartition(": ")
    if family:
        text = Path(__file__).with_name("code_families_keras.py").read_text()
        own = text[text.index("OWN") :].partition(f'    "{family}": ')[2]
        return (
            f'    "{name}"' in own.partition("\n    },")[0]
            or f' "{name}"' in text.partition("def statistics")[0]
        )
    text = Path(__file__).with_name("code_keras.py").read_text()
    part = fault.name.removesuffix(", but not in the proof").rpartition(" in ")[0]
    return f'    "{fault.name}": ' in text or (fault in PRECISIONS and part in KERAS_PARTS)


def same(a: LazyTensor, b: LazyTensor) -> bool:
    return np.array_equal(a.load(), b.load(), equal_nan=True)


def reread(checkpoint: Checkpoint, table: Table) -> Checkpoint:
    """Return a checkpoint whose tensors are read by another table.

    Raises:
        ValueError: the shapes are not those of a model; the file would be refused.
    """
    heads = checkpoint.configuration.model.num_attention_heads
    rules = [rule.bound(heads) for rule in table.expand(checkpoint.tensors)]
    stored = checkpoint.container.tensors
    if missing := [rule.external for rule in rules if rule.external not in stored]:
        raise ValueError(f"the file would have to hold {missing[0]}")
    tensors = read_tensors(stored, rules)
    shapes = checkpoint.family.schema(checkpoint.configuration.model, checkpoint.task)
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise ValueError(f"{name} would have shape {tensor.shape}, not {shapes[name]}")
    ordered = {name: tensors[name] for name in shapes}
    return replace(checkpoint, tensors=ordered, rules=tuple(rules))
