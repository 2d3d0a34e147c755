"""What mkdocs does not do by itself, as its hook (`mkdocs.yml`): README, CONTRIBUTING and CHANGELOG as pages, links out
of ``docs/`` to files of the repository, which are copied, pages of reference, which list every public
name, and a script of our own in the place of the one that the theme would fetch to search a site opened as files.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
WORKER = "assets/javascripts/file_worker.js"
FETCHED = re.compile(r'src="https://unpkg\.com/iframe-worker/shim"')
COPIED = "repository"  # folder of the site for files of the repository
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")

# page of the reference → its title, and what it shows
REFERENCE: dict[str, tuple[str, tuple[str, ...]]] = {
    "index": ("Sparsifier", ("regrow.Sparsifier", "regrow.Budget", "regrow.UserError")),
    "patterns": ("Patterns", ("regrow.Weights", "regrow.NM", "regrow.Blocks", "regrow.Channels")),
    "methods": (
        "Methods",
        tuple(
            f"regrow.{name}"
            for name in (
                "IEE", "RigL", "GMP", "HALP", "SET", "MEST", "SNFS", "DSR", "Chase", "STE", "SRSTE", "GraNet", "ACDC",
                "GaP", "OneShot", "Static", "Uniform", "Dense",
            )
        ),
    ),
    "functions": (
        "Functions",
        ("regrow.save", "regrow.load", "regrow.load_tensors", "regrow.export", "regrow.recalibrate", "regrow.scan",
         "regrow.Scan", "regrow.to_semi_structured"),
    ),
    "integrations": (
        "Integrations",
        ("regrow.integrations.lightning.RegrowCallback", "regrow.integrations.transformers.RegrowCallback"),
    ),
    "extending": (
        "Extending",
        ("regrow.methods.method.Method", "regrow.patterns.pattern.Pattern", "regrow.patterns.entries.EntryPattern",
         "regrow.criteria", "regrow.actions", "regrow.schedule"),
    ),
}  # fmt: skip


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that do not lie in docs/, and the files that are linked."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for name, (title, shown) in REFERENCE.items():
        body = "\n\n".join(f"::: {path}" for path in shown)
        files.append(File.generated(config, f"reference/{name}.md", content=f"# {title}\n\n{body}\n"))
    linked: set[str] = set()
    for page in [*(ROOT / source for source in PAGES), *sorted((ROOT / "docs").glob("*.md"))]:
        here = page.relative_to(ROOT).as_posix()
        for match in _LINK.finditer(page.read_text(encoding="utf-8")):
            target = _target(here, match[2])
            if _page(target) is None and (ROOT / target).is_file() and not target.startswith("docs/"):
                linked.add(target)
    for target in sorted(linked):
        content = (ROOT / target).read_bytes()
        files.append(File.generated(config, f"{COPIED}/{target}", content=content))
    worker = (Path(__file__).parent / "file_worker.js").read_text(encoding="utf-8")
    files.append(File.generated(config, WORKER, content=worker))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The page without a script that would be fetched."""
    up = posixpath.relpath(WORKER, posixpath.dirname(page.file.dest_uri) or ".")
    return FETCHED.sub(f'src="{up}"', output)


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """Likewise for pages that are no documents."""
    return FETCHED.sub(f'src="{WORKER}"', output_content)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are in the repository lead to where these things are on the site."""
    here = page.file.src_uri
    source = next((source for source, name in PAGES.items() if name == here), f"docs/{here}")
    return _LINK.sub(lambda match: _rewritten(match, source, here), markdown)


def _rewritten(match: re.Match[str], source: str, here: str) -> str:
    text, path, anchor = match[1], match[2], match[3] or ""
    target = _target(source, path)
    place = _page(target)
    if place is None and target.startswith("docs/"):
        place = target.removeprefix("docs/")
    if place is None and (ROOT / target).is_file():
        place = f"{COPIED}/{target}"
    if place is None:  # a folder, which a site has no page for
        return text
    text = text.removeprefix("docs/") if text == path else text
    return f"[{text}]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{anchor})"


def _target(source: str, path: str) -> str:
    """What a link means, from the root of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path))


def _page(target: str) -> str | None:
    """The page of the site that a Markdown file of the repository has become."""
    if target in PAGES:
        return PAGES[target]
    return target.removeprefix("docs/") if re.fullmatch(r"docs/[^/]+\.md", target) else None
