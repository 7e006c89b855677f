"""`mlflow ui` in a real browser: what the pages of a store show, and their screenshots.

    python -m tests.dashboard sqlite:///data/mlflow/mlflow.db sana-sprint-demo "make demo" docs

writes the pictures of the README, docs/mlflow-command.png, -pictures.png and -students.png. The tests of the pages take
the same ones.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from mlflow.tracking import MlflowClient
from playwright.sync_api import expect, sync_playwright

from sana_sprint.registry.dashboard import VIEW

SIZE = {"width": 1440, "height": 1000}
PATIENCE_MS = 60_000
ASSISTANT = "button[data-component-id='mlflow.assistant.chat_panel.close']"


def chromium() -> str:
    """Returns the path of a Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    assert program, "no Chromium on the PATH: apt install chromium"
    return program


@contextmanager
def served(uri: str):
    """Yields the address of MLflow's page over the store at `uri`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait_for(address: str, process: subprocess.Popen) -> None:
    """Waits until a server answers."""
    for _ in range(240):
        assert process.poll() is None, "mlflow ui ended"
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"{address} does not answer")


class Dashboard:
    """The pages of one experiment."""

    def __init__(self, page, address: str, uri: str, experiment: str) -> None:
        self.page, self.address = page, address
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        self.client = MlflowClient(tracking_uri=uri)
        self.experiment_id = self.client.get_experiment_by_name(experiment).experiment_id
        self.open(f"#/experiments/{self.experiment_id}/runs")
        page.locator(ASSISTANT).click()

    def runs(self, query: str):
        """Returns the runs that fit a search, the newest first."""
        return self.client.search_runs([self.experiment_id], query, order_by=["attributes.start_time DESC"])

    def open(self, place: str) -> None:
        """Goes to an address from "#/" on."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}/{place}{'&' if '?' in place else '?'}{VIEW}")

    def show(self, text: str) -> None:
        """Scrolls to a heading and waits until it is there."""
        found = self.page.get_by_text(text, exact=True).first
        found.scroll_into_view_if_needed()
        found.evaluate("one => one.scrollIntoView({block: 'start'})")

    def of_command(self, words: str):
        """Returns the newest run of a command, as `make demo`."""
        return next(run for run in self.runs("tags.kind = 'parent'") if run.info.run_name.endswith(f" {words}"))

    def command(self, words: str):
        """Opens the newest run of a command and returns it. Its description must be there, with a table of stages."""
        run = self.of_command(words)
        self.open(f"#/experiments/{self.experiment_id}/runs/{run.info.run_id}")
        expect(self.page.get_by_role("heading", name=run.info.run_name)).to_be_visible()
        expect(self.page.get_by_role("columnheader", name="seconds")).to_be_attached()
        return run

    @contextmanager
    def follow(self, link: str):
        """Clicks a link of the description in view, and yields the page that it opens."""
        with self.page.expect_popup() as opened:
            self.page.get_by_role("link", name=link, exact=True).first.click()
        opened.value.set_default_timeout(PATIENCE_MS)
        yield opened.value
        opened.value.close()

    def pictures(self, words: str, series: str) -> list[str]:
        """Opens the pictures of a command's run, moves the slider of a series to its end, and returns the addresses of
        the pictures seen on the way, each of which must have loaded.
        """
        run = self.of_command(words)
        self.open(f"#/experiments/{self.experiment_id}/runs/{run.info.run_id}/model-metrics")
        self.show(series.partition("/")[0])
        card = self.page.locator(f"xpath=//*[normalize-space(text())='{series}']/ancestor::*[.//*[@role='slider']][1]")
        seen: list[str] = []
        slider = card.get_by_role("slider")
        last = slider.get_attribute("aria-valuemax")
        while not seen or slider.get_attribute("aria-valuenow") != last:
            if seen:
                slider.press("ArrowRight")
            picture = card.locator("img").first
            expect(picture).to_be_visible()
            self.page.wait_for_function("one => one.complete && one.naturalWidth > 0", arg=picture.element_handle())
            seen.append(picture.get_attribute("src"))
        return seen

    def students(self) -> None:
        """Opens the charts of the evaluations, one run beside the other."""
        words = "searchFilter=tags.stage%20%3D%20'evaluate'&compareRunsMode=CHART&orderByKey=attributes.run_name"
        self.open(f"#/experiments/{self.experiment_id}/runs?{words}&orderByAsc=true")
        expect(self.page.get_by_text("by_steps/student_overall", exact=True).first).to_be_visible()

    def screenshot(self, path: Path) -> None:
        """Writes what is in view, when the charts have come to rest."""
        self.page.wait_for_timeout(2500)
        self.page.screenshot(path=path)


def of_command(shown: Dashboard, words: str, folder: Path):
    """Writes the README's picture of a command's page, and returns its run."""
    run = shown.command(words)
    shown.page.get_by_text("Show more", exact=True).first.click()
    shown.show("Description")
    shown.screenshot(folder / "mlflow-command.png")
    return run


def of_pictures(shown: Dashboard, words: str, series: str, folder: Path) -> list[str]:
    """Writes the README's picture of the sliders, one at its end, and returns what `Dashboard.pictures` does."""
    seen = shown.pictures(words, series)
    shown.screenshot(folder / "mlflow-pictures.png")
    return seen


def of_students(shown: Dashboard, folder: Path) -> None:
    """Writes the README's picture of the students' charts."""
    shown.students()
    shown.screenshot(folder / "mlflow-students.png")


@contextmanager
def opened(address: str, uri: str, experiment: str, **options):
    """Yields the dashboard of an experiment of the store at `uri`, whose page is at an address, in a browser with these
    options of playwright's pages."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield Dashboard(browser.new_page(viewport=SIZE, **options), address, uri, experiment)
        browser.close()


@contextmanager
def dashboard(uri: str, experiment: str):
    """Yields the dashboard of an experiment of the store at `uri`, served for it."""
    with served(uri) as address, opened(address, uri, experiment) as found:
        yield found


def main() -> None:
    """Writes the README's screenshots."""
    uri, experiment, words, folder = *sys.argv[1:4], Path(sys.argv[4])
    with dashboard(uri, experiment) as shown:
        of_command(shown, words, folder)
        of_pictures(shown, words, "distill_base/1_step", folder)
        of_students(shown, folder)


if __name__ == "__main__":
    main()
