"""Look at every page of the built site in headless Chromium.

    python docs/check.py docs/_build/html

Fails if a page is wider than its window (1200 and 400 pixels, light and dark), if an image is not
drawn, if a link within the site leads nowhere, or if the browser's console shows an error.
"""

from __future__ import annotations

import argparse
import functools
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SECONDS = 600

DRIVER = """<!doctype html><meta charset="utf-8"><title>check</title><body><script>
const pages = %s, found = [];
// An element that sticks out, and that nothing around it scrolls.
const scrolls = each => {
  const style = up => up.ownerDocument.defaultView.getComputedStyle(up);
  for (let up = each; up && up.tagName !== "ARTICLE"; up = up.parentElement) {
    if (/auto|scroll|hidden/.test(style(up).overflowX)) return true;
  }
  return false;
};
const show = async (path, width, theme) => {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width: ${width}px; height: 900px; border: 0`;
  localStorage.setItem("theme", theme);
  const loaded = new Promise(resolve => { frame.onload = resolve; });
  frame.src = path;
  document.body.append(frame);
  await loaded;
  const page = frame.contentDocument, root = page.documentElement;
  const label = `${path}, ${width} pixels, ${theme}`;
  page.querySelectorAll("details").forEach(each => { each.open = true; });
  for (const each of page.images) {
    each.loading = "eager";
    await each.decode().catch(() => found.push(`${label}: not drawn: ${each.src}`));
  }
  const wide = [...page.querySelectorAll("article *")].find(
    each => each.getBoundingClientRect().right > width + 1 && !scrolls(each));
  if (wide) found.push(`${label}: too wide: ${wide.outerHTML.slice(0, 80)}`);
  if (root.scrollWidth > width) found.push(`${label}: ${root.scrollWidth} pixels wide`);
  const links = [...page.querySelectorAll("a[href]")].map(each => each.href);
  frame.remove();
  return links;
};
(async () => {
  const links = new Set();
  for (const path of pages) {
    for (const [width, theme] of [[1200, "light"], [1200, "dark"], [400, "light"], [400, "dark"]]) {
      for (const link of await show(path, width, theme)) links.add(link);
    }
  }
  const texts = new Map();
  for (const link of links) {
    const url = new URL(link);
    if (url.origin !== location.origin) continue;
    const anchor = decodeURIComponent(url.hash.slice(1));
    url.hash = "";
    if (!texts.has(url.href)) {
      const answer = await fetch(url.href);
      texts.set(url.href, answer.ok ? await answer.text() : null);
    }
    const text = texts.get(url.href);
    if (text === null) found.push(`leads nowhere: ${link}`);
    else if (anchor && !text.includes(`id="${anchor}"`)) found.push(`no such place: ${link}`);
  }
  const result = {found, pages: pages.length, links: links.size};
  await fetch("/result", {method: "POST", body: JSON.stringify(result)});
})();
</script>"""


class Handler(SimpleHTTPRequestHandler):
    """Serves the site and, as /check.html, the page that drives the check."""

    pages: list[str]
    results: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def do_GET(self) -> None:
        """Answer a request."""
        if self.path != "/check.html":
            return super().do_GET()
        body = (DRIVER % json.dumps(self.pages)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(body)
        return None

    def do_POST(self) -> None:
        """Take the result."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.results.put(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def look(browser: str, address: str) -> tuple[dict[str, Any], list[str]]:
    """Return what the driver found, and the errors on the console."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-dev-shm-usage"]
    command += ["--enable-logging=stderr", "--window-size=1300,1000"]
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        tempfile.TemporaryFile("w+") as log,
    ):
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", address],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            found = Handler.results.get(timeout=SECONDS)
        except queue.Empty:
            raise SystemExit(f"the browser had no result after {SECONDS} seconds") from None
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        return found, [line for line in log.read().splitlines() if ":CONSOLE" in line]


def main() -> int:
    """Check the site; return 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("site", type=Path)
    site = parser.parse_args().site.resolve()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("skipped: there is no Chromium")
        return 0
    Handler.pages = sorted(f"/{path.relative_to(site)}" for path in site.rglob("*.html"))
    if not Handler.pages:
        parser.error(f"site must hold HTML pages, got none in {site}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found, console = look(browser, f"http://127.0.0.1:{server.server_port}/check.html")
    problems = [*found["found"], *console]
    print("\n".join(problems) or f"{found['pages']} pages and {found['links']} links are fine")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
