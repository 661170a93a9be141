"""Pages of the site that lie beside what they are about, outside docs/; and links between them and docs/."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = ("launch/README.md", "transfer/README.md", "benchmarks/RESULTS.md")
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside, under the path that they have in the repository."""
    for path in OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links as they hold in the repository into links as they hold in the site."""
    here = posixpath.dirname(page.file.src_uri)
    in_docs = "" if page.file.src_uri in OUTSIDE else "docs"

    def in_site(found: re.Match[str]) -> str:
        before, target, after = found.groups()
        if ":" in target:
            return found[0]
        path = posixpath.normpath(posixpath.join(in_docs, here, target))
        if path.startswith("docs/"):
            path = path.removeprefix("docs/")
        elif path not in OUTSIDE:
            return found[0]  # and mkdocs says that it leads nowhere
        return before + posixpath.relpath(path, here or ".") + after

    return _LINK.sub(in_site, markdown)
