"""The names that a domain package may count on, and their parameters; what comes on top has a default."""

import dataclasses
import importlib
import inspect
import typing

import pytest

from medseg_core.draw import Samples
from medseg_core.settings import TrainConfig

FUNCTIONS = """
config.setting(default, help, *, low, high, exact)
config.resolve(cls, given, *, file)
config.as_dict(config)
options.flags(cls)
cases.read_cases(path)
cases.write_cases(path, cases)
cases.split_cases(cases, *, val, test, seed)
cohort.for_each(cases, work, *, out, config, executor)
store.write_arrays(folder, arrays, about)
store.Arrays(folder)
store.Arrays.__getitem__(self, name)
volume.Grid.oriented(self, orientation, spacing_mm)
volume.Volume.like(self, voxels)
volume.Series.frame(self, t)
volume.resample(volume, grid, *, how)
draw.Draw.numpy(self)
draw.Draw.torch(self)
trainer.Trainer(model, step, *, config, card, run, groups, device)
trainer.Trainer.fit(self, samples, validate)
trainer.Trainer.update(self, batches)
run.RunFolder.open(path, config, *, resume, overwrite)
checkpoint.load_model(path, models)
checkpoint.load_weights(model, path, *, take)
checkpoint.freeze(module)
foreign.import_foreign(old, new, model, card, *, renames)
infer.infer(net, image, *, window, reduce, overlap, batch_size, device)
infer.decide(card)
infer.mean_of(nets)
distributed.share(items)
distributed.gather(value)
evaluate.Evaluation.summary(self, *, seed)
evaluate.Evaluation.against(self, other, measure, *, seed)
evaluate.evaluate(pairs, labels, *, more, baselines, out)
evaluate.from_rows(rows)
report.write_report(out, evaluation, *, title, pictures)
io.read_volume(path)
io.write_volume(volume, path)
losses.dice_ce(logits, label)
"""
RECORDS = """
cases.Case: id files group split notes
cohort.Outcome: done skipped failed
volume.Grid: shape affine
volume.Volume: voxels affine
volume.Series: frames affine times_s
volume.Picture: pixels pixel_nm
draw.Draw: index epoch place seed
trainer.At: epoch step progress rng teacher
trainer.Score: value metrics chosen
trainer.Result: best epochs steps reason
checkpoint.Card: package version model arguments inputs head channels labels grid intensity chosen weights format
checkpoint.Matched: matched missing unexpected
evaluate.Evaluation: rows
evaluate.Pair: id mask label spacing unit images
"""
SETTINGS = """
epochs batch_size accumulate lr weight_decay optimizer schedule warmup min_lr clip ema precision channels_last compile
patience val_every save_seconds num_workers seed
"""
ALIASES = "options.Out options.Resume options.Overwrite options.Json trainer.Step trainer.Validate draw.Batch"


def found(name: str) -> typing.Any:
    module, _, rest = name.partition(".")
    thing = importlib.import_module(f"medseg_core.{module}")
    for part in rest.split("."):
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("line", FUNCTIONS.split("\n")[1:-1])
def test_a_function_takes_what_the_contract_says(line):
    name, _, rest = line.rstrip(")").partition("(")
    before, _, after = rest.partition("*, ")
    by_place, by_name = ([word for word in part.strip(", ").split(", ") if word] for part in (before, after))
    parameters = inspect.signature(found(name)).parameters
    kinds = inspect.Parameter
    places = [n for n, p in parameters.items() if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    assert places[: len(by_place)] == by_place
    for word in by_name:
        assert parameters[word].kind == kinds.KEYWORD_ONLY, word
    extra = [p for word, p in parameters.items() if word not in (*by_place, *by_name)]
    assert all(p.default is not kinds.empty or p.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD) for p in extra)


@pytest.mark.parametrize("line", RECORDS.split("\n")[1:-1])
def test_a_record_has_the_fields_of_the_contract_in_its_order(line):
    name, _, words = line.partition(": ")
    fields = dataclasses.fields(found(name))
    assert [field.name for field in fields][: len(words.split())] == words.split()
    for field in fields[len(words.split()) :]:
        assert (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING), field.name


@pytest.mark.parametrize("name", ALIASES.split())
def test_a_type_of_the_contract_is_there(name):
    assert typing.get_origin(found(name)) is not None


def test_the_settings_that_every_training_shares_are_those_of_the_contract():
    assert set(SETTINGS.split()) <= {field.name for field in dataclasses.fields(TrainConfig)}


def test_samples_are_a_protocol_of_a_length_and_a_draw():
    assert typing.Protocol in Samples.__mro__[1:]
    assert list(inspect.signature(Samples.__getitem__).parameters) == ["self", "draw"]
