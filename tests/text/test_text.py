"""External text is escaped for each kind of output; numbers, sizes and counts are formatted."""

import re
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from mae_convert.errors import MaeConvertError
from mae_convert.text import (
    code_in_markdown,
    for_html,
    for_markdown,
    for_terminal,
    for_yaml,
    format_bytes,
    format_number,
    format_size,
    link_in_markdown,
    listing,
    plural,
)
from mae_convert.text.redaction import HIDDEN, without_credentials, without_secrets

# A renderer that supports tables, strikethrough and bare URLs, as sites have.
GITHUB = MarkdownIt("commonmark", {"linkify": False}).enable(["table", "strikethrough"])
HOSTILE = [
    "\x1b]0;title\x07\x1b[2J",
    "\x9b31m C1",
    "a\u202eb\u2066c\u200fd",
    "line\nbreak\r\nand\x85next\u2028line\x00",
    "<script>alert(1)</script><img src=x onerror=y>",
    "[click](https://evil.example) ![i](http://evil.example/x.png) <https://evil.example>",
    "https://evil.example www.evil.example",
    "# heading",
    "- item",
    "1. item",
    "=====",
    "> quote",
    "**bold** _em_ ~~no~~ `code` ``co`de``",
    "cell | other \\| cell \\\\| end",
    "<!-- mae-convert: end -->",
    "trailing \\",
    "\\",
    "&lt;b&gt; &#124;",
    " \x7f\udcff",
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_terminal_text_is_one_printable_line(text):
    shown = for_terminal(text)
    assert shown.isprintable()
    assert for_terminal(shown) == shown


def test_ordinary_text_is_unchanged():
    for text in ("Grüße, 日本語 🙂", "a/b c.pth", "encoder.blocks.0.weight", "שלום"):
        assert for_terminal(text) == text == for_yaml(text)
    assert for_markdown("1.0e-12, the convention of facebook's num_heads") == (
        "1.0e-12, the convention of facebook's num_heads"
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_html_shows_exactly_the_text(text):
    import html

    shown = for_html(text)
    assert not set(shown) & set("<>\"'")
    assert shown.isprintable()
    assert html.unescape(shown) == for_terminal(text)


def tags(markdown: str) -> list[str]:
    """Return the tags of rendered Markdown."""
    return re.findall(r"</?\w+", GITHUB.render(markdown))


def words(markdown: str) -> str:
    """Return the text of rendered Markdown."""
    import html

    return html.unescape(re.sub("<[^>]*>", "", GITHUB.render(markdown)))


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_exactly_the_text(text):
    for before, after in (("", ""), ("- ", ""), ("word ", " word")):
        shown = for_markdown(text)
        item = ["<ul", "<li", "</li", "</ul"] if before == "- " else ["<p", "</p"]
        assert tags(f"{before}{shown}{after}") in (item, [], ["<ul", "<li", "</li", "</ul"])
        assert for_terminal(text).strip() in words(f"{before}{shown}{after}")
    assert "://" not in shown
    assert "<" not in shown


@pytest.mark.parametrize("text", HOSTILE)
def test_code_in_markdown_is_one_code_span(text):
    shown = code_in_markdown(text)
    assert tags(f"word {shown} word") == ["<p", "<code", "</code", "</p"]
    assert for_terminal(text).strip() in words(f"word {shown} word")
    assert "<!--" not in shown


@pytest.mark.parametrize("make", [for_markdown, code_in_markdown])
@pytest.mark.parametrize("text", HOSTILE)
def test_text_cannot_end_a_table_cell(text, make):
    table = f"| a | b |\n|---|---|\n| {make(text)} | last |"
    assert tags(table).count("<td") == 2
    assert tags(table).count("<tr") == 2
    assert "last" in words(table)


@pytest.mark.parametrize(
    ("address", "links"),
    [
        ("https://example.org/a_b?c=d#e", True),
        ("http://example.org/a b) [x](javascript:alert(1)", True),
        ("https://example.org/|\n<b>", True),
        ("javascript:alert(1)", False),
        ("data:text/html,<script>", False),
        ("https:", False),
        ("http://[", False),
        (["https://example.org"], False),
    ],
)
def test_only_web_addresses_become_links(address, links):
    markdown = link_in_markdown("label", address)
    assert tags(markdown) == (["<p", "<a", "</a", "</p"] if links else ["<p", "</p"])
    assert words(markdown).strip() == "label"


@pytest.mark.parametrize("text", HOSTILE)
def test_yaml_text_is_on_one_line(text):
    stored = yaml.safe_dump(for_yaml({"a": text, "b": [text]}), allow_unicode=True)
    assert yaml.safe_load(stored) == {"a": for_terminal(text), "b": [for_terminal(text)]}
    assert all(line.isprintable() for line in stored.splitlines())
    assert "\n---" not in stored


@pytest.fixture
def secrets(monkeypatch, tmp_path):
    (tmp_path / "token").write_text("tokenInAFile/1\n")
    (tmp_path / "aws").write_text("[default]\naws_session_token = sessionInAFile\n")
    for name, value in {
        "HF_TOKEN": "tokenOf+Environment",
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "aws"),
        "AWS_SECRET_ACCESS_KEY": "secretOfAws/4",
        "FSSPEC_S3_SECRET": "secretOfFsspec",
        "FSSPEC_GCS": '{"token": "tokenOfFsspec"}',
    }.items():
        monkeypatch.setenv(name, value)
    return ["tokenOf+Environment", "tokenInAFile/1", "sessionInAFile", "secretOfAws/4",
            "secretOfFsspec", "tokenOfFsspec", "tokenOf%2BEnvironment"]  # fmt: skip


def test_credentials_of_the_process_do_not_appear_in_errors(secrets):
    sentence = f"the server says {' and '.join(secrets)}, here"
    message = str(MaeConvertError(sentence))
    assert not [secret for secret in secrets if secret in message]
    assert message.count(HIDDEN) == len(secrets)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer SECRET99",
        "{'authorization': 'Bearer SECRET99'}",
        "authorization: Basic SECRET99",
        '{"token": "SECRET99"}',
        "X-Amz-Security-Token: SECRET99",
        "https://host/path?X-Amz-Signature=SECRET99&X-Amz-Credential=SECRET99/1",
        "https://host/path?token=SECRET99",
        "https://host/path?Policy=SECRET99&Key-Pair-Id=SECRET99",
        "s3://key:SECRET99@bucket/model",
        "s3://SECRET99:a/b+c@bucket/model",
        "https://user:SECRET99@host:8080/x",
        "https://SECRET99@host/x",
        "Bearer SECRET99SECRET99SECRET99",
        "the token hf_SECRET99abcdefghij is not valid",
    ],
)
def test_credentials_are_recognised_by_their_position(text):
    assert "SECRET99" not in without_secrets(text)
    assert HIDDEN in without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "hf://owner/name@main/file.safetensors",
        "http://localhost:8080/a@b",
        "s3://bucket/folder/model",
        "decoder.mask_token: (1, 1, 2) and cls_token=1",
        "the token: it is not valid",
        "log in with `hf auth login`, or set HF_TOKEN",
        "hf_hub_download of hf_model.pth",
        "use Bearer authentication",
        "dtype policy='mixed_float16'",
    ],
)
def test_text_that_is_not_a_credential_is_unchanged(text):
    assert without_secrets(text) == text == without_credentials(text)


ONE_PLACE = {
    r"\bhtml\b.*\bescape|html\.escape": {"text/__init__.py"},
    r"rich\.markup": {"cli/output/console.py"},
    r"\bclick\.echo\(": {"cli/commands/hub.py", "cli/commands/verdicts.py"},
    r"(?<![\w.])print\(": {
        "cli/streams.py",  # sentences, and JSON, which escapes what is not ASCII
        "cli/output/console.py", "cli/output/lines.py", "cli/output/sweep.py", "cli/reporting.py",
        "runtime/worker.py",
        "diagnose/candidate_worker.py",
        "diagnose/reproducer.py",  # a script that is written for the user
    },
}  # fmt: skip


@pytest.mark.parametrize("pattern", ONE_PLACE)
def test_text_is_escaped_and_printed_by_a_few_modules_only(pattern):
    """New call sites have to be added here, and to the tests of hostile text."""
    import mae_convert

    package = Path(mae_convert.__file__).parent
    files_with_calls = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(re.search(pattern, line) for line in _code_of(path))
    }
    assert files_with_calls <= ONE_PLACE[pattern]


def _code_of(path):
    """Return the lines of a module without texts that are shown to the user as code."""
    return [
        line for line in path.read_text().splitlines() if not line.lstrip().startswith(('f"', '"'))
    ]


def test_numbers_sizes_and_counts_are_formatted():
    sizes = (0, 999, 1000, 447_000_000, 1_213_200_000)
    assert list(map(format_bytes, sizes)) == ["0 B", "999 B", "1.0 kB", "447.0 MB", "1.2 GB"]
    assert [plural(n, "tensor") for n in (0, 1, 2)] == ["0 tensors", "1 tensor", "2 tensors"]
    assert [listing(w) for w in (["a"], ["a", "b"], "abc")] == ["a", "a or b", "a, b or c"]
    assert [format_number(n) for n in (0.0, 3, 1.25e-7)] == ["0.0", "3", "1.2e-07"]
    sizes = [format_size(size) for size in (224, (2, 3), None)]
    assert sizes == ["224 x 224", "2 x 3", "size not specified"]


IDIOMS = {
    r"/ ?1e6.{0,8}[MG]B|for unit in|>> ?[123]0\} ?MB": "text.format_bytes",
    r"'s' (if|\*)|\"s\" (if|\*)": "text.plural",
    r"(exists|there) already; (pass|choose)|folder; make|there is no directory": "files.atomic",
}


@pytest.mark.parametrize("pattern", IDIOMS)
def test_shared_helpers_are_used_instead_of_copies(pattern):
    import mae_convert

    package = Path(mae_convert.__file__).parent
    files_with_words = {
        str(path.relative_to(package)) for path in package.rglob("*.py")
        if path.parts[-2:] not in (("text", "__init__.py"), ("files", "atomic.py"))
        and re.search(pattern, path.read_text())
    }  # fmt: skip
    assert files_with_words == set(), f"use mae_convert.{IDIOMS[pattern]}"
