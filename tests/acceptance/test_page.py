"""The page in a real browser, by keyboard alone, with every other host out of reach."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ops.api_maintenance import drift_report, recall_report
from ops.bench.stub import StubAssigner, shadow_generation
from schemas.access_settings import AccessSettings
from schemas.api_keys import ApiKey, ApiScope, digest_of
from tests.api_client import png
from tests.browser import Browser
from tests.conftest import skip_or_fail
from tests.line import Line, open_line
from tests.recorded import HOSTILE
from tests.services.servers import ToolMissingError
from tests.serving import http_serving
from tests.stubs import services_at
from workers.api.maintenance import Maintenance
from workers.generations import switching
from workers.repository.connection import Connection, connect
from workers.repository.generations import live_number

IMAGES = 60

MOST_BYTES = 300_000
"""Of the page itself, without pictures."""

CUT = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
"""Whatever the page might ask of the rest of the world fails, and is a complaint."""

VIEWS = (
    "search",
    "tree",
    "arrivals",
    "dead-letters",
    "generations",
    "reports/recall",
    "reports/drift",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all pages. Where none is installed: a skip on a laptop, a failure in CI."""
    try:
        started = Browser(tmp_path_factory.mktemp("browser"), options=[CUT])
    except ToolMissingError as error:
        skip_or_fail(error)
    with started:
        yield started


@dataclass(frozen=True)
class Site:
    """A query worker's address, and the line that feeds it."""

    url: str
    line: Line


@pytest.fixture
def site(database: str, tmp_path: Path, conn: Connection) -> Iterator[Site]:
    """Images, hostile texts among them; two generations, of which the second is live."""
    with open_line(database, tmp_path, conn) as line:
        for number in range(IMAGES):
            line.arrive(
                f"folder/image {number}", captions=[f"picture {number}"], metadata={"n": number}
            )
        line.arrive("hostile", captions=[HOSTILE], metadata={"a": HOSTILE})
        line.run()
        second = shadow_generation(conn)
        switching.promote(conn, second, line.services.store, StubAssigner.of)

        def roll_back() -> None:
            with connect(database) as own:
                switching.rollback(own, line.services.store, StubAssigner.of)

        maintenance = Maintenance(lambda *_: None, roll_back, drift_report, recall_report)
        with http_serving(line.services, maintenance=maintenance) as url:
            yield Site(url, line)


def open_view(
    browser: Browser, site: Site, view: str, width: int = 1100, *, dark: bool = False
) -> None:
    # From elsewhere: a change behind the # alone would load nothing.
    browser.open("about:blank")
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(f"{site.url}/#/{view}", width, dark=dark)
    browser.until("document.querySelector('main h1')")
    browser.until("!document.querySelector('[aria-busy]')")


def keep_screenshot(browser: Browser, name: str, folder: Path) -> None:
    """Write a screenshot where a person can look at it: into SIGMA_TEST_SHOTS, if it is set."""
    Path(os.environ.get("SIGMA_TEST_SHOTS", folder), f"{name}.png").write_bytes(
        browser.screenshot()
    )


def require_silence(browser: Browser, site: Site) -> None:
    """No complaint of the browser, and no request to anywhere else."""
    assert browser.complaints == []
    foreign = [
        address
        for address in browser.requests
        if not address.startswith((f"{site.url}/", f"blob:{site.url}/"))
    ]
    assert foreign == []


def test_a_text_finds_images_and_one_says_why_it_is_there(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    open_view(browser, site, "search")
    browser.press("/")
    browser.write("two red circles")
    browser.press("Enter")
    browser.until("document.querySelectorAll('.tile img').length > 10")
    browser.until(
        "[...document.querySelectorAll('.tile img')].slice(0, 4).every(i => i.naturalWidth)"
    )
    assert "images in" in browser.evaluate("document.getElementById('status').textContent")
    browser.tab_to(".tile")
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    browser.press("ArrowLeft")
    chosen = browser.evaluate("document.activeElement.getAttribute('aria-label')")
    browser.press("Enter")
    browser.until("document.querySelector('dialog.image .why')")
    keep_screenshot(browser, "page-image", tmp_path)
    browser.press("Escape")
    browser.until("!document.querySelector('dialog')")
    # The focus is where it was.
    assert browser.evaluate("document.activeElement.getAttribute('aria-label')") == chosen
    require_silence(browser, site)


def test_a_filter_made_of_fields_leaves_what_it_allows(browser: Browser, site: Site) -> None:
    open_view(browser, site, "search?q=picture")
    browser.until("document.querySelectorAll('.tile').length > 10")
    browser.tab_to("summary")
    browser.press("Enter")
    browser.tab_to(".filters > button")
    browser.press("Enter")
    browser.write("n")
    browser.press("Tab")
    browser.press("Tab")
    browser.write("7")
    browser.press("Enter")
    browser.until("document.querySelectorAll('.tile').length === 1")
    assert "picture 7" in browser.evaluate("document.querySelector('.tile').textContent")
    require_silence(browser, site)


def test_a_picture_of_ones_own_finds_images(browser: Browser, site: Site, tmp_path: Path) -> None:
    picture = tmp_path / "mine.png"
    picture.write_bytes(png())
    open_view(browser, site, "search")
    browser.tab_to("#picture")
    browser.choose_file(picture)
    browser.until("document.querySelectorAll('.tile').length > 10")
    assert "mine.png" in browser.evaluate("document.querySelector('.asked').textContent")
    browser.tab_to(".tile")
    browser.press("Enter")
    browser.until("document.querySelector('dialog a.primary')")
    browser.tab_to("dialog a.primary")
    browser.press("Enter")
    browser.until("location.hash.includes('like=')")
    browser.until("document.querySelectorAll('.tile').length > 10")
    require_silence(browser, site)


def test_the_tree_leads_to_a_leaf_and_back(browser: Browser, site: Site, tmp_path: Path) -> None:
    open_view(browser, site, "tree")
    keep_screenshot(browser, "page-tree", tmp_path)
    for level in range(1, 5):
        browser.tab_to(".branch")
        browser.press("Enter")
        browser.until(
            f"location.hash.split('.').length === {level} && location.hash.includes('/tree/')"
        )
        browser.until(f"document.querySelectorAll('.trail .code').length === {level}")
    browser.until("document.querySelector('.tile')")
    assert browser.evaluate("document.querySelector('h1').textContent").startswith("Leaf ")
    assert browser.evaluate("document.activeElement.tagName") == "H1"
    for level in (3, 2, 1, 0):
        browser.tab_to(".trail a.quiet")
        browser.press("Enter")
        browser.until(f"document.querySelectorAll('.trail .code').length === {level}")
    browser.until("document.querySelector('h1').textContent === 'The tree of identifiers'")
    require_silence(browser, site)


def test_a_dead_letter_is_sent_again(browser: Browser, site: Site, tmp_path: Path) -> None:
    line = site.line
    lost = tmp_path / "lost.png"
    line.arrive("lost", uri=lost.as_uri())
    line.run()
    assert "lost" in line.letters()
    open_view(browser, site, "dead-letters")
    browser.until("document.querySelector('td')?.textContent")
    keep_screenshot(browser, "page-dead-letters", tmp_path)
    lost.write_bytes(png(7))
    browser.tab_to("main button.primary")
    browser.press("Enter")
    browser.tab_to("dialog button.primary")
    browser.press("Enter")
    said = browser.until("document.querySelector('.note.good')?.textContent")
    assert said == "1 event sent again."
    line.run()
    assert "lost" in line.searchable()
    require_silence(browser, site)


def test_arrivals_appear_by_themselves_and_leave_the_focus_where_it_is(
    browser: Browser, site: Site, conn: Connection, tmp_path: Path
) -> None:
    line = site.line
    open_view(browser, site, "arrivals")
    browser.until("document.querySelectorAll('.tile img').length === 24")
    first = "document.querySelector('.tile').getAttribute('aria-label')"
    browser.tab_to(".tile")
    assert browser.evaluate(f"document.activeElement.getAttribute('aria-label') === {first}")
    browser.press("ArrowRight")
    chosen = browser.evaluate("document.activeElement.getAttribute('aria-label')")
    line.arrive("fresh", captions=["just now"])
    line.run()
    browser.until(f"{first} === 'just now'")
    assert browser.evaluate("document.getElementById('status').textContent") == "1 new image"
    assert browser.evaluate("document.activeElement.getAttribute('aria-label')") == chosen
    # As while no generation is live.
    state = "UPDATE image SET state = %s WHERE image_id = 'fresh'"
    conn.execute(state, ["accepted"])
    mark = "document.querySelector('.tile .mark')?.textContent"
    assert browser.until(mark) == "not searchable yet"
    keep_screenshot(browser, "page-arrivals-live", tmp_path)
    conn.execute(state, ["indexed"])
    browser.until(f"!{mark}")
    # Tab leads into the pictures once, whatever came.
    assert browser.evaluate("document.querySelectorAll('.tile[tabindex=\"0\"]').length") == 1
    browser.tab_to("main button[aria-pressed]")
    browser.press("Enter")
    browser.until("document.activeElement.getAttribute('aria-pressed') === 'true'")
    browser.requests.clear()
    browser.press("Enter")
    # Going on looks at once.
    browser.until("document.activeElement.getAttribute('aria-pressed') === 'false'")
    line.arrive("later", captions=["a bit later"])
    line.run()
    browser.until(f"{first} === 'a bit later'")
    require_silence(browser, site)


def test_a_rollback_is_done_when_it_is_confirmed(
    browser: Browser, site: Site, conn: Connection, tmp_path: Path
) -> None:
    assert live_number(conn) == 2
    open_view(browser, site, "generations")
    for answer in ("Escape", "Enter"):
        browser.tab_to("main .actions button")
        browser.press("Enter")
        browser.until("document.querySelector('dialog[open]')")
        if answer == "Enter":
            browser.tab_to("dialog button.primary")
        browser.press(answer)
        browser.until("!document.querySelector('dialog')")
        if answer == "Escape":
            assert not any(address.endswith("/rollback") for address in browser.requests)
    said = browser.until("document.querySelector('.note.good')?.textContent")
    assert said == "Done. Generation 1 answers."
    assert live_number(conn) == 1
    keep_screenshot(browser, "page-generations", tmp_path)
    require_silence(browser, site)


def test_where_keys_are_needed_the_page_asks_for_one_and_pictures_open_by_signed_links(
    browser: Browser, site: Site, database: str, tmp_path: Path
) -> None:
    secret = "sigma_key-of-this-test-and-long"
    key = ApiKey("reader", ApiScope.READ, digest_of(secret.encode()))
    keyed = services_at(database, tmp_path, access=AccessSettings((key,)))
    with http_serving(keyed) as url:
        open_view(browser, Site(url, site.line), "search?q=picture")
        browser.until("document.querySelector('dialog.key')")
        browser.tab_to("#key-field")
        browser.write(secret)
        browser.press("Enter")
        browser.until("document.querySelector('.tile img')?.naturalWidth")
        assert "signature=" in browser.evaluate("document.querySelector('.tile img').src")
        # The key is in the tab alone, and in no address.
        assert not any(secret in address for address in browser.requests)
        assert browser.evaluate("localStorage.length") == 0
        refused = "Failed to load resource: the server responded with a status of 401"
        assert [one for one in browser.complaints if refused not in one] == []
        browser.evaluate("sessionStorage.clear()")


CONTRAST = """
(() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = channels(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!text || element.closest(".unseen, .skip, svg, [hidden]")) continue;
    const [one, other] = [channels(getComputedStyle(element).color), behind(element)].map(light);
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) low.push([element.outerHTML.slice(0, 80), ratio]);
  }
  return low;
})()
"""
"""Texts with less contrast than WCAG 2.2 AA wants of small ones."""

INTERACTIVE = {"button", "link", "textbox", "searchbox", "combobox", "dialog", "navigation"}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("view", VIEWS)
def test_each_view_can_be_read_by_everybody(
    browser: Browser, site: Site, view: str, dark: bool, tmp_path: Path
) -> None:
    open_view(browser, site, view, 390 if dark else 1100, dark=dark)
    assert browser.evaluate(CONTRAST) == []
    # No view is wider than the window.
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate("document.querySelectorAll('h1').length") == 1
    assert browser.evaluate("document.documentElement.lang") == "en"
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = {node["role"]["value"] for node in nodes if "role" in node}
    assert {"banner", "main", "navigation", "contentinfo", "status"} <= roles
    for node in nodes:
        if node.get("role", {}).get("value") in INTERACTIVE and not node["ignored"]:
            assert node.get("name", {}).get("value"), node
    keep_screenshot(
        browser, f"page-{view.replace('/', '-')}-{'dark' if dark else 'light'}", tmp_path
    )
    require_silence(browser, site)


def test_reports_say_something_from_the_first_hour_and_their_examples_lead_to_the_search(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    open_view(browser, site, "reports/drift")
    said = "document.querySelector('.progress').textContent"
    assert "arrivals that become its reference have come" in browser.evaluate(said)
    assert browser.evaluate("document.querySelectorAll('main tbody tr').length") > 1
    keep_screenshot(browser, "page-first-hour", tmp_path)
    open_view(browser, site, "reports/recall")
    browser.tab_to("main td a")
    asked = browser.evaluate("document.activeElement.textContent")
    browser.press("Enter")
    browser.until("document.querySelectorAll('.tile').length > 10")
    assert browser.evaluate("document.getElementById('text').value") == asked
    require_silence(browser, site)


def test_the_page_is_small_and_comes_from_here(browser: Browser, site: Site) -> None:
    open_view(browser, site, "search")
    sizes = browser.evaluate(
        "performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"
        ".filter(e => !e.name.includes('/v1/')).map(e => [e.name, e.decodedBodySize])"
    )
    assert len(sizes) > 10
    assert sum(size for _, size in sizes) <= MOST_BYTES, sizes
    require_silence(browser, site)
