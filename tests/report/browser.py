"""Look at a page with headless Chromium, where the machine has it."""

import base64
import shutil
from pathlib import Path

import pytest

__all__ = ["look", "needs_browser"]

needs_browser = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs Chromium"
)


def look(path: Path, width: int, theme: str, paper: str) -> None:
    """Assert that a page has no errors, fits into the width, has readable text and names for pictures."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        scheme = {"name": "prefers-color-scheme", "value": theme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(path.as_uri())
        assert browser.get_log("browser") == []
        assert browser.execute_script("return document.documentElement.scrollWidth") == width
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == paper
        smallest = browser.execute_script(
            "return Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))"
        )
        assert smallest >= 8
        unnamed = "return document.querySelectorAll('svg:not([aria-label]), img:not([alt])').length"
        assert browser.execute_script(unnamed) == 0
        picture = browser.execute_cdp_cmd("Page.captureScreenshot", {})
        assert base64.b64decode(picture["data"]).startswith(b"\x89PNG")
    finally:
        browser.quit()
