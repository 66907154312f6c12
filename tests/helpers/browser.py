"""Pages opened in a real headless browser, and measurements of them.

A second page shows the first one in frames of several widths and measures it in each: its width,
whether tables can be sorted, the contrast of texts. The browser prints the second page when it has
loaded.
"""

import html
import http.server
import json
import re
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROBE = """<!DOCTYPE html><meta charset="utf-8">
<body style="margin:0"><pre id="found"></pre><script>
const luminance = color => {
  const [r, g, b] = color.match(/[\\d.]+/g).map(Number).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const background = (element, view) => {
  for (let e = element; e; e = e.parentElement) {
    const color = view.getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$|transparent/.test(color)) return color;
  }
  return view.matchMedia("(prefers-color-scheme: dark)").matches &&
    /dark/.test(view.getComputedStyle(view.document.documentElement).colorScheme)
    ? "rgb(18, 18, 18)" : "rgb(255, 255, 255)";
};
const contrast = (a, b) => {
  const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
};
const texts = (page, view) => [...page.body.querySelectorAll("*")].filter(e =>
  !["SCRIPT", "STYLE", "TITLE"].includes(e.tagName) && e.getClientRects().length &&
  [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
).map(e => {
  const style = view.getComputedStyle(e);
  const color = e instanceof view.SVGElement ? style.fill : style.color;
  return {tag: e.tagName, text: e.textContent.trim().slice(0, 60), color,
          behind: background(e, view), contrast: contrast(color, background(e, view))};
});
const sorted = (page, head) => {
  const table = head.closest("table"), column = [...head.parentElement.children].indexOf(head);
  const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const read = () => [...table.tBodies[0].rows].map(value).filter(v => v !== "");
  const order = values => values.every((v, i) => !i || (head.dataset.sort === "number"
    ? +values[i - 1] <= +v : values[i - 1].localeCompare(v, undefined, {numeric: true}) <= 0));
  const before = table.tBodies[0].rows.length;
  head.click();
  const up = read(), first = head.getAttribute("aria-sort");
  head.click();
  const down = read().reverse();
  return {name: head.textContent, order: [first, head.getAttribute("aria-sort")],
          right: order(up) && order(down) && table.tBodies[0].rows.length === before};
};
const filtered = page => {
  const field = page.querySelector("#filter");
  if (!field) return null;
  const rows = [...page.querySelector("#rows").tBodies[0].rows];
  field.value = rows[0].cells[0].textContent.trim();
  field.dispatchEvent(new Event("input", {bubbles: true}));
  const shown = rows.filter(row => !row.hidden).length;
  field.value = "";
  field.dispatchEvent(new Event("input", {bubbles: true}));
  return {shown, all: rows.filter(row => !row.hidden).length};
};
const measure = frame => {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  return {
    width: frame.clientWidth, scrollWidth: Math.max(root.scrollWidth, page.body.scrollWidth),
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    texts: texts(page, view), heads: [...page.querySelectorAll("th[data-sort]")].map(
      head => sorted(page, head)), filter: filtered(page),
    scrolled: [...page.querySelectorAll(".scroll")].filter(
      e => e.scrollWidth > e.clientWidth).map(e => e.textContent.trim().slice(0, 40)),
    images: [...page.images].map(i => ({width: i.naturalWidth, alt: i.alt})),
    headings: [...page.querySelectorAll("th, h1, h2, h3, figcaption")].map(
      e => e.textContent.trim()),
  };
};
const widths = WIDTHS, found = [];
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px;border:0`;
  frame.onload = () => {
    found.push(measure(frame));
    document.querySelector("#found").textContent = JSON.stringify(found);
  };
  frame.src = "page.html";
  document.body.append(frame);
}
</script>"""


@dataclass(frozen=True)
class Seen:
    """The measurements of a page in a browser.

    Attributes:
        frames: the measurements at each width, see `measure` in the page above.
        messages: the messages on the console, including errors in scripts.
    """

    frames: list[dict[str, Any]]
    messages: list[str]


def find_browser() -> str | None:
    """Return the path of a browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def look(program: str, page: str, widths: tuple[int, ...], *, dark: bool = False) -> Seen:
    """Open a page in frames with the widths, in pixels, and return the measurements."""
    with _served({"page.html": page, "probe.html": PROBE.replace("WIDTHS", str(list(widths)))}) as (
        _,
        address,
    ):
        process = _browse(program, f"{address}/probe.html", "--dump-dom", dark=dark)
    result = re.search(r'<pre id="found">(.*?)</pre>', process.stdout, re.DOTALL)
    assert result, process.stderr[-2000:]
    frames = json.loads(html.unescape(result[1]))
    return Seen(frames, re.findall(r"CONSOLE[^\]]*\] (.*)", process.stderr))


def screenshot(
    program: str, page: str, path: Path, size: tuple[int, int], *, dark: bool = False
) -> None:
    """Write a PNG image of a page in a window of the size (width, height) in pixels."""
    with _served({"page.html": page}) as (_, address):
        width, height = size
        options = (f"--screenshot={path}", f"--window-size={width},{height}", "--hide-scrollbars")
        _browse(program, f"{address}/page.html", *options, dark=dark)


def _browse(
    program: str, address: str, *options: str, dark: bool
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as profile:
        scheme = 0 if dark else 1
        return subprocess.run(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--enable-logging=stderr", f"--user-data-dir={profile}",
             "--virtual-time-budget=10000", "--window-size=1600,1200",
             f"--blink-settings=preferredColorScheme={scheme}", *options, address],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip


@contextmanager
def _served(files: dict[str, str]):
    """Serve files on the loopback interface; yield their folder and the address."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        handler = partial(_Quiet, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield folder, f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Send an empty response to the request for an icon."""
        if self.path == "/favicon.ico":
            self.send_response(204)
            self.end_headers()
            return
        super().do_GET()
