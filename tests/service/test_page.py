"""The page in Debian's Chromium over a made-up API: one test for each thing that a person does with it."""

import io
import os
import re
import shutil
import time
from types import SimpleNamespace

import pytest
from fake_api import CLASS_NAMES, FIRST_ID, HOSTILE_KEYS, NEIGHBOURS, SAMPLES, serving
from PIL import Image
from service_runs import server

COUNT_BLOBS = """
window.made = window.revoked = 0;
for (const [name, count] of [["createObjectURL", "made"], ["revokeObjectURL", "revoked"]]) {
    const real = URL[name];
    URL[name] = value => { window[count] += 1; return real.call(URL, value); };
}
"""


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium")
    if program is None:
        why = "Chromium is not installed here: tools/install_test_programs.sh installs it"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def shared_api():
    with serving() as api:
        yield api


@pytest.fixture
def api(shared_api):
    """The fake with all its switches as they were."""
    switches = dict(shared_api.__dict__)
    shared_api.requests = []
    yield shared_api
    shared_api.__dict__.update(switches)


class Page:
    """A tab that notes whatever must not happen: errors, dialogs, requests to elsewhere."""

    def __init__(self, browser, api, **options):
        self.api = api
        self.bad: list[str] = []
        self.expected: str | None = None
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        self.context.set_default_timeout(20_000)
        self.tab = self.context.new_page()
        self.tab.on("console", self._note_message)
        self.tab.on("pageerror", lambda error: self.bad.append(f"error: {error}"))
        self.tab.on("dialog", lambda dialog: (self.bad.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.tab.on("request", self._note_request)

    def _note_message(self, message):
        if message.type in ("error", "warning") and not (self.expected and self.expected in message.text):
            self.bad.append(f"console: {message.text}")

    def _note_request(self, request):
        if not request.url.startswith((self.api.address, "blob:" + self.api.address, "data:")):
            self.bad.append(f"request: {request.url}")

    def open(self, place=""):
        self.tab.goto(self.api.address + place)
        self.settle()
        return self

    def settle(self, place=None):
        """Waits until the address matches and the view is drawn."""
        if place is not None:
            self.until("place => decodeURIComponent(location.hash).includes(place)", arg=place)
        # the event of a changed address comes in a task of its own
        self.tab.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 20)))")
        self.tab.wait_for_selector("main[aria-busy=false]")

    def until(self, expression, arg=None, timeout_s=20):
        """Playwright's own wait_for_function evaluates text in the page, which the page's policy forbids."""
        deadline = time.monotonic() + timeout_s
        while not self.tab.evaluate(expression, arg):
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {expression}"
            time.sleep(0.02)

    def ids(self, grid="#neighbours-grid"):
        return self.tab.eval_on_selector_all(f"{grid} .tile", "tiles => tiles.map(t => Number(t.dataset.id))")

    def focused(self):
        return self.tab.evaluate("document.activeElement.dataset.id ?? document.activeElement.id")

    def text(self, selector):
        return self.tab.locator(selector).inner_text()


@pytest.fixture
def page(browser, api):
    tabs = []

    def make(**options):
        tabs.append(Page(browser, api, **options))
        return tabs[-1]

    yield make
    for tab in tabs:
        tab.context.close()
        assert tab.bad == []


def _png(colour):
    body = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(body, "PNG")
    return body.getvalue()


def _neighbours(api, sample_id, k=NEIGHBOURS, round_number=3):
    row = sample_id - FIRST_ID
    near = api.nearest(api.features(round_number)[row], round_number, k, without=row)
    return [each["sample_id"] for each in near]


def test_a_sample_is_found_by_its_id(page, api):
    view = page().open()
    view.tab.fill("#query", "1020")
    view.tab.press("#query", "Enter")
    view.settle("#/sample/1020")
    assert view.text("#sample-title") == "Sample 1020"
    assert view.ids() == _neighbours(api, 1020)
    assert view.text("#live") == f"Sample 1020, {NEIGHBOURS} neighbours"


def test_samples_are_found_by_a_part_of_their_key(page, api):
    view = page().open()
    view.tab.fill("#query", "/0002")
    view.tab.press("#query", "Enter")
    view.settle("key=/0002")
    assert view.ids("#samples-grid") == [FIRST_ID + row for row in range(20, 30)]
    assert view.tab.input_value("#filter-key") == "/0002"


def test_samples_are_found_by_class_from_the_suggestions(page):
    view = page().open()
    view.tab.fill("#query", "tower")
    view.tab.press("#query", "ArrowDown")
    assert view.text("#options [aria-selected=true]") == "Class tower & bridge"
    view.tab.press("#query", "Enter")
    view.settle("class=tower+&+bridge")
    assert view.text("#samples-count") == f"40 of {SAMPLES}"
    assert set(view.tab.locator("#samples-grid .badge").all_inner_texts()) == {"tower & bridge"}


def test_a_search_without_a_match_says_so(page):
    view = page().open("#/?key=nowhere")
    assert view.text("#samples-grid") == "No sample is like that."


def test_a_dropped_a_chosen_and_a_pasted_image_find_their_neighbours(page, api):
    view = page().open()
    view.tab.set_input_files("#file", {"name": "<b>red</b>.png", "mimeType": "image/png", "buffer": _png("red")})
    view.settle("#/image/1")
    red = view.ids()
    assert len(red) == NEIGHBOURS
    assert "<b>red</b>.png" in view.text("#sample-facts")
    give = """([kind, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "given.png", {type: "image/png"}));
        const init = {bubbles: true, cancelable: true};
        if (kind === "drop") {
            dispatchEvent(new DragEvent("dragover", {...init, dataTransfer: data}));
            if (document.getElementById("drop").hidden) throw new Error("no sign that it may be dropped");
        }
        dispatchEvent(kind === "drop" ? new DragEvent("drop", {...init, dataTransfer: data})
            : new ClipboardEvent("paste", {...init, clipboardData: data}));
    }"""
    view.tab.evaluate(give, ["drop", list(_png("blue"))])
    view.settle("#/image/2")
    blue = view.ids()
    assert blue != red
    assert view.tab.locator("#drop").is_hidden()
    view.tab.evaluate(give, ["paste", list(_png("red"))])
    view.settle("#/image/3")
    assert view.ids() == red
    view.tab.go_back()
    view.settle("#/image/2")
    assert view.ids() == blue
    view.tab.locator("#neighbours-grid .tile").first.click()
    view.settle(f"#/sample/{blue[0]}")
    assert view.tab.locator("#trail li").all_inner_texts() == ["Samples", "image", f"#{blue[0]}"]
    assert sum(request.startswith("POST") for request in api.requests) == 3  # going back asks for nothing new


def test_an_image_that_cannot_be_read_shows_the_services_words(page):
    view = page().open()
    view.expected = "422"
    view.tab.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no image"})
    view.settle("#/image/1")
    assert "the body cannot be decoded as an image" in view.text("#problem")


def test_a_walk_leaves_a_trail_that_the_back_button_and_a_shared_link_follow(page, api):
    view = page().open("#/sample/1020")
    first = _neighbours(api, 1020)[2]
    view.tab.click(f"#neighbours-grid [data-id='{first}']")
    view.settle(f"#/sample/{first}")
    second = next(each for each in view.ids() if each != 1020)
    view.tab.click(f"#neighbours-grid [data-id='{second}']")
    view.settle(f"#/sample/{second}")
    trail = ["Samples", "#1020", f"#{first}", f"#{second}"]
    assert view.tab.locator("#trail li").all_inner_texts() == trail
    other = page().open(view.tab.url.removeprefix(api.address))
    assert other.tab.locator("#trail li").all_inner_texts() == trail
    assert other.ids() == view.ids()
    view.tab.go_back()
    view.settle(f"#/sample/{first}")
    assert view.ids() == _neighbours(api, first)
    view.tab.click("#trail a:has-text('#1020')")
    view.settle("#/sample/1020")
    assert view.tab.locator("#trail li").all_inner_texts() == ["Samples", "#1020"]


def test_the_whole_walk_works_with_the_keyboard_alone(page, api):
    view = page().open()
    press = view.tab.keyboard.press
    press("/")
    assert view.focused() == "query"
    view.tab.keyboard.type("1020")
    press("Enter")
    view.settle("#/sample/1020")
    for _ in range(40):
        press("Tab")
        if view.focused() == str(_neighbours(api, 1020)[0]):
            break
    else:
        pytest.fail("Tab does not lead to the neighbours")
    assert view.tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    near = _neighbours(api, 1020)
    press("ArrowRight")
    press("ArrowRight")
    assert view.focused() == str(near[2])
    press("ArrowLeft")
    press("ArrowDown")
    columns = near.index(int(view.focused())) - 1
    assert columns > 1
    press("ArrowUp")
    assert view.focused() == str(near[1])
    press("Enter")
    view.settle(f"#/sample/{near[1]}")
    view.until("id => document.activeElement.dataset.id === id", arg=str(_neighbours(api, near[1])[0]))
    view.tab.go_back()
    view.settle("#/sample/1020")
    view.until("id => document.activeElement.dataset.id === id", arg=str(near[1]))


def _entropies(api, low, high):
    return [FIRST_ID + row for row, h in enumerate(api.entropy(3)) if low <= h <= high]


def _range(view):
    return [float(value) for value in re.search(r"min=([\d.]+)&max=([\d.]+)", view.tab.url).groups()]


def test_a_range_of_the_histogram_is_dragged_and_lists_its_samples(page, api):
    view = page().open()
    box = view.tab.locator("#brush").bounding_box()
    middle = box["y"] + box["height"] / 2
    view.tab.mouse.move(box["x"] + box["width"] * 0.51, middle)
    view.tab.mouse.down()
    view.tab.mouse.move(box["x"] + box["width"] * 0.26, middle, steps=4)
    view.tab.mouse.up()
    view.settle("max=")
    low, high = _range(view)
    expected = _entropies(api, low, high)
    assert 5 < len(expected) < SAMPLES
    assert view.ids("#samples-grid") == expected[:60]
    view.tab.click("#whole")
    view.until("!location.hash.includes('max=')")
    view.settle()
    assert view.text("#samples-count") == f"{SAMPLES} of {SAMPLES}"


def test_a_range_of_the_histogram_is_chosen_with_the_keyboard(page, api):
    view = page().open()
    view.tab.focus("#from")
    for _ in range(12):
        view.tab.keyboard.press("ArrowRight")
    view.tab.focus("#to")
    for _ in range(9):
        view.tab.keyboard.press("ArrowLeft")
    view.until("document.getElementById('to').value === '31'")
    view.settle("max=")
    low, high = _range(view)
    assert view.text("#samples-count") == f"{len(_entropies(api, low, high))} of {SAMPLES}"
    assert view.tab.get_attribute("#to", "aria-valuetext") == f"{high:.2f} nats"
    assert view.focused() == "to"


def test_the_samples_are_filtered_and_paged(page):
    view = page().open()
    assert len(view.ids("#samples-grid")) == 60
    view.tab.click("#pages a[rel=next]")
    view.settle("offset=60")
    assert view.ids("#samples-grid")[0] == FIRST_ID + 60
    view.tab.select_option("#filter-anchor", "true")
    view.settle("anchor=true")
    assert view.text("#samples-count") == f"120 of {SAMPLES}"
    view.tab.fill("#filter-key", "images/0")
    view.settle("key=images/0")
    assert all(
        key.startswith("images/0") for key in view.tab.locator("#samples-grid .line .quiet.cut").all_inner_texts()
    )


def test_two_rounds_are_shown_side_by_side_with_what_changed(page, api):
    view = page().open("#/sample/1020")
    view.tab.click("#to-compare")
    view.settle("#/rounds")
    left, right = (".sides > div:nth-child(1)", ".sides > div:nth-child(2)")
    assert view.ids(left) == _neighbours(api, 1020, round_number=2)
    assert view.ids(right) == _neighbours(api, 1020, round_number=3)
    view.tab.select_option("#compare-a", "1")
    view.settle("a=1")
    before, after = _neighbours(api, 1020, round_number=1), _neighbours(api, 1020, round_number=3)
    assert view.ids(left) == before
    ids = "tiles => tiles.map(t => Number(t.dataset.id))"
    assert view.tab.eval_on_selector_all(f"{left} .gone", ids) == [each for each in before if each not in after]
    assert view.tab.eval_on_selector_all(f"{right} .new", ids) == [each for each in after if each not in before]
    assert view.tab.locator(f"{left} .tile:has-text('left')").count() == len(set(before) - set(after)) > 0
    stayed = len(set(before) & set(after))
    assert f"{stayed} stayed, {NEIGHBOURS - stayed} left, {NEIGHBOURS - stayed} came" in view.text("#compared-sample")


def test_an_older_round_is_chosen_and_kept_while_walking(page, api):
    view = page().open("#/sample/1020")
    view.tab.select_option("#round", "1")
    view.settle("round=1")
    assert view.ids() == _neighbours(api, 1020, round_number=1)
    view.tab.locator("#neighbours-grid .tile").first.click()
    view.settle(f"#/sample/{_neighbours(api, 1020, round_number=1)[0]}")
    assert "round=1" in view.tab.url
    view.open("#/sample/1020?round=1&k=50")  # an older round has its table only
    assert view.ids() == _neighbours(api, 1020, NEIGHBOURS, round_number=1)


def test_purity_is_shown_and_sorted_by_class(page):
    view = page().open("#/purity")
    assert view.tab.locator("#purity-figures b").all_inner_texts() == ["80.0 %", "60.0 %", "90.0 %", "70.0 %"]
    names = view.tab.locator("#purity-table tbody th")
    assert names.all_inner_texts() == CLASS_NAMES
    view.tab.click("[data-sort=at_1]")
    view.settle("sort=at_1")
    assert names.all_inner_texts() == CLASS_NAMES[::-1]
    view.tab.click("[data-sort=at_1]")
    view.settle("down=1")
    assert names.all_inner_texts() == CLASS_NAMES
    assert view.tab.get_attribute("th:has([data-sort=at_1])", "aria-sort") == "descending"
    names.nth(1).locator("a").click()
    view.settle("class=dog")
    assert view.text("#samples-count") == f"40 of {SAMPLES}"


def test_a_random_sample_is_opened(page):
    view = page().open()
    view.tab.evaluate("Math.random = () => 0.5")
    view.tab.click("#random")
    view.settle(f"#/sample/{FIRST_ID + SAMPLES // 2}")


def test_the_number_of_neighbours_is_chosen_and_kept_within_the_limit(page, api):
    view = page().open("#/sample/1020")
    for wanted, shown, source in (("5", 5, "from the table, exact"), ("900", 100, "from the table and the index")):
        view.tab.fill("#k", wanted)
        view.tab.press("#k", "Enter")
        view.settle(f"k={shown}")
        assert view.ids() == _neighbours(api, 1020, shown)
        assert view.text("#neighbours-text") == f"{shown} nearest, {source}"


def test_only_an_exact_table_is_called_exact(page, api):
    view = page()
    for api.mode, api.recall, source in (
        ("approximate", 0.973, "from the table, approximate (recall 97.3 %)"),
        (None, None, "from the table"),
    ):
        view.open("#/sample/1020")
        view.tab.reload()
        view.settle()
        assert view.text("#neighbours-text") == f"{NEIGHBOURS} nearest, {source}"


def test_hostile_keys_and_names_stay_text(page):
    view = page().open("#/")
    scripts = view.tab.locator("script").count()
    view.tab.fill("#query", "<img src=x onerror=alert(5)>")
    for row, key in HOSTILE_KEYS.items():
        view.tab.goto(f"{view.api.address}#/sample/{FIRST_ID + row}")
        view.settle(f"/{FIRST_ID + row}")
        view.until("id => document.getElementById('sample-title').textContent === id", arg=f"Sample {FIRST_ID + row}")
        assert view.tab.locator("#sample-facts .cut").nth(1).evaluate("e => [e.textContent, e.title]") == [key, key]
        assert view.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    view.open("#/purity")
    view.open("#/rounds?id=1003")
    view.open("#/?key=%3Cscript%3E")
    assert view.ids("#samples-grid") == [FIRST_ID + 3]
    assert view.tab.locator("script").count() == scripts
    assert view.tab.locator("h1 i, [onmouseover], [onerror], a[href^=javascript]").count() == 0


def test_a_swap_of_rounds_refreshes_the_view_and_says_so(page, api):
    api.rounds, api.current = [1, 2], 2
    view = page().open("#/sample/1020")
    assert view.ids() == _neighbours(api, 1020, round_number=2)
    api.rounds, api.current = [1, 2, 3], 3
    near = _neighbours(api, 1020, round_number=2)[0]
    view.tab.click(f"#neighbours-grid [data-id='{near}']")
    view.settle(f"/{near}")
    assert view.text("#notice span") == "Round 3 is now served; this page shows it."
    assert view.ids() == _neighbours(api, near, round_number=3)
    assert view.tab.locator("#round option").all_inner_texts() == ["3 (current)", "2", "1"]


def test_a_problem_shows_the_services_words_and_can_be_tried_again(page, api):
    view = page()
    view.expected = "the server responded with a status of"
    view.open("#/sample/5")
    assert view.text("#problem h2") == "No such sample"
    assert view.text("#problem p") == "sample 5 is not in this round <b>at all</b>"
    api.broken = True
    view.tab.click("#again")
    view.tab.wait_for_selector("#problem h2:has-text('Busy')")
    api.broken = False
    view.tab.click("#leave")
    view.tab.wait_for_selector("#samples-grid .tile")
    assert view.tab.locator("#problem").is_hidden()


def test_a_round_that_is_gone_leads_back_to_the_current_one(page):
    view = page()
    view.expected = "404"
    view.open("#/sample/1020?round=9")
    assert view.text("#problem p") == "there is no round 9"
    view.tab.click("#leave")
    view.tab.wait_for_selector("#samples-grid .tile")
    assert "round" not in view.tab.url


def test_without_labels_images_and_model_the_page_shows_what_there_is(page, api):
    api.labelled = api.has_images = api.has_model = False
    view = page().open()
    assert view.tab.locator("nav [data-view=purity]").is_hidden()
    assert view.tab.locator("#filter-class").is_hidden()
    assert view.tab.locator(".badge, .tile img").count() == 0
    assert view.text("#samples-grid li:first-child .missing") == f"#{FIRST_ID}"
    assert view.tab.is_disabled("#file")
    view.open("#/sample/1020")
    assert view.tab.locator("#trail img, #portrait img").count() == 0
    assert "Class" not in view.text("#sample-facts")
    view.open("#/purity")
    assert view.text("#no-purity") == "There is no purity: not every sample has a label."


def test_classes_are_shown_where_some_samples_have_none(page, api):
    near = _neighbours(api, 1020)
    api.without_label = (near[0] - FIRST_ID, near[1] - FIRST_ID)
    view = page().open("#/sample/1020")
    assert view.tab.locator("#neighbours-grid .badge").count() == NEIGHBOURS - 2
    name = CLASS_NAMES[20 % len(CLASS_NAMES)]
    same = sum((each - 20 - FIRST_ID) % len(CLASS_NAMES) == 0 for each in near[2:])
    facts = view.text("#sample-facts").split("\n")
    assert facts[facts.index("Class") + 1] == name
    assert facts[facts.index("Same class") + 1] == f"{same} of {NEIGHBOURS - 2}"
    assert view.tab.locator("nav [data-view=purity]").is_hidden()
    view.tab.fill("#query", "tower")
    assert view.tab.locator("#options li").all_inner_texts()[-1] == "Class tower & bridge"
    view.open("#/")
    assert view.tab.locator("#filter-class").is_visible()


def test_the_token_is_asked_for_once_and_sent_as_a_header(page, api):
    api.token = "right"
    view = page()
    view.tab.add_init_script(COUNT_BLOBS)
    view.expected = "401"
    view.tab.goto(api.address + "#/sample/1020")
    view.tab.fill("#token-value", "wrong")
    view.tab.keyboard.press("Enter")
    view.tab.wait_for_selector("#token-text:has-text('refused')")
    view.tab.fill("#token-value", "right")
    view.tab.keyboard.press("Enter")
    view.settle()
    view.expected = None
    view.until("document.querySelector('#portrait img')?.naturalWidth > 0")
    assert view.tab.get_attribute("#portrait img", "src").startswith("blob:")
    view.tab.locator("#neighbours-grid li").last.scroll_into_view_if_needed()
    view.until("made > 5 && made === revoked")
    view.tab.reload()
    view.tab.wait_for_selector("#neighbours-grid .tile")
    assert view.tab.locator("#token").is_hidden()
    assert not any("token=" in request for request in api.requests)


def test_a_token_in_the_address_is_taken_out_of_it(page, api):
    api.token = "right"
    view = page()
    view.tab.goto(api.address + "?token=right#/sample/1020")
    view.tab.wait_for_selector("#neighbours-grid .tile")
    assert "token" not in view.tab.url
    assert view.tab.url.endswith("#/sample/1020")


PLACES = ["#/", "#/sample/1020?via=1003,1005", "#/rounds?id=1020", "#/purity"]


def test_a_phone_scrolls_in_one_direction_only(page):
    view = page(viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True, has_touch=True)
    for place in PLACES:
        view.open(place)
        view.tab.reload()
        view.settle()
        wide = view.tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide == [390, 390], place


def test_every_control_has_a_name_and_every_image_a_text(page):
    """Names as the browser computes them for assistive programs."""
    view = page().open()
    session = view.context.new_cdp_session(view.tab)
    for place in PLACES:
        view.open(place)
        view.tab.reload()
        view.settle()
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        seen = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored") and "role" in node
        ]
        roles = {role for role, _ in seen}
        assert {"main", "banner", "navigation", "search", "contentinfo", "status"} <= roles, place
        wanting = {"button", "link", "textbox", "searchbox", "combobox", "slider", "spinbutton", "image", "img"}
        assert [role for role, name in seen if role in wanting and not name.strip()] == [], place
        unlabelled = "all => all.filter(each => !each.labels.length).map(each => each.id)"
        assert view.tab.eval_on_selector_all("input, select", unlabelled) == []
        assert view.tab.locator("img:not([alt])").count() == 0
        assert view.tab.locator("h1").count() == 1


def test_motion_is_reduced_when_it_is_asked_for(page):
    view = page(reduced_motion="reduce").open()
    view.tab.evaluate("document.body.classList.add('busy')")
    assert view.tab.evaluate("getComputedStyle(document.getElementById('loading')).transitionDuration") == "0s"


def test_the_page_of_the_real_service_shows_a_real_run(browser, served_run):
    with server(served_run.root, token="secret") as (url, app):
        address = f"{url}/"
        table = app.service.rounds.current.subject.table
        view = Page(browser, SimpleNamespace(address=address))
        view.tab.goto(f"{address}?token=secret#/sample/7")
        view.tab.wait_for_selector("#neighbours-grid .tile")
        assert len(view.ids()) == 12  # more than the table's 3: from the index
        assert view.ids()[:3] == table.neighbour_ids[7].tolist()
        view.until("document.querySelector('#portrait img')?.naturalWidth > 0")
        view.tab.fill("#k", "9")
        view.tab.press("#k", "Enter")
        view.settle("k=9")
        assert len(view.ids()) == 9
        view.tab.click("#to-compare")
        view.settle("#/rounds")
        assert view.ids(".sides > div:nth-child(2)") == table.neighbour_ids[7].tolist()
        view.tab.click("nav [data-view=purity]")
        view.settle("#/purity")
        assert view.tab.locator("#purity-table tbody tr").count() == 10
        view.tab.click("nav [data-view=samples]")
        view.settle("#/")
        view.tab.select_option("#filter-anchor", "true")
        view.settle("anchor=true")
        assert view.text("#samples-count") == f"{table.is_anchor.sum()} of 143"
        view.tab.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": _png("grey")})
        view.settle("#/image/1")
        assert len(view.ids()) == 9
        view.context.close()
    assert view.bad == []
