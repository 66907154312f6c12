"""Malicious text in every field of every output: it cannot control a terminal or change a page.

Each output is made twice, with harmless and with malicious text in the same fields. The structure
of a page, a table or a document (its tags, its rows) must be the same for both.
"""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from paths import DEMO

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import MaeConvertError
from mae_convert.text import for_terminal

HOSTILE = {
    # No half of a surrogate pair: records hold its escape sequence (test_unicode_names.py).
    "terminal": "\x1b[2J\x1b]0;t\x07\x9b31m\u202e\u2066\u200f\x7f\x00",
    "lines": "a\nb\r\nc\x85d\u2028e\x0bf\n\n# heading\n\n- item\n---\n",
    "html": "</td></table></style></title><script>alert(1)</script><img src=x onerror=y>'\"><!--",
    "markdown": "[l](http://evil.example) ![i](http://evil.example) <http://evil.example> *b* _e_"
    " ~~s~~ `c` `` | \\| \\",
    "console": "[bold red]x[/] [link=http://evil.example]y[/link] :warning: [/] \\",
    "marks": "<!-- mae-convert: end -->\n<!-- mae-convert: begin -->",
    "bare": "http://evil.example www.evil.example me@evil.example",
    "block": "# heading",
}  # fmt: skip
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@pytest.fixture(params=HOSTILE)
def hostile(request):
    return HOSTILE[request.param]


def harmless_for(hostile: str) -> str:
    """Return a harmless text with dots and slashes at the same positions as in the hostile text."""
    return "w" + "".join(c if c in "./" or (c.isascii() and c.isalnum()) else "w" for c in hostile)


def with_text(value: Any, text: str, keep: tuple[str, ...] = ()) -> Any:
    """Return a value with a text appended to every string, and instead of every key of a mapping.

    Args:
        value: plain data, or dataclasses of it.
        text: what comes after.
        keep: names of fields and of mappings' entries that stay.
    """
    if isinstance(value, str):
        return f"{value} {text}"
    if isinstance(value, Path):
        return Path(f"{value}{text.replace('/', '_').replace(chr(0), '_')}")
    if isinstance(value, dict):
        return {k: v if k in keep else with_text(v, text, keep) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(with_text(item, text, keep) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: with_text(getattr(value, f.name), text, keep) for f in fields(value)
                   if f.name not in keep}  # fmt: skip
        return replace(value, **changed)
    return value


class Structure(HTMLParser):
    """The tags of a page with the names of their attributes, and the hosts of their links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        hosts = [re.sub(r"^(\w+://[^/]*|\w+:|#)?.*", r"\1", value or "", flags=re.DOTALL)
                 for name, value in attrs if name in ("href", "src")]  # fmt: skip
        self.found.append((tag, [name for name, _ in attrs], hosts))

    def handle_endtag(self, tag):
        self.found.append(f"/{tag}")

    def handle_comment(self, data):
        self.found.append(("comment", data))

    def handle_decl(self, decl):
        self.found.append(("declaration", decl))


def assert_printable(text: str) -> None:
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)


def assert_same_page(make: Any, hostile: str) -> None:
    harmless, page = make(harmless_for(hostile)), make(hostile)
    assert_printable(page)
    assert Structure(page).found == Structure(harmless).found
    page.encode()


def blocks(markdown: str) -> list[Any]:
    """Return the structure of rendered Markdown, without the text."""
    return Structure(MARKDOWN.render(markdown)).found


def pieces_of_code(results: list[Any]) -> list[Any]:
    """Return the pieces with both forms of code in Markdown unified; one of the forms is a tag."""
    return [piece for piece in results if piece not in (("code", [], []), "/code")]


def assert_same_document(make: Any, hostile: str) -> None:
    harmless, document = make(harmless_for(hostile)), make(hostile)
    assert_printable(document)
    assert blocks(document) == blocks(harmless)
    outside = re.sub(r"`[^`]*`|\]\([^)]*\)", "", document)  # of code and of links
    assert not re.search(r"(https?://|www\.)\S*evil", outside)
    assert document.count("<!-- mae-convert") == harmless.count("<!-- mae-convert")
    document.encode()


@pytest.fixture
def printed(capfd, monkeypatch):
    """Check that printed text is safe for a terminal; return the text and its lines."""
    monkeypatch.setattr("mae_convert.cli.output.lines.PIPE_WIDTH", 100_000)  # no line is folded
    monkeypatch.setenv("COLUMNS", "100000")

    def printed(show: Any, hostile: str) -> str:
        printed_text = []
        for text in (harmless_for(hostile), hostile):
            capfd.readouterr()
            show(text)
            captured = capfd.readouterr()
            printed_text.append(captured.out + captured.err)
        assert_printable(printed_text[1])
        # The text ends no line, and the console does not remove any of it as markup.
        assert printed_text[1].count("\n") == printed_text[0].count("\n")
        shown = [
            printed_text[1].count(for_terminal(hostile)),
            printed_text[0].count(harmless_for(hostile)),
        ]
        if not printed_text[1].startswith("{"):  # JSON has escape sequences of its own
            assert shown[0] == shown[1] > 0
        return printed_text[1]

    return printed


@pytest.fixture(scope="module")
def inspected():
    from mae_convert.checkpoint.inspect import inspect

    report = inspect(open_checkpoint(DEMO / "checkpoint.pth"), stats=True)
    report["stats"] = dict(list(report["stats"].items())[:2])
    report["ignored"] = {"optimizer": "24 tensors"}
    report["odd"] = ["something is odd"]
    report["family"] = {"certainty": "known", "name": "MAE", "because": "of its names",
                        "caveat": "take care", "also": ["DINO"]}  # fmt: skip
    return report


def renamed(mapping: dict[str, Any], text: str) -> dict[str, Any]:
    return {f"{name} {text}": value for name, value in mapping.items()}


def test_inspect(inspected, printed, hostile):
    from mae_convert.cli.output.inspection import inspection

    for task in ("pretrain", "classify"):
        report = {**inspected, "config": {**inspected["config"], "num_labels": 3}}

        def show(text, report=report, task=task):
            new = with_text(report, text, keep=("certainty",))
            for name in ("assumed", "becomes", "ignored", "dtypes", "stats"):
                new[name] = renamed(new[name], text)
            inspection({**new, "task": task})

        printed(show, hostile)


def test_convert(printed, hostile):
    from mae_convert.cli.output.conversion import conversion

    source = SimpleNamespace(
        name="a.pth", layout=SimpleNamespace(name="facebook"), task="pretrain", relative=None,
        container=SimpleNamespace(kind="pth"),
        prefix=SimpleNamespace(common="module.", in_words=lambda: "module."),
    )  # fmt: skip
    report = {
        "tensors": {"a": {"rounding": {"relative": 0.5, "absolute": 0.5}}},
        "steps": [{"step": "task", "from": "pretrain", "to": "encoder", "positions": "resampled"}],
        "created": {"head.weight": "zeros"},
        "dropped": {"decoder.weight": "not asked for"},
        "unread": ["config.json: fusion_config"],
        "assumed": {"hidden_act": {"value": "gelu", "source": "convention"}},
    }

    def show(text):
        where = SimpleNamespace(
            name=f"a.pth {text}",
            layout=source.layout,
            task=f"encoder {text}",
            container=source.container,
            relative=None,
            prefix=SimpleNamespace(common=True, in_words=lambda: text),
        )
        plan = SimpleNamespace(source=where, target=f"out {text}", task="encoder",
                               layout=SimpleNamespace(name=f"timm {text}"))  # fmt: skip
        new = with_text(report, text, keep=("step",))
        for name in ("tensors", "created", "dropped", "assumed"):
            new[name] = renamed(new[name], text)
        conversion(plan, new)

    printed(show, hostile)


def test_diff(printed, hostile):
    from mae_convert.checkpoint.diff import Difference, TensorDifference
    from mae_convert.cli.output.difference import difference

    tensor = TensorDifference("encoder.norm.weight", (1,), (2,), "float32", "float16", 3, 0.5, 1.0)

    def show(text):
        configuration = {f"hidden_act {text}": (f"gelu {text}", text)}
        missing = {f"layer_norm_eps {text}": text}
        difference(Difference(7, (with_text(tensor, text),), configuration, missing))

    printed(show, hostile)


@pytest.fixture(scope="module")
def verdict():
    from mae_convert.verify.judge import Check, Verdict

    names = ["configuration/hidden_act", "weights/encoder.norm.weight", "shape/logits",
             "file/config.json", "function/encoder.blocks.0.output", "function/logits",
             "float32/A/logits", "against timm/float32/B/logits", "certificate/passed"]  # fmt: skip
    checks = [Check(name, False, value, "none") for name in names for value in ("gelu", 0.5)]
    runner = {
        "side": "A", "layout": "facebook", "task": "pretrain", "framework": "torch", "native": True,
        "device": "cpu", "mode": "train", "versions": {"torch": "2.13"},
        "checkpoint": {"name": "folder/a.pth", "sha256": "0123456789abcdef0123"},
        "assumed": {"hidden_act": {"value": "gelu", "source": "flag --x"}},
        "ours": "mae-convert's own reader, as it has a prefix",
    }  # fmt: skip
    assumption = {"field": "hidden_act", "value": "gelu", "source": "the layout",
                  "sides": ["A", "B"], "blocks_proof": True}  # fmt: skip
    return Verdict(
        passed=False, proven=False, checks=tuple(checks), first_divergence="encoder.norm",
        suspects=("encoder.norm.weight",), causes=("the norm is missing",), witnesses=(runner,),
        effects={"logits": 0.5}, not_compared=("the decoder",), assumptions=(assumption,),
        steps=({"step": "dtype", "from": ["float32"], "to": "float16"},),
        unread={"A": ("config.json: fusion_config",)},
    )  # fmt: skip


def hostile_verdict(verdict, text, **changes):
    new = with_text(replace(verdict, **changes), text, keep=("step",))
    # Assumptions and names of checks are distinguished by their prefix, and framework by name.
    (runner,) = new.witnesses
    versions = {runner["framework"]: f"2.13 {text}"}
    runner = {**runner, "versions": versions, "assumed": renamed(runner["assumed"], text)}
    return replace(new, witnesses=(runner,), effects={f"logits {text}": 0.5})


@pytest.mark.parametrize("passed", [True, False])
def test_a_verdict(verdict, printed, hostile, passed):
    from mae_convert.cli.output.verdict import verdict as show
    from mae_convert.reports.junit import verdict_junit
    from mae_convert.reports.verdict_files import markdown, verdict_json
    from mae_convert.reports.verdict_html import page
    from mae_convert.verify.summary import verdict_text as as_text

    def done(text):
        checks = tuple(replace(check, passed=passed) for check in verdict.checks)
        new = hostile_verdict(verdict, text, checks=checks, passed=passed, proven=passed)
        return SimpleNamespace(verdict=new, traces=(), inputs={})

    printed(lambda text: show(done(text).verdict), hostile)
    assert_printable(as_text(done(hostile).verdict))
    environment = {"python": "3.11"}
    assert_same_page(
        lambda t: page(done(t), with_text(renamed(environment, t), t)), hostile
    )  # fmt: skip
    assert_same_document(lambda text: markdown(done(text)), hostile)
    xml = [verdict_junit(done(text)) for text in (harmless_for(hostile), hostile)]
    tags = [[(e.tag, sorted(e.attrib)) for e in ET.fromstring(text).iter()] for text in xml]
    assert tags[0] == tags[1]
    assert_printable(xml[1])
    assert all(
        str(v).isprintable() for e in ET.fromstring(xml[1]).iter() for v in e.attrib.values()
    )
    from mae_convert.cli.streams import print_json as as_json

    message = printed(lambda text: as_json(verdict_json(done(text).verdict)), hostile)
    assert message.isascii()
    assert json.loads(message)["suspects"] == [f"encoder.norm.weight {hostile}"]


@pytest.fixture
def rows():
    from mae_convert.sweep.result import Row

    common = {"source": "/runs/a.pth", "target": "/out/a", "layout": "timm", "host": "here",
              "settings": {"dtype": "float16", "seed": 1, "python_a": "/usr/bin/python"},
              "task": "encoder"}  # fmt: skip
    return [
        Row(key="k1" * 32, outcome="done", verdict="PASSED", passed=True, function=0.5, **common,
            own_error={"float32": 0.5}, source_sha256="ab" * 32, target_sha256="cd" * 32),
        Row(key="k2" * 32, outcome="failed", verdict="DIFFERENT", passed=False, cause="a cause",
            first_divergence="encoder.norm", **common),
        Row(key="k3" * 32, outcome="error", error="an error", published="hf://a/b", **common),
    ]  # fmt: skip


def hostile_rows(rows, text):
    new = [with_text(row, text, keep=("outcome", "own_error")) for row in rows]
    return [replace(row, settings=renamed(dict(row.settings), text)) for row in new]


def test_the_page_of_a_sweep(rows, hostile):
    from mae_convert.reports.sweep_html import page

    # The common part of folders is left out, so they stay what they are.
    text = hostile.replace("/", "_")
    assert_same_page(lambda text: page(hostile_rows(rows, text), 1), text)


@pytest.mark.parametrize("as_json", [True, False])
def test_the_progress_and_the_summary_of_a_sweep(rows, printed, hostile, as_json, monkeypatch):
    from mae_convert.cli.output import sweep as show
    from mae_convert.sweep.plan_fields import Job
    from mae_convert.sweep.run import SelectedJobs

    def print_sweep(text):
        new = hostile_rows(rows, text)
        jobs = [
            Job(r.source, r.target, {"to": r.layout, **r.settings}, f"plan {text}") for r in new
        ]
        todo = SelectedJobs(tuple(jobs), (new[0],), tuple(jobs[1:]))
        with show.progress(todo, as_json=as_json, on_terminal=not as_json) as show_row:
            for row in new:
                show_row(row)
        show.summary(todo, new, Path(f"results {text}"), as_json=as_json)
        if not as_json:
            monkeypatch.setattr(show, "_sizes", lambda job: {"bytes": 7, "memory": 7})
            show.dry_run(todo, {}, as_json=False)

    printed_text = printed(print_sweep, hostile)
    if as_json:
        events = [json.loads(line) for line in printed_text.splitlines()]
        assert [event["event"] for event in events] == ["begin", "row", *["row"] * 3, "end"]


@pytest.fixture(scope="module")
def trained():
    from mae_convert.visualize.display import Display
    from mae_convert.visualize.reconstruction import Reconstruction
    from mae_convert.visualize.timeline import Point, Timeline

    configuration = open_checkpoint(DEMO / "checkpoint.pth").configuration
    model = configuration.model
    (rows, columns), (height, width) = model.grid_hw, model.image_hw
    pixels = np.zeros((1, 3, height, width), np.float32)
    mask = np.zeros((1, rows * columns), np.float32)
    result = Reconstruction(pixels, mask, {"torch": pixels}, {"torch": np.ones(1)}, model)
    points = (Point("a-1.pth", 1, 0.7, (0.7,)), Point("a-2.pth", 2, 0.5, (0.5,)),
              Point("a-3.pth", 3, error="it is incomplete"))  # fmt: skip
    shown, display = {1: result, 2: result}, Display(configuration, (0, 1, 2))
    return Timeline(points, ("cat.jpg",), shown, configuration, 0.75, display)


def hostile_timeline(trained, text):
    return replace(trained, points=with_text(trained.points, text),
                   images=with_text(trained.images, text))  # fmt: skip


def test_a_timeline(trained, printed, hostile):
    from mae_convert.cli.output.visualization import timeline
    from mae_convert.reports.timeline_files import WRITERS, page

    assert_same_page(lambda text: page(hostile_timeline(trained, text)), hostile)
    new = hostile_timeline(trained, hostile)
    assert_printable(WRITERS[".csv"](new).decode().replace("\r\n", "\n"))
    assert json.loads(WRITERS[".json"](new))["images"] == list(new.images)
    assert WRITERS[".json"](new).isascii()
    WRITERS[".png"](new)
    printed(
        lambda text: timeline(hostile_timeline(trained, text), [Path(f"t {text}.html")]), hostile
    )


def test_reconstructions_and_features(printed, hostile):
    from mae_convert.cli.output.visualization import features, reconstructions
    from mae_convert.visualize.features import Features

    row = {"image": "cat.jpg", "removed": 3, "patches": 4, "loss": {"torch": 0.5}}
    report = {"images": [row], "note": "a note", "outputs": ["out.png"],
              "film_ratios": [0.5, 0.6, 1], "largest_difference": 0.5}  # fmt: skip
    printed(lambda text: reconstructions(with_text(report, text)), hostile)
    result = Features(np.array(["a"]), np.array(["b"]), np.zeros((1, 2)), np.zeros((1, 2)))
    printed(lambda text: features(result, Path(f"{text}.npz")), hostile.replace("/", "_"))


def test_hostile_text_is_escaped_in_published_results(printed, hostile):
    from mae_convert.cli.output.verdict import reference_results as published
    from mae_convert.verify.reference_results import REFERENCE_RESULTS, ReferenceComparison

    reference = next(iter(REFERENCE_RESULTS.values()))
    values = {f.name for f in fields(ReferenceComparison)}

    def show(text):
        name = f"float64 {text}"
        given = {"checkpoint": f"a {text}", "reference": with_text(reference, text),
                 "framework": text, "corners": {name: np.zeros((3, 3))}, "share": {name: 0.5},
                 "passed": False}  # fmt: skip
        published(SimpleNamespace(**{n: v for n, v in given.items() if n in values | {"passed"}}))

    printed(show, hostile)


def hostile_part(part, text):
    """Return a part of a publication in which every text of record and certificate is hostile."""
    keep = ("passed", "proven", "sha256", "step")
    record = with_text(dict(part.record), text, keep)
    record["source"] |= {
        "official": None, "repository": f"a/b {text}", "revision": text, "file": text,
        "license": f"mit {text}", "license_name": text, "license_link": f"https://x.example/{text}",
        "datasets": [text], "on_the_hub": text, "sha256": text,
        "made_from": {"name": text, "url": f"https://evil.example/{text}", "sha256": text},
    }  # fmt: skip
    record["steps"] = [{"step": "task", "from": f"a {text}", "to": f"b {text}"}]
    record["dropped"] = {f"decoder.{text}": f"not asked for {text}"}
    record["created"] = {f"head.{text}": f"zeros {text}"}
    record["assumed"] = {name: {**entry, "source": f"a file {text}"}
                         for name, entry in record["assumed"].items()}  # fmt: skip
    document = with_text(dict(part.certificate.document), text, keep)
    document |= {
        "environment": renamed(document["environment"], text),
        "effects": {f"logits {text}": 0.5},
        "not_compared": [f"the decoder {text}"],
        "inputs": text,
        "checks": [{**c, "limit": f"none {text}"} for c in document["checks"]],
    }
    document["source"] = {"name": text, "sha256": text}
    document["assumptions"] = [
        {"field": f"hidden_act {text}", "value": text, "source": text, "sides": [text, text],
         "blocks_proof": True}
    ]  # fmt: skip
    container = replace(part.checkpoint.container, conversion=record)
    checkpoint = replace(part.checkpoint, container=container)
    certificate = replace(part.certificate, document=document)
    return replace(part, checkpoint=checkpoint, certificate=certificate)


@pytest.fixture(scope="module")
def published_part(certified):
    from mae_convert.publish.artifacts import read_artifact

    return read_artifact(certified)


def card_of(part, text, existing=None):
    from mae_convert.publish.card import card_metadata, marked, merged_card, new_card
    from mae_convert.publish.card_body import CardData, section
    from mae_convert.publish.licence import decide_licence
    from mae_convert.publish.upload_files import stage_artifacts

    new = hostile_part(part, text)
    licence = decide_licence(new, {}, {})
    facts = CardData("someone/my-mae", [new, new], licence, stage_artifacts([part], {}), None)
    ours, fields_ = marked(section(facts)), card_metadata("someone/my-mae", new, licence, None)
    if existing is None:
        return new_card("my-mae", ours, fields_, on_top=False)
    return merged_card(existing, ours, fields_, on_top=False)[0]


def test_a_model_card(published_part, hostile):
    from mae_convert.publish.card import metadata_of

    def text_of(text):
        return card_of(published_part, text).split("\n---\n", 1)[1]

    assert_same_document(text_of, hostile)
    # Of the addresses in a record, only that of a licence becomes a link.
    links = [piece[2] for piece in blocks(text_of(hostile)) if piece[0] in ("a", "img")]
    assert {host for hosts in links for host in hosts} == {
        "#", "https://arxiv.org", "https://x.example"
    }  # fmt: skip
    card = card_of(published_part, hostile)
    metadata = metadata_of(card)
    harmless = metadata_of(card_of(published_part, "word"))
    assert set(metadata) == set(harmless) - {"base_model", "datasets"}  # which name no repository
    assert all(line.isprintable() for line in card.split("\n"))
    # It can be published again: its marks are one begin and one end.
    again = card_of(published_part, "word", card).split("\n---\n", 1)[1]
    assert again.count("mae-convert: begin") == 1


@pytest.mark.parametrize(
    "existing",
    [
        "```\n{begin}\n{end}\n```\n",
        "~~~~\n{begin}\n\n{end}\n",
        "<!-- a comment\n{begin}\n-->\n{end}\n",
        "<pre>\n{begin}\n\n{end}\n</pre>\n",
        "    {begin}\n    {end}\n",
        "`{begin}`\n\n{end}\n",
        "their words {begin}\n\n{end}\n",
        "{begin}\n\n{end} their words\n",
        "{begin} {end}\n",
        "[{begin}](http://evil.example)\n\n{end}\n",
        "{begin}\n{begin}\n{end}\n",
        "# {begin}\n\n{end}\n",
    ],
)
def test_malformed_section_markers_in_a_card_are_refused(published_part, existing):
    from mae_convert.errors import HubError
    from mae_convert.publish.card import BEGIN, END

    with pytest.raises(HubError, match="correct"):
        card_of(published_part, "word", existing.format(begin=BEGIN, end=END))


def test_hostile_text_is_escaped_in_published_files(published_part, printed, hostile):
    from mae_convert.cli.output import publication as show
    from mae_convert.publish.publication_plan import Publication, PublishRequest
    from mae_convert.publish.publish import Published
    from mae_convert.publish.repository import Remote, Target
    from mae_convert.publish.upload_files import Staged

    def plan(text):
        card = f"# card\n\n{for_terminal(text)}".encode()
        contents = {f"a/{text}": b"", "README.md": card}
        staged = {name: Staged(name, data, 7, "ab", None) for name, data in contents.items()}
        licence = SimpleNamespace(name=text, origin=text, fields={"license": text})
        return Publication(
            request=PublishRequest(Path("m"), Target(f"a/b{text}", pull_request=True)),
            artifacts=[published_part],
            remote=Remote(True, False, text, pull_request_url=text), account=text, staged=staged,
            add=[], delete=[f"old {text}"], kept=[f"kept {text}"], licence=licence,
            added_metadata={f"tags {text}": 1}, notes=[f"note {text}"],
        )  # fmt: skip

    def print_sweep(text):
        commit = SimpleNamespace(is_new=False, commit=text, url=text, pull_request_url=text)
        show.plan(plan(text), with_card=True)
        show.published(Published(plan(text), commit, {f"a {text}": text}))
        show.published(Published(plan(text), commit, {}))

    if "\0" not in hostile:  # no model card was uploaded
        printed(print_sweep, hostile)


def test_errors_and_notes(printed, hostile, command):
    from mae_convert.checkpoint.checkpoint import Origin
    from mae_convert.cli.common import print_notes

    message = str(MaeConvertError(f"before {hostile} after"))
    assert message.isprintable()
    printed(lambda text: print_notes(Origin("a", notes=(f"note {text}",))), hostile)
    argument = hostile.replace("\0", "")
    for arguments in (["inspect", argument], ["inspect", "a", argument], [argument],
                      ["convert", argument, argument, "--to", argument],
                      ["inspect", "a", f"--x{argument}"], ["inspect", "a", "--num-heads", argument],
                      ["convert", "a", "b", "--to", "timm", "--dtype", argument],
                      ["trace", "a", "b", "--framework", argument],
                      ["layouts", argument], ["download", argument],
                      ["sweep", argument, "--set", argument],
                      ["timeline", argument, "--images", argument, "-o", argument]):  # fmt: skip
        result = command(*arguments)
        assert result.status in (0, 2, 3), arguments
        assert_printable(result.out + result.err)
    result = command("inspect", "a\0b")
    assert (result.status, "NUL" in result.err) == (2, True)


NAME = "a\x1b[2J\x9b\u202e<b>[bold]:x:|`\n\r\u2028.pth"


def test_checkpoint_with_malicious_names_and_strings(tmp_path, command):
    """Names of files, tensors and other entries, and strings of configurations, are malicious."""
    torch = pytest.importorskip("torch")
    from mae_convert.convert.execute import execute
    from mae_convert.convert.plan import plan_conversion

    whole = torch.load(DEMO / "checkpoint.pth", weights_only=True)
    path = tmp_path / NAME
    torch.save({**whole, f"extra {NAME}": 3, NAME: NAME, "args": {"model": NAME}}, path)
    folder = tmp_path / NAME.removesuffix(".pth")
    execute(plan_conversion(open_checkpoint(path), folder, "transformers"))
    for arguments in (
        ["inspect", path, "--stats", "--hash"],
        ["convert", path, tmp_path / f"b{NAME}", "--to", "facebook"],
        ["convert", path, tmp_path / f"b{NAME}", "--to", "facebook"],
        ["diff", path, folder],
        ["inspect", folder],
    ):
        result = command(*arguments)
        assert result.status in (0, 2), result.err
        assert_printable(result.out + result.err)
    for name in ("config.json", "conversion.json", "preprocessor_config.json"):
        stored = json.loads((folder / name).read_text())
        for key in sorted(stored)[::4]:
            (folder / name).write_text(json.dumps({**stored, key: NAME, NAME: NAME}))
            result = command("inspect", folder)
            assert result.status in (0, 2), result.err
            assert_printable(result.out + result.err)
        (folder / name).write_text(json.dumps(stored))
    tensors = {
        f"{name}{NAME}" * (i % 2) or name: t for i, (name, t) in enumerate(whole["model"].items())
    }
    torch.save({"model": tensors}, path)
    result = command("inspect", path)
    assert result.status == 2
    assert_printable(result.err)
