"""Make the console's pictures in README from a running server: `mu2net demo --keep`, then

uv run python docs/screenshots.py http://127.0.0.1:3000 IMAGE
"""

import argparse
import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

FOLDER = Path(__file__).parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
COLOURS = 64  # few enough for small files, and the page has no more


def picture(
    browser: Browser, url: str, image: Path, name: str, *, scheme: str, width: int, height: int | None = None
) -> None:
    """Save what the page shows of all tasks' answers to `image`: all of it, or as much as has room in `height`."""
    view = {"width": width, "height": height or 800}
    with browser.new_context(color_scheme=scheme, viewport=view) as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(url)
        page.locator("#map svg").wait_for()
        page.get_by_role("button", name="Measure latency").click()
        page.locator("#measure:enabled").wait_for()
        page.set_input_files("#image", image)
        page.locator(".answer").first.wait_for()
        shot = Image.open(BytesIO(page.screenshot(full_page=height is None))).convert("RGB")
    shot.quantize(COLOURS).save(FOLDER / f"{name}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server")
    parser.add_argument("image", type=Path, help="what is classified")
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        picture(browser, arguments.url, arguments.image, "console", scheme="light", width=1080, height=2420)
        picture(browser, arguments.url, arguments.image, "console-phone", scheme="dark", width=390, height=1360)


if __name__ == "__main__":
    main()
